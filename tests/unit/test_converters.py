"""Foreign data sets become event files: right values, in time order, bad rows counted, whole or not at all."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embedstore.errors import InvalidArgumentError
from embedstore.ids import hash_ids
from trainer import cli
from trainer.converters import read_columns, read_globo, read_movielens, read_s3rec
from trainer.decoding import SetAside
from trainer.eventfiles import read_events, write_events
from trainer.events import ActivityEvent


def events_of(path: Path) -> list[ActivityEvent]:
    set_aside = SetAside()
    events = list(read_events(path, set_aside))
    assert set_aside.total == 0
    return events


def convert(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["convert", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_movielens_ratings_become_likes_and_rates(tmp_path: Path, suffix: str) -> None:
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("userId,movieId,rating,timestamp\n1,10,4.0,200\n1,11,3.0,100\n2,10,3.5,100\n2,x,no,100\n")
    out = tmp_path / f"events.{suffix}"
    output = convert("movielens", str(ratings), "--out", str(out))
    assert "3 events" in output
    assert "1 of 4 records set aside (1 action)" in output
    found = [(event.user_id, event.item_id, event.action, event.event_time_ms) for event in events_of(out)]
    assert found == [(1, 11, "rate", 100_000), (2, 10, "like", 100_000), (1, 10, "like", 200_000)]


def test_a_column_of_numbers_and_texts_keeps_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u,i,t\n1,7,1\n1,007,2\n1,shoe,3\n-1,7,4\n99999999999999999999,7,5\n")
    events, _ = read_columns([path], {"user_id": "u", "item_id": "i", "event_time": "t"}, action_value="a")
    report = write_events(events, tmp_path / "out.csv", origin="log")
    assert report.set_aside == 2
    expected = [7, *hash_ids(["007", "shoe"]).tolist()]
    assert [event.item_id for event in events_of(tmp_path / "out.csv")] == expected


def test_sequences_keep_each_users_order(tmp_path: Path) -> None:
    sequences = tmp_path / "set.txt"
    sequences.write_text("1 7 8 9\n2 8 7\n\n3\n")
    events, skipped = read_s3rec([sequences])
    report = write_events(events, tmp_path / "out.parquet", origin="set.txt", skipped=skipped)
    found = [(event.user_id, event.item_id) for event in events_of(tmp_path / "out.parquet")]
    assert found == [(1, 7), (2, 8), (1, 8), (2, 7), (1, 9)]
    assert (report.events, report.set_aside, report.records) == (5, 1, 6)


def test_globo_clicks_keep_session_and_surface(tmp_path: Path) -> None:
    clicks = {
        "user_id": [5, 6],
        "session_id": [50, 60],
        "session_size": [2, 2],
        "click_article_id": [9, 8],
        "click_timestamp": [2000, 1000],
        "click_environment": [4, 2],
        "click_deviceGroup": [1, 3],
    }
    pq.write_table(pa.table(clicks), tmp_path / "clicks.parquet")
    events, skipped = read_globo([tmp_path / "clicks.parquet"])
    write_events(events, tmp_path / "out.jsonl", origin="clicks", skipped=skipped)
    assert events_of(tmp_path / "out.jsonl") == [
        ActivityEvent(6, 8, "click", 1000, "environment-2/device-3", session_id=60),
        ActivityEvent(5, 9, "click", 2000, "environment-4/device-1", session_id=50),
    ]


def test_columns_of_a_compressed_tsv_with_iso_times(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv.gz"
    rows = (
        "when\twho\twhat\tkind\n2019-10-01 00:00:01 UTC\tann\t5\tview\n1970-01-01\tbob\t6\tcart\nnever\tcy\t7\tview\n"
    )
    path.write_bytes(gzip.compress(rows.encode()))
    out = tmp_path / "out.csv"
    mapping = "user_id=who,item_id=what,event_time=when,action=kind"
    output = convert("columns", str(path), "--map", mapping, "--time-unit", "iso", "--out", str(out))
    assert "1 of 3 records set aside (1 event_time_ms)" in output
    assert events_of(out) == [
        ActivityEvent("bob", 6, "cart", 0),
        ActivityEvent("ann", 5, "view", 1_569_888_001_000),
    ]


def test_columns_without_a_header_and_with_rows_of_the_wrong_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("1;2;1.5\n3;4\n5;6;2\n-7;8;3\n")
    mapping = {"user_id": "u", "item_id": "i", "event_time": "t"}
    events, skipped = read_columns(
        [path], mapping, time_unit="s", action_value="click", delimiter=";", header=["u", "i", "t"]
    )
    report = write_events(events, tmp_path / "out.jsonl", origin="log", skipped=skipped, limit=1)
    assert report.reasons == {"csv": 1, "user_id": 1}
    assert f"{path} at 1: csv: 2 cells, expected 3" in caplog.text
    assert events_of(tmp_path / "out.jsonl") == [ActivityEvent(1, 2, "click", 1500)]


def test_times_stay_exact_and_equal_times_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u,i,t\n" + "".join(f"1,{k},1569888000123456789\n" for k in range(50)))
    mapping = {"user_id": "u", "item_id": "i", "event_time": "t"}
    events, _ = read_columns([path], mapping, time_unit="ns", action_value="a")
    write_events(events, tmp_path / "out.parquet", origin="log")
    found = events_of(tmp_path / "out.parquet")
    assert [event.item_id for event in found] == list(range(50))
    assert {event.event_time_ms for event in found} == {1_569_888_000_123}


@pytest.mark.parametrize(
    ("mapping", "action", "message"),
    [
        ({"user_id": "u", "item_id": "i"}, "a", "event_time is missing"),
        ({"user_id": "u", "item_id": "i", "event_time": "t"}, None, "either a column for action"),
        ({"user_id": "u", "item_id": "x", "event_time": "t"}, "a", "no column 'x', only u, i, t"),
        ({"user": "u"}, "a", "'user' is none of"),
    ],
)
def test_a_wrong_mapping_is_named(tmp_path: Path, mapping: dict[str, str], action: str | None, message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u,i,t\n1,2,3\n")
    with pytest.raises(InvalidArgumentError, match=message):
        read_columns([path], mapping, action_value=action)


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    events = pa.table({"user_id": ["7"], "item_id": [1], "action": ["a"], "event_time_ms": [1]})
    out = tmp_path / "out.csv"
    out.write_text("old")
    with pytest.raises(InvalidArgumentError, match="text in digits"):
        write_events(events, out, origin="x")
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_missing_input_and_an_unknown_suffix_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        read_movielens([tmp_path / "none.csv"])
    with pytest.raises(InvalidArgumentError, match=r"must end in one of .jsonl"):
        convert("movielens", "x", "--out", str(tmp_path / "out.txt"))


@pytest.mark.parametrize(("column", "unit"), [("what", "s"), ("when", "iso")])
def test_a_column_without_any_time_is_refused(tmp_path: Path, column: str, unit: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u,i,what,when\n1,2,view,1700000000\n")
    with pytest.raises(InvalidArgumentError, match=f"event_time.* is no time in {unit}"):
        read_columns([path], {"user_id": "u", "item_id": "i", "event_time": column}, time_unit=unit, action_value="a")


def test_seconds_taken_for_milliseconds_are_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u,i,t\n1,2,1700000000\n")
    arguments = ("columns", str(path), "--map", "user_id=u,item_id=i,event_time=t", "--action-value", "a")
    out = ("--out", str(tmp_path / "out.csv"))
    assert "--time-unit" in convert(*arguments, *out)
    assert "--time-unit" not in convert(*arguments, "--time-unit", "s", *out)
