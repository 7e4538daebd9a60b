"""Event files as a source: JSON lines, CSV and Parquet.

A stream is one file and one pass over it, named by the content's digest, so that a changed file is another stream.
Positions are record numbers: lines of JSONL, lines after the header of CSV, rows of Parquet. Columns and keys have the
names of :class:`trainer.events.ActivityEvent`; others are ignored. Blank lines are holes. In CSV, which knows no types,
a cell of an id column that is a whole number written the shortest way is a number and any other is a text; an empty
cell is a missing value; a record is one line; ``features`` is a JSON object.
"""

from __future__ import annotations

import csv
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Protocol

from embedstore.errors import InvalidArgumentError, StreamPositionError
from embedstore.interface import Origin
from trainer.decoding import Decoder, RawRecord
from trainer.events import FIELD_NAMES, FUTURE_TOLERANCE_MS, RECORD_BYTES_MAX, EventBatch, Fields, Id
from trainer.sources import NO_STOPS, check_poll, check_seek, range_end
from trainer.sources.lines import LineFile
from trainer.sources.parquet import ParquetEvents

DIGEST_CHARS = 16
PASSES_MAX = 1000
REQUIRED_COLUMNS = ("user_id", "item_id", "action", "event_time_ms")
ID_COLUMNS = ("user_id", "item_id", "session_id", "request_id")
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,38})", re.ASCII)


def wall_clock_ms() -> int:
    """Milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000


class EventFile(Protocol):
    """One open event file of any format."""

    digest: str
    num_records: int

    def read(self, origin: Origin, decoder: Decoder, latest_ms: int) -> EventBatch:
        """The records of one range, as columns."""
        ...

    def records(self, begin: int, end: int) -> Iterator[tuple[int, RawRecord]]:
        """The records of one range, one by one, with their positions; without blank lines."""
        ...

    def close(self) -> None:
        """Release the file."""


class FileSource:
    """The events of the file at ``path``, ``passes`` times over, one pass after another. See :class:`Source`.

    Events later than ten minutes after ``clock_ms`` at the time of opening are set aside. A file that is not an event
    file raises :class:`InvalidArgumentError`; one that changes while it is read, :class:`StreamPositionError`.
    """

    def __init__(self, path: str | Path, *, passes: int = 1, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        if not 1 <= passes <= PASSES_MAX:
            raise InvalidArgumentError("passes", f"must be 1 to {PASSES_MAX}, not {passes}")
        self.path = Path(path)
        self._identity = _identity(self.path)
        self._file = open_event_file(self.path)
        self._latest_ms = clock_ms() + FUTURE_TOLERANCE_MS
        self._decoder = Decoder()
        self.set_aside = self._decoder.set_aside
        digest = self._file.digest[:DIGEST_CHARS]
        self._positions = {f"file/{digest}/{k}": 0 for k in range(passes)}

    def streams(self) -> dict[str, int]:
        """One stream a pass, all beginning at 0."""
        return dict.fromkeys(self._positions, 0)

    def ends(self) -> dict[str, int | None]:
        """The number of records, for every pass."""
        return dict.fromkeys(self._positions, self._file.num_records)

    def log_ends(self) -> dict[str, int]:
        """The number of records, for every pass."""
        return dict.fromkeys(self._positions, self._file.num_records)

    def check_known(self, known: Mapping[str, int]) -> None:
        """Nothing: other content has another name."""

    def seek(self, positions: Mapping[str, int]) -> None:
        """See :meth:`Source.seek`; reads at most 1023 lines to get there."""
        check_seek(self.streams(), self.ends(), positions)
        self._positions.update(positions)

    def poll(
        self, max_events: int, timeout_s: float, *, only: str | None = None, stop_at: Mapping[str, int] = NO_STOPS
    ) -> EventBatch | None:
        """See :meth:`Source.poll`; never waits."""
        check_poll(self._positions, max_events, only)
        for stream in self._positions if only is None else (only,):
            position = self._positions[stream]
            if position < self._file.num_records:
                end = range_end(position, self._file.num_records, max_events, stop_at.get(stream))
                if _identity(self.path) != self._identity:
                    raise StreamPositionError(stream, position, f"{self.path} changed while it was being read")
                batch = self._file.read(Origin(stream, position, end), self._decoder, self._latest_ms)
                self._positions[stream] = end
                return batch
        return None

    def commit(self, positions: Mapping[str, int]) -> None:
        """Nothing: a file forgets nothing."""

    def lag_records(self) -> dict[str, int]:
        """Records not polled yet."""
        return {stream: self._file.num_records - position for stream, position in self._positions.items()}

    def close(self) -> None:
        """Close the file."""
        self.set_aside.flush()
        self._file.close()


def _identity(path: Path) -> tuple[int, int, int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InvalidArgumentError("events", f"cannot read {path}: {error.strerror}") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_event_file(path: Path) -> EventFile:
    """Open by suffix; :class:`InvalidArgumentError` when it is no event file."""
    formats: Mapping[str, Callable[[Path], EventFile]] = {
        ".jsonl": JsonLines,
        ".csv": CsvLines,
        ".parquet": ParquetEvents,
    }
    if path.suffix not in formats:
        raise InvalidArgumentError("events", f"{path} must end in one of {', '.join(formats)}")
    try:
        return formats[path.suffix](path)
    except OSError as error:
        raise InvalidArgumentError("events", f"cannot read {path}: {error}") from error


class JsonLines:
    """One JSON event a line."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)
        self.digest = self._lines.digest
        self.num_records = self._lines.num_lines

    def read(self, origin: Origin, decoder: Decoder, latest_ms: int) -> EventBatch:
        """See :class:`EventFile`."""
        return decoder.decode(origin, self.records(origin.begin, origin.end), repeat(latest_ms))

    def records(self, begin: int, end: int) -> Iterator[tuple[int, RawRecord]]:
        """See :class:`EventFile`."""
        return _records(begin, self._lines.read(begin, end), _json_record)

    def close(self) -> None:
        """See :class:`EventFile`."""
        self._lines.close()


def _json_record(line: bytes) -> RawRecord:
    line = line.strip()
    return line if line.startswith(b"{") else InvalidArgumentError("json", f"not an object: {line[:40]!r}")


def _records(
    begin: int, lines: list[bytes | None], record_of: Callable[[bytes], RawRecord]
) -> Iterator[tuple[int, RawRecord]]:
    for position, line in enumerate(lines, begin):
        if line is None:
            yield position, InvalidArgumentError("record", f"over the limit of {RECORD_BYTES_MAX} bytes")
        elif line and not line.isspace():
            yield position, record_of(line)


class CsvLines:
    """One event a line, after a header."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)
        self.digest = self._lines.digest
        self.num_records = max(self._lines.num_lines - 1, 0)
        self._header = self._read_header(path)

    def _read_header(self, path: Path) -> list[str]:
        lines = self._lines.read(0, min(self._lines.num_lines, 1))
        try:
            header = split_cells((lines[0] or b"").decode("utf-8-sig")) if lines else []
        except (UnicodeDecodeError, csv.Error) as error:
            raise InvalidArgumentError("events", f"the header of {path} cannot be read: {error}") from error
        for name in REQUIRED_COLUMNS:
            if name not in header:
                raise InvalidArgumentError("events", f"{path} has no column {name!r}; see `embedtrain convert columns`")
        if len(set(header)) != len(header):
            raise InvalidArgumentError("events", f"{path} has two columns of the same name")
        return header

    def read(self, origin: Origin, decoder: Decoder, latest_ms: int) -> EventBatch:
        """See :class:`EventFile`."""
        return decoder.decode(origin, self.records(origin.begin, origin.end), repeat(latest_ms))

    def records(self, begin: int, end: int) -> Iterator[tuple[int, RawRecord]]:
        """See :class:`EventFile`."""
        return _records(begin, self._lines.read(begin + 1, end + 1), self._record)

    def _record(self, line: bytes) -> RawRecord:
        try:
            cells = split_cells(line.decode())
        except (UnicodeDecodeError, csv.Error) as error:
            return InvalidArgumentError("csv", str(error))
        if len(cells) != len(self._header):
            return InvalidArgumentError("csv", f"{len(cells)} cells, the header has {len(self._header)}")
        return _fields_of_cells(dict(zip(self._header, cells, strict=True)))

    def close(self) -> None:
        """See :class:`EventFile`."""
        self._lines.close()


def split_cells(line: str, delimiter: str = ",") -> list[str]:
    """The cells of one line of CSV; ``csv.Error`` when a quote stays open."""
    if '"' not in line:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, strict=True))


def cell_id(cell: str | None) -> Id | None:
    """What an id cell means; None when it is empty."""
    if not cell:
        return None
    return int(cell) if _WHOLE_NUMBER.fullmatch(cell) else cell


def _fields_of_cells(cells: Mapping[str, str]) -> Fields | InvalidArgumentError:
    values: dict[str, object] = {name: cells.get(name) or None for name in FIELD_NAMES}
    for name in ID_COLUMNS:
        values[name] = cell_id(cells.get(name))
    event_time = cells["event_time_ms"]
    values["event_time_ms"] = int(event_time) if _WHOLE_NUMBER.fullmatch(event_time) else event_time or None
    values["surface"] = cells.get("surface", "")
    if cells.get("features"):
        try:
            values["features"] = json.loads(cells["features"])
        except (ValueError, RecursionError) as error:
            return InvalidArgumentError("features", str(error)[:200])
    return Fields(**values)
