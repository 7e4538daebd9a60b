"""Event files as a whole: read event by event; written checked, in time order, whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from embedstore.errors import InvalidArgumentError
from trainer.decoding import SetAside, fields_of
from trainer.events import FUTURE_TOLERANCE_MS, ActivityEvent
from trainer.sources.files import open_event_file
from trainer.sources.parquet import COLUMNS, convert_columns

ROW_GROUP_ROWS = 65536
JSON_ROWS = 8192
READ_RECORDS = 8192
ID_COLUMNS = ("user_id", "item_id", "session_id", "request_id")


@dataclass(frozen=True)
class WriteReport:
    """What became of the records of an input: how many were read, written and set aside, the last by reason."""

    records: int
    events: int
    set_aside: int
    reasons: Mapping[str, int]
    users: int
    items: int
    first_ms: int | None
    last_ms: int | None

    def __str__(self) -> str:
        text = f"{self.events:,} events of {self.users:,} users on {self.items:,} items"
        if self.first_ms is not None and self.last_ms is not None:
            text += f", {_iso(self.first_ms)} to {_iso(self.last_ms)}"
        if self.set_aside:
            reasons = ", ".join(f"{count:,} {name}" for name, count in self.reasons.items())
            text += f"; {self.set_aside:,} of {self.records:,} records set aside ({reasons})"
        return text


def _iso(time_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_ms // 1000))


def read_events(path: Path, set_aside: SetAside) -> Iterator[ActivityEvent]:
    """The events of an event file as they are written there, in its order; bad records go to ``set_aside``."""
    file = open_event_file(path)
    try:
        for begin in range(0, file.num_records, READ_RECORDS):
            for position, record in file.records(begin, min(begin + READ_RECORDS, file.num_records)):
                try:
                    event = ActivityEvent.from_fields(fields_of(record))
                except InvalidArgumentError as error:
                    set_aside.report(str(path), position, error)
                else:
                    yield event
    finally:
        file.close()


def write_events(
    events: pa.Table,
    out: Path,
    *,
    origin: str,
    limit: int | None = None,
    skipped: Mapping[str, int] | None = None,
    latest_ms: int | None = None,
) -> WriteReport:
    """Write the valid rows of ``events``, stably sorted by time, the first ``limit`` of them, to ``out``.

    ``events`` has columns of event names (ids integers or texts, the time integer milliseconds). The format follows
    the suffix of ``out``: .jsonl, .csv or .parquet. The file appears whole or not at all. Rows that are not valid
    events are counted, and reported as records of ``origin``; ``skipped`` counts, by reason, records that were
    already left out. Events later than ``latest_ms`` (default: ten minutes from now) are not valid.
    """
    write = writer_of(out)
    if latest_ms is None:
        latest_ms = time.time_ns() // 1_000_000 + FUTURE_TOLERANCE_MS
    events = events.select([name for name in COLUMNS if name in events.column_names]).combine_chunks()
    columns, problems = convert_columns(events, latest_ms)
    set_aside = SetAside()
    for row, problem in sorted(problems.found, key=lambda found: found[0]):
        set_aside.report(origin, row, problem)
    set_aside.flush()
    good = np.flatnonzero(~problems.bad)
    order = good[np.argsort(columns["event_time_ms"][good], kind="stable")][:limit]
    sorted_events = events.take(pa.array(order))
    reasons = Counter(skipped or {}) + set_aside.by_field
    _write_atomically(sorted_events, out, write)
    times_ms = columns["event_time_ms"][order]
    return WriteReport(
        records=events.num_rows + sum((skipped or {}).values()),
        events=order.size,
        set_aside=reasons.total(),
        reasons=dict(reasons),
        users=np.unique(columns["user_ids"][order]).size,
        items=np.unique(columns["item_ids"][order]).size,
        first_ms=int(times_ms[0]) if order.size else None,
        last_ms=int(times_ms[-1]) if order.size else None,
    )


def writer_of(out: Path) -> Callable[[pa.Table, Path], None]:
    """How a file of this suffix is written; :class:`InvalidArgumentError` for an unknown one."""
    writers = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
    if out.suffix not in writers:
        raise InvalidArgumentError("out", f"{out} must end in one of {', '.join(writers)}")
    return writers[out.suffix]


def _write_atomically(events: pa.Table, out: Path, write: Callable[[pa.Table, Path], None]) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        write(events, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError as error:
        raise InvalidArgumentError("out", f"cannot write {out}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _write_parquet(events: pa.Table, path: Path) -> None:
    pq.write_table(events, path, row_group_size=ROW_GROUP_ROWS, compression="zstd")


def _write_csv(events: pa.Table, path: Path) -> None:
    quoting = "none"
    for name in {*ID_COLUMNS, "action", "surface"}.intersection(events.column_names):
        column = events.column(name)
        if pa.types.is_integer(column.type):
            continue
        texts = pc.unique(column.cast(pa.string()))
        if _any_matches(texts, r"[\r\n]"):
            raise InvalidArgumentError("out", f"a {name} has a line break, which an event CSV cannot hold")
        if name in ID_COLUMNS and _any_matches(texts, r"^-?(0|[1-9][0-9]*)$"):
            raise InvalidArgumentError("out", f"a {name} is a text in digits, which CSV cannot tell from a number")
        if _any_matches(texts, r'[",]'):
            quoting = "needed"
    pa_csv.write_csv(events, path, pa_csv.WriteOptions(quoting_style=quoting))


def _any_matches(texts: pa.Array, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(texts, pattern)).as_py())


def _write_jsonl(events: pa.Table, path: Path) -> None:
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for chunk in events.to_batches(JSON_ROWS):
            rows = chunk.to_pylist()
            present = ({name: value for name, value in row.items() if value not in (None, "")} for row in rows)
            file.writelines(encode(row) + "\n" for row in present)
