"""``embedtrain stream`` refuses what cannot work before it touches anything, naming the option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import embedstore as es
from embedstore.errors import InvalidArgumentError
from trainer.stream import app

EVENT = {"user_id": 1, "item_id": 2, "action": "click", "surface": "home", "event_time_ms": 1_700_000_000_000}


def run(tmp_path: Path, *options: str) -> None:
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(EVENT | {"item_id": i % 3}) + "\n" for i in range(5)))
    arguments = ["--events", str(tmp_path / "events.jsonl"), "--store", str(tmp_path / "store"), *options]
    app(args=arguments, standalone_mode=False)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--score-from", "yesterday"), "score-from"),
        (("--device", "abacus"), "device"),
        (("--device", "mps"), "device"),
        (("--config", "none.toml"), "config"),
        (("--store", "http://here:1"), "store"),
        (("--metrics", "."), "metrics"),
        (("--summary", "nowhere/summary.json"), "summary"),
    ],
)
def test_a_bad_option_is_refused_by_name(tmp_path: Path, options: tuple[str, ...], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        run(tmp_path, *options)
    assert caught.value.field == field
    assert not (tmp_path / "store").exists()


def test_a_tiny_file_leaves_a_summary_a_metrics_file_and_a_cut_beside_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ("--metrics", str(tmp_path / "m.jsonl"), "--summary", str(tmp_path / "s.json"))
    run(tmp_path, "--score-from", "2017-10-02T03:00:00Z", *outputs)
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["events"] == 5
    assert summary["rows"] == 3
    assert summary["tests"] == 4
    assert "5 events" in capsys.readouterr().out
    assert (tmp_path / "store" / "trainer" / "cut").exists()
    assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[-1])["events"] == 5


def test_times_without_a_zone_are_utc_and_only_later_events_are_scored(tmp_path: Path) -> None:
    run(tmp_path, "--score-from", "2023-11-15", "--summary", str(tmp_path / "s.json"))
    assert json.loads((tmp_path / "s.json").read_text())["tests"] == 0


def test_a_second_run_says_what_was_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, told in (
        (("--max-events", "2"), "2 events, "),
        ((), "5 events, 3 of them now, "),
        ((), "0 of them now;"),
    ):
        run(tmp_path, *options)
        assert told in capsys.readouterr().out


def test_tables_of_another_shape_are_refused(tmp_path: Path) -> None:
    es.open(tmp_path / "store", tables=[es.TableSpec("items", dim=8)]).close()
    with pytest.raises(InvalidArgumentError, match=r"store: .*'items' exists with dim 8, not \d+ as \[model\]"):
        run(tmp_path)
