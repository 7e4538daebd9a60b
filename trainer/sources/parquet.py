"""Event files in Parquet: checked, hashed and cut to ranges as whole columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedstore.errors import InvalidArgumentError, StreamPositionError
from embedstore.ids import hash_ids
from embedstore.interface import Origin
from trainer.decoding import Decoder, RawRecord
from trainer.events import KEY_BYTES_MAX, NAME_BYTES_MAX, EventBatch, Fields

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ROWS_PER_READ = 16384
BLOCK_BYTES = 1 << 20
COLUMNS = {
    "user_id": ("user_ids", True),
    "item_id": ("item_ids", True),
    "action": ("actions", True),
    "event_time_ms": ("event_time_ms", True),
    "surface": ("surfaces", False),
    "session_id": ("session_ids", False),
    "request_id": ("request_ids", False),
}
"""Column of the file -> column of a batch, and whether it is required."""


class Problems:
    """The rows of one range that cannot be used, each with the first thing that is wrong with it."""

    def __init__(self, num_rows: int) -> None:
        self.bad = np.zeros(num_rows, dtype=bool)
        self.found: list[tuple[int, InvalidArgumentError]] = []

    def add(self, rows: np.ndarray, field: str, problem: str) -> None:
        """Note ``problem`` for the rows of a bool [n] mask that were fine so far."""
        fresh = np.flatnonzero(rows & ~self.bad)
        self.bad[fresh] = True
        self.found.extend((int(row), InvalidArgumentError(field, problem)) for row in fresh)


class ParquetEvents:
    """One event a row. Ids are integers or texts, names texts (plain or dictionary-encoded), the event time an integer
    of milliseconds or a timestamp; a column of another type raises :class:`InvalidArgumentError` on opening."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.digest = _digest(file)
        try:
            self._file = pq.ParquetFile(path)
        except pa.ArrowException as error:
            raise InvalidArgumentError("events", f"{path} is not a Parquet file: {error}") from error
        self.num_records = self._file.metadata.num_rows
        groups = range(self._file.metadata.num_row_groups)
        sizes = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._group_begins = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._columns = self._check_schema(path)
        self._chunks: Iterator[pa.RecordBatch] = iter(())
        self._chunk: pa.RecordBatch | None = None
        self._chunk_begin = 0

    def _check_schema(self, path: Path) -> list[str]:
        schema = self._file.schema_arrow
        for name, (_, required) in COLUMNS.items():
            if name not in schema.names:
                if required:
                    hint = "see `embedtrain convert columns`"
                    raise InvalidArgumentError("events", f"{path} has no column {name!r}; {hint}")
                continue
            kind = schema.field(name).type
            if not _is_allowed(name, kind):
                raise InvalidArgumentError("events", f"column {name!r} of {path} cannot be of type {kind}")
        return [name for name in COLUMNS if name in schema.names]

    def read(self, origin: Origin, decoder: Decoder, latest_ms: int) -> EventBatch:
        """See :class:`trainer.sources.files.EventFile`."""
        try:
            rows = pa.Table.from_batches(list(self._rows(origin.begin, origin.end))).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            self._chunk = None
            raise StreamPositionError(origin.stream, origin.begin, f"the file cannot be read: {error}") from error
        columns, problems = convert_columns(rows, latest_ms)
        for row, problem in sorted(problems.found, key=lambda found: found[0]):
            decoder.set_aside.report(origin.stream, origin.begin + row, problem)
        return _batch(origin, columns, np.flatnonzero(~problems.bad), len(problems.found))

    def records(self, begin: int, end: int) -> Iterator[tuple[int, RawRecord]]:
        """See :class:`trainer.sources.files.EventFile`."""
        for part in self._rows(begin, end):
            for row in part.to_pylist():
                yield begin, _fields(row)
                begin += 1

    def _rows(self, begin: int, end: int) -> Iterator[pa.RecordBatch]:
        while begin < end:
            chunk = self._chunk_at(begin)
            offset = begin - self._chunk_begin
            part = chunk.slice(offset, min(end - begin, chunk.num_rows - offset))
            begin += part.num_rows
            yield part

    def _chunk_at(self, row: int) -> pa.RecordBatch:
        if self._chunk is None or not 0 <= row - self._chunk_begin <= self._chunk.num_rows:
            group = int(np.searchsorted(self._group_begins, row, side="right")) - 1
            groups = list(range(group, len(self._group_begins) - 1))
            self._chunks = self._file.iter_batches(ROWS_PER_READ, row_groups=groups, columns=self._columns)
            self._chunk_begin = int(self._group_begins[group])
            self._chunk = next(self._chunks)
        while row >= self._chunk_begin + self._chunk.num_rows:
            self._chunk_begin += self._chunk.num_rows
            self._chunk = next(self._chunks)
        return self._chunk

    def close(self) -> None:
        """See :class:`trainer.sources.files.EventFile`."""
        self._chunk = None
        self._chunks = iter(())
        self._file.close()


def _fields(row: dict[str, Any]) -> Fields:
    event_time = row["event_time_ms"]
    if isinstance(event_time, datetime):
        aware = event_time if event_time.tzinfo else event_time.replace(tzinfo=UTC)
        row["event_time_ms"] = (aware - EPOCH) // timedelta(milliseconds=1)
    row["surface"] = row.get("surface") or ""
    return Fields(**row)


def _digest(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _is_allowed(name: str, kind: pa.DataType) -> bool:
    if name == "event_time_ms":
        return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind))
    if name in ("action", "surface"):
        return _is_text(kind)
    return bool(pa.types.is_integer(kind)) or _is_text(kind)


def _batch(origin: Origin, columns: dict[str, np.ndarray], rows: np.ndarray, set_aside: int) -> EventBatch:
    kept = {name: column[rows] for name, column in columns.items()}
    for name in ("session_ids", "request_ids"):
        kept.setdefault(name, np.zeros(rows.size, dtype=np.uint64))
    kept.setdefault("surfaces", np.full(rows.size, hash_ids([""])[0], dtype=np.uint64))
    return EventBatch(
        **kept,
        stream_index=np.zeros(rows.size, dtype=np.int32),
        positions=(rows + origin.begin).astype(np.int64),
        origins=(origin,),
        set_aside=set_aside,
    )


def convert_columns(rows: pa.Table, latest_ms: int) -> tuple[dict[str, np.ndarray], Problems]:
    """The columns of a batch, by their names there, from a table with columns of event names and allowed types; the
    values of bad rows mean nothing."""
    problems = Problems(rows.num_rows)
    columns = {
        batch_name: _convert(name, rows.column(name).combine_chunks(), problems, latest_ms)
        for name, (batch_name, _) in COLUMNS.items()
        if name in rows.column_names
    }
    return columns, problems


def _convert(name: str, column: pa.Array, problems: Problems, latest_ms: int) -> np.ndarray:
    if name == "event_time_ms":
        return _convert_times(column, problems, latest_ms)
    required = COLUMNS[name][1]
    if required:
        problems.add(_mask(pc.is_null(column)), name, "missing")
    if _is_text(column.type):
        return _convert_texts(name, column, problems)
    values = column.fill_null(0)
    if pa.types.is_signed_integer(column.type):
        problems.add(_mask(pc.less(values, 0)), name, "negative")
        values = values.cast(pa.int64())
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array.astype(np.int64).view(np.uint64) if array.dtype.kind == "i" else array.astype(np.uint64)


def _convert_times(column: pa.Array, problems: Problems, latest_ms: int) -> np.ndarray:
    problems.add(_mask(pc.is_null(column)), "event_time_ms", "missing")
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False).cast(pa.int64())
    values = column.fill_null(0)
    problems.add(_mask(pc.less(values, 0)), "event_time_ms", "negative")
    problems.add(_mask(pc.greater(values, latest_ms)), "event_time_ms", "in the future")
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array.astype(np.int64)


def _convert_texts(name: str, column: pa.Array, problems: Problems) -> np.ndarray:
    is_name = name in ("action", "surface")
    missing = hash_ids([""])[0] if name == "surface" else np.uint64(0)
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    present = _mask(pc.is_valid(encoded.indices))
    if not present.any():
        return np.full(len(column), missing, dtype=np.uint64)
    indices = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    texts = [value or b"" for value in encoded.dictionary.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()]
    num_bytes = np.array([len(text) for text in texts])[indices]
    if name != "surface":
        problems.add(present & (num_bytes == 0), name, "missing")
    bytes_max = NAME_BYTES_MAX if is_name else KEY_BYTES_MAX
    problems.add(present & (num_bytes > bytes_max), name, f"over the limit of {bytes_max} bytes")
    decoded = [_decode(text) for text in texts]
    problems.add(present & np.array([text is None for text in decoded])[indices], name, "not valid Unicode")
    return np.where(present, hash_ids([text or "" for text in decoded])[indices], missing)


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def _mask(values: Any) -> np.ndarray:
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array
