"""Event files: what is refused on opening, what changes underneath, and what a line may hold."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedstore.errors import InvalidArgumentError, StreamPositionError
from embedstore.ids import hash_ids
from trainer.events import FUTURE_TOLERANCE_MS, RECORD_BYTES_MAX, ActivityEvent, EventBatch
from trainer.sources import open_source
from trainer.sources.files import FileSource
from trainer.sources.lines import INDEX_STRIDE, LineFile

HEADER = "user_id,item_id,action,event_time_ms,surface,session_id,request_id,features\n"


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def read(uri: str) -> tuple[EventBatch, FileSource]:
    source = open_source(uri)
    assert isinstance(source, FileSource)
    batch = source.poll(10_000, 0.0)
    assert batch is not None
    return batch, source


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_without_records_ends_at_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events.{suffix}"
    if suffix == "parquet":
        empty = {"user_id": [1], "item_id": [1], "action": ["a"], "event_time_ms": [1]}
        pq.write_table(pa.table(empty).slice(0, 0), path)
    else:
        write(path, HEADER if suffix == "csv" else "")
    source = open_source(str(path))
    assert list(source.ends().values()) == [0]
    assert source.poll(10, 0.0) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "cannot read"),
        ("events.txt", "", "must end in one of"),
        ("events.csv", "user_id,item_id,action\n", "no column 'event_time_ms'"),
        ("events.csv", HEADER.replace("surface", "user_id"), "two columns of the same name"),
        ("events.csv", b"\xff\xfe", "header"),
        ("events.csv", "", "no column 'user_id'"),
        ("events.parquet", "PAR1 or not", "not a Parquet file"),
    ],
)
def test_what_is_no_event_file_is_refused(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(InvalidArgumentError, match=message):
        open_source(str(path))


@pytest.mark.parametrize("column", ["user_id", "action", "event_time_ms"])
def test_a_parquet_column_of_the_wrong_type_is_refused(tmp_path: Path, column: str) -> None:
    columns = {"user_id": [1], "item_id": [1], "action": ["a"], "event_time_ms": [1], column: [1.5]}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    with pytest.raises(InvalidArgumentError, match=f"column '{column}' .* type double"):
        open_source(str(tmp_path / "events.parquet"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, suffix: str) -> None:
    line = ActivityEvent(1, 2, "a", 3).to_json().decode() if suffix == "jsonl" else "1,2,a,3,,,,"
    path = tmp_path / f"events.{suffix}"
    uri = write(path, (HEADER if suffix == "csv" else "") + f"{line}\n" * 4)
    source = open_source(uri)
    assert source.poll(2, 0.0) is not None
    before = source.streams()
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(StreamPositionError, match="changed while"):
        source.poll(2, 0.0)
    assert open_source(uri).streams() != before


def test_a_damaged_row_group_is_an_error_not_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    numbers = np.arange(5000)
    table = pa.table({"user_id": numbers, "item_id": numbers, "action": ["a"] * 5000, "event_time_ms": numbers})
    pq.write_table(table, path, row_group_size=1000, compression="zstd", use_dictionary=False)
    offset = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 200] = os.urandom(200)
    path.write_bytes(content)
    source = open_source(str(path))
    [stream] = source.streams()
    source.seek({stream: 2000})
    with pytest.raises(StreamPositionError, match="cannot be read"):
        source.poll(500, 0.0)
    source.seek({stream: 3000})
    batch = source.poll(500, 0.0)
    assert batch is not None
    assert batch.item_ids.tolist() == list(range(3000, 3500))


def test_a_line_over_the_limit_is_set_aside_without_being_held(tmp_path: Path) -> None:
    good = ActivityEvent(1, 2, "a", 3).to_json()
    just_right = good + b" " * (RECORD_BYTES_MAX - len(good))
    lines = [good, b"x" * (3 * RECORD_BYTES_MAX), just_right, just_right + b" " * 9, good]
    batch, source = read(write(tmp_path / "events.jsonl", b"\r\n".join(lines)))
    assert batch.positions.tolist() == [0, 2, 4]
    assert [record[1:3] for record in source.set_aside.recent] == [(1, "record"), (3, "record")]


def test_cells_of_csv_mean_numbers_texts_or_nothing(tmp_path: Path) -> None:
    rows = [
        '7,007,click,1,home,"a,b",0,"{""x"": 1}"',
        '18446744073709551615,"say ""hi""",click,2,,,,',
        "-1,2,click,3,,,,",
        "18446744073709551616,2,click,3,,,,",
        ",2,click,3,,,,",
        "1,2,click,3.0,,,,",
        '1,2,click,3,,,,"{"',
        '1,"2,click,3,,,,',
        "1,2,click",
    ]
    batch, source = read(write(tmp_path / "events.csv", HEADER + "\n".join(rows)))
    assert batch.positions.tolist() == [0, 1]
    assert batch.user_ids.tolist() == [7, 2**64 - 1]
    assert batch.item_ids.tolist() == hash_ids(["007", 'say "hi"']).tolist()
    assert batch.session_ids.tolist() == [int(hash_ids(["a,b"])[0]), 0]
    assert batch.surfaces.tolist() == hash_ids(["home", ""]).tolist()
    assert dict(source.set_aside.by_field) == {"user_id": 3, "event_time_ms": 1, "features": 1, "csv": 2}


def test_rows_of_parquet_are_checked_like_single_events(tmp_path: Path) -> None:
    rows = {
        "user_id": [1, -1, None, 4, 5, 6, 7, 8],
        "item_id": ["a", "b", "c", "", "x" * 1025, None, "g", "h"],
        "action": ["click"] * 6 + ["", "y" * 257],
        "event_time_ms": [5] * 8,
        "session_id": pa.array([3, None, 3, 3, 3, 3, 3, 3], pa.int32()),
    }
    pq.write_table(pa.table(rows), tmp_path / "events.parquet")
    batch, source = read(str(tmp_path / "events.parquet"))
    assert batch.positions.tolist() == [0]
    assert batch.session_ids.tolist() == [3]
    assert [record[2] for record in source.set_aside.recent] == ["user_id"] * 2 + ["item_id"] * 3 + ["action"] * 2


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_event_from_the_future_is_set_aside(tmp_path: Path, suffix: str) -> None:
    now_ms = 1_000_000
    times_ms = [now_ms + FUTURE_TOLERANCE_MS, now_ms + FUTURE_TOLERANCE_MS + 1]
    path = tmp_path / f"events.{suffix}"
    if suffix == "jsonl":
        write(path, b"\n".join(ActivityEvent(1, 2, "a", time_ms).to_json() for time_ms in times_ms))
    else:
        pq.write_table(
            pa.table({"user_id": [1] * 2, "item_id": [2] * 2, "action": ["a"] * 2, "event_time_ms": times_ms}), path
        )
    batch = open_source(str(path), clock_ms=lambda: now_ms).poll(10, 0.0)
    assert batch is not None
    assert batch.event_time_ms.tolist() == times_ms[:1]


def test_any_line_is_found_through_the_index(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    lines = [b"%d" % k + b"." * int(generator.integers(0, 2000)) for k in range(3 * INDEX_STRIDE)]
    write(tmp_path / "lines", b"\n".join(lines))
    file = LineFile(tmp_path / "lines")
    assert file.num_lines == len(lines)
    for begin in (0, INDEX_STRIDE - 1, INDEX_STRIDE, 2 * INDEX_STRIDE + 5, 3, len(lines) - 1):
        assert file.read(begin, begin + 1) == [lines[begin]]
    assert file.read(INDEX_STRIDE - 2, INDEX_STRIDE + 2) == lines[INDEX_STRIDE - 2 : INDEX_STRIDE + 2]


def test_a_pass_is_a_stream_of_its_own(tmp_path: Path) -> None:
    uri = write(tmp_path / "events.jsonl", ActivityEvent(1, 2, "a", 3).to_json())
    source = open_source(uri, passes=2)
    batches = [source.poll(10, 0.0) for _ in range(3)]
    assert batches[2] is None
    assert [batch.origins[0].stream[-2:] for batch in batches if batch is not None] == ["/0", "/1"]
    with pytest.raises(InvalidArgumentError, match="passes"):
        open_source(uri, passes=0)
