"""Settings and table files: every field reachable, every mistake named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import embedstore as es
from embedstore.cli.config import load_settings
from embedstore.cli.tables import KINDS, parse_tables, read_tables
from embedstore.errors import InvalidArgumentError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_table_file_says_what_a_spec_says(tmp_path: Path) -> None:
    file = write(
        tmp_path / "tables.toml",
        """
        [tables.items]
        dim = 64
        optimizer = { kind = "adam", lr = 0.01, beta2 = 0.99 }
        init = { kind = "uniform", scale = 0.05, seed = 7 }
        on_miss = "init"
        num_chunks = 64

        [tables."users.v2"]
        dim = 8
        init = "zeros"
        admission = { kind = "min_count", count = 2 }
        ttl_s = 60.5
        """,
    )
    assert read_tables(file) == [
        es.TableSpec(
            "items",
            64,
            optimizer=es.Adam(lr=0.01, beta2=0.99),
            init=es.Uniform(0.05, seed=7),
            on_miss="init",
            num_chunks=64,
        ),
        es.TableSpec("users.v2", 8, init=es.Zeros(), admission=es.MinCount(2), ttl_s=60.5),
    ]


def test_every_kind_of_the_spec_has_a_name() -> None:
    for section, base in (("optimizer", es.SGD.__mro__[1]), ("init", es.Zeros.__mro__[1])):
        public = {value for name in es.__all__ if isinstance(value := getattr(es, name, None), type)}
        assert {cls for cls in public if issubclass(cls, base)} == set(KINDS[section].values())


@pytest.mark.parametrize(
    ("tables", "field"),
    [
        ({"items": {}}, "tables.items.dim"),
        ({"items": {"dim": 0}}, "TableSpec.dim"),
        ({"items": {"dim": 2, "color": 1}}, "tables.items.color"),
        ({"items": {"dim": 2, "optimizer": {"kind": "adagrad"}}}, "tables.items.optimizer.lr"),
        ({"items": {"dim": 2, "optimizer": {"lr": 1.0}}}, "tables.items.optimizer.kind"),
        ({"items": {"dim": 2, "optimizer": {"kind": "sgd", "lr": 1.0, "beta": 1}}}, "tables.items.optimizer.beta"),
        ({"items": {"dim": 2, "init": "rainbow"}}, "tables.items.init.kind"),
        ({"items": 3}, "tables.items"),
        ({"no name": {"dim": 2}}, "TableSpec.name"),
        ([], "tables"),
    ],
)
def test_a_mistake_in_a_table_is_named(tables: Any, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_tables(tables)
    assert caught.value.field == field


def test_flags_come_before_the_environment_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "c.toml", 'listen = "localhost:1"\nshard = "0/2"\nworkers = 3\n[tables.items]\ndim = 2\n')
    monkeypatch.setenv("EMBEDSTORE_WORKERS", "4")
    monkeypatch.setenv("EMBEDSTORE_SHARD", "1/2")
    monkeypatch.setenv("EMBEDSTORE_PEERS", "a:1, b:2")
    options = load_settings(file, {"workers": 5, "data": None}).options()
    assert (options.listen, options.shard, options.num_shards, options.workers) == ("localhost:1", 1, 2, 5)
    assert options.peers == ("a:1", "b:2")
    assert options.data is None
    assert [spec.name for spec in options.tables] == ["items"]
    assert load_settings(None, {}).options().checkpoint_interval_s == 5.0


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"shard": "2"}, "shard"),
        ({"shard": "2/2"}, "shard"),
        ({"shard": "0/0"}, "num_shards"),
        ({"listen": "nowhere"}, "listen"),
        ({"listen": "localhost:99999"}, "listen"),
        ({"peers": "a:1"}, None),
        ({"peers": "a:1,b:2"}, "peers"),
        ({"peers": "a"}, "addresses"),
        ({"follow": "a:1", "data": Path("x")}, "data"),
        ({"follow": "a:1", "shard": "0/2"}, "shard"),
        ({"workers": 0}, "workers"),
        ({"workers": "many"}, "workers"),
        ({"checkpoint_interval_s": -1.0}, "checkpoint_interval_s"),
    ],
)
def test_a_mistake_in_the_settings_is_named(flags: dict[str, Any], field: str | None) -> None:
    if field is None:
        assert load_settings(None, flags).options().peers == ("a:1",)
        return
    with pytest.raises(InvalidArgumentError) as caught:
        load_settings(None, flags).options()
    assert caught.value.field == field


def test_a_mistake_in_a_file_names_the_file_or_the_key(tmp_path: Path) -> None:
    for content, field in (("colour = 1", "colour"), ("a = [", "c.toml"), ("workers = 'x'", "workers")):
        file = write(tmp_path / "c.toml", content)
        with pytest.raises(InvalidArgumentError) as caught:
            load_settings(file, {})
        assert field in caught.value.field
    with pytest.raises(InvalidArgumentError, match=r"missing\.toml"):
        read_tables(tmp_path / "missing.toml")
    with pytest.raises(InvalidArgumentError, match="unknown section"):
        read_tables(write(tmp_path / "t.toml", "[table.items]\ndim = 2\n"))
