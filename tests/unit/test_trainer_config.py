"""Settings come from the file and the environment, and a bad one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedstore import MinCount
from embedstore.errors import InvalidArgumentError
from trainer.config import load_settings


def test_the_file_goes_over_the_defaults_and_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[model]\ndim = 32\nlength = 5\n[train]\nbatch_events = 64\n")
    monkeypatch.setenv("EMBEDTRAIN_MODEL__LENGTH", "6")
    settings = load_settings(path)
    assert (settings.model.dim, settings.model.length, settings.train.batch_events) == (32, 6, 64)
    assert [spec.dim for spec in settings.table_specs()] == [32, 32, 32]
    assert {spec.on_miss for spec in settings.table_specs()} == {"init"}


def test_limits_are_for_items_alone_and_need_not_be(tmp_path: Path) -> None:
    for spec in load_settings().table_specs():
        assert (spec.admission, spec.ttl_s, spec.rows_max) == (None, None, None)
    path = tmp_path / "c.toml"
    path.write_text("[tables]\nitem_min_count = 3\nitem_ttl_days = 2\nitem_rows_max = 1000\n")
    items, *others = load_settings(path).table_specs()
    assert (items.admission, items.ttl_s, items.rows_max) == (MinCount(3), 172_800, 1000)
    assert all((spec.admission, spec.ttl_s, spec.rows_max) == (None, None, None) for spec in others)
    path.write_text("[tables]\nitem_ttl_days = 2\n")
    assert load_settings(path).table_specs()[0].admission == MinCount(1), "or negatives bring old rows back"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[model]\ndim = 1\n", "model.dim"),
        ("[model]\ndims = 64\n", "model.dims"),
        ("[train]\ndense_lr = -1\n", "train.dense_lr"),
        ("[train]\nshare_half_life = 3\n", "train.share_half_life"),
        ("[model]\nheads = 3\n", "model.heads"),
        ("[nothing]\n", "nothing"),
        ("not toml", "config"),
    ],
)
def test_a_bad_setting_is_refused_by_name(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError) as caught:
        load_settings(path)
    assert caught.value.field == field


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="config"):
        load_settings(tmp_path / "none.toml")


def test_a_misspelt_setting_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[model]\ndims = 64\n")
    with pytest.raises(InvalidArgumentError, match=r"model.dims: there is no such setting"):
        load_settings(tmp_path / "c.toml")
