"""Pull and Push messages, written and read in protobuf's wire format without a copy of their arrays.

Byte-compatible with ``protos/embedstore/v1/store.proto``: an ordinary generated client or server is a valid other side.
Writers join the caller's arrays into one ``bytes`` (the only copy); readers return read-only numpy views into the
message. Whatever the bytes are, a reader returns sound columns (lengths agree, dtypes known) or raises
:class:`InvalidArgumentError` naming the field, or :class:`LimitError`. Pure functions, usable from any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from embedstore.errors import InvalidArgumentError, LimitError
from embedstore.interface import IDS_PER_CALL_MAX, POSITION_MAX, Origin, Rows
from embedstore.protowire import BYTES, Field, Writer, array_at, double_at, expect, fields, integer_at, text_at

MESSAGE_BYTES_MAX = 64 << 20
TABLES_PER_CALL_MAX = 4096
ORIGINS_PER_CALL_MAX = 4096
_DIM_MAX = (1 << 32) - 1

FLOAT32, FLOAT16, NONE = 1, 2, 3
_ROW_DTYPES = {0: np.dtype("<f4"), FLOAT32: np.dtype("<f4"), FLOAT16: np.dtype("<f2")}
_CODES = {np.dtype(np.float32): FLOAT32, np.dtype(np.float16): FLOAT16}


class TablePull(NamedTuple):
    """What is asked of one table. ``dtype`` None: no rows, only what is known of them."""

    table: str
    ids: np.ndarray
    dtype: np.dtype[Any] | None
    meta: bool


class PullRequest(NamedTuple):
    """A decoded Pull request."""

    epoch: int
    tables: list[TablePull]


class TableRows(NamedTuple):
    """One table's answer: ``rows`` [n, dim] or None, ``meta`` or None (its ``embeddings`` are ``rows``, or [n, 0])."""

    table: str
    dim: int
    rows: np.ndarray | None
    meta: Rows | None


class TablePart(NamedTuple):
    """One table's part of a push: columns of equal length, ready to be sent or applied."""

    table: str
    ids: np.ndarray
    grads: np.ndarray
    counts: np.ndarray | None
    event_times_ms: np.ndarray | None
    lr: float | None


class PushRequest(NamedTuple):
    """A decoded Push request; ``generations`` maps each origin's stream to its writer's generation."""

    epoch: int
    tables: list[TablePart]
    origins: list[Origin]
    generations: dict[str, int]
    event_time_ms: int | None


def dtype_code(dtype: Any) -> int:
    """The wire's number for a dtype of rows; None: no rows."""
    if dtype is None:
        return NONE
    code = _CODES.get(np.dtype(dtype))
    if code is None:
        raise InvalidArgumentError("dtype", f"must be float32 or float16, not {np.dtype(dtype)}")
    return code


def encode_pull_request(epoch: int, tables: Iterable[TablePull]) -> bytes:
    """A PullRequest."""
    writer = Writer()
    writer.integer(1, epoch)
    for pull in tables:
        code = dtype_code(pull.dtype)
        mark = writer.begin(2)
        writer.text(1, pull.table)
        writer.integer(4, pull.meta)
        if not len(pull.ids):
            writer.integer(3, code)
        _column(writer, 2, pull.ids, "<u8", pad=(3, code))
        writer.end(mark)
    return _checked(writer, "PullRequest").join()


def decode_pull_request(data: bytes) -> PullRequest:
    """Read a PullRequest."""
    epoch = 0
    tables: list[TablePull] = []
    for field in fields(data, 0, len(data), "PullRequest"):
        if field.number == 1:
            epoch = integer_at(field, "PullRequest.epoch")
        elif field.number == 2:
            label = f"PullRequest.tables[{_room(tables, 'PullRequest.tables', TABLES_PER_CALL_MAX)}]"
            tables.append(_table_pull(data, field, label))
    return PullRequest(epoch, tables)


def _table_pull(data: bytes, message: Field, label: str) -> TablePull:
    table, ids, code, meta = "", _EMPTY_IDS, 0, False
    expect(message, BYTES, label)
    for field in fields(data, message.value, message.end, label):
        if field.number == 1:
            table = text_at(data, field, f"{label}.table")
        elif field.number == 2:
            ids = _ids_at(data, field, f"{label}.ids")
        elif field.number == 3:
            code = _enum(integer_at(field, f"{label}.dtype"))
        elif field.number == 4:
            meta = integer_at(field, f"{label}.meta") != 0
    return TablePull(table, ids, _row_dtype(code, f"{label}.dtype", none=True), meta)


class PullResponseWriter:
    """Collects a PullResponse; for one thread.

    ``rows`` may be given as a piece that somebody else turns into bytes later (the native core writes rows straight
    into the message); :meth:`pieces` are then for ``_native.gather_message``.
    """

    def __init__(self) -> None:
        self._writer = Writer()

    def table(
        self, name: str, dim: int, num_ids: int, dtype: np.dtype[Any] | None, piece: Any, meta: Rows | None
    ) -> None:
        """Append one table's answer; ``piece`` stands for ``num_ids * dim`` numbers of ``dtype``."""
        writer, code = self._writer, dtype_code(dtype)
        mark = writer.begin(1)
        writer.text(1, name)
        writer.integer(2, dim)
        length = 0 if dtype is None else num_ids * dim * dtype.itemsize
        if not length:
            writer.integer(3, code)
        writer.array(4, piece, length, pad_field=3, pad_value=code)
        if meta is not None:
            for number, column, kind in (
                (5, meta.found, "u1"),
                (6, meta.updates, "<u4"),
                (7, meta.first_seen_s, "<i8"),
                (8, meta.last_seen_s, "<i8"),
            ):
                _column(writer, number, column, kind, pad=(3, code))
        writer.end(mark)

    def pieces(self) -> list[Any]:
        """Everything collected, in order; arrays as bytes."""
        pieces = _checked(self._writer, "PullResponse").pieces
        return [bytes(piece) if isinstance(piece, memoryview) else piece for piece in pieces]

    def join(self) -> bytes:
        """The message, when every piece is bytes-like."""
        return _checked(self._writer, "PullResponse").join()


def decode_pull_response(data: bytes) -> list[TableRows]:
    """Read a PullResponse."""
    tables: list[TableRows] = []
    for field in fields(data, 0, len(data), "PullResponse"):
        if field.number == 1:
            label = f"PullResponse.tables[{_room(tables, 'PullResponse.tables', TABLES_PER_CALL_MAX)}]"
            tables.append(_table_rows(data, field, label))
    return tables


_META_COLUMNS = {5: ("found", "u1"), 6: ("updates", "<u4"), 7: ("first_seen_s", "<i8"), 8: ("last_seen_s", "<i8")}


def _table_rows(data: bytes, message: Field, label: str) -> TableRows:
    table, dim, code = "", 0, 0
    rows_field: Field | None = None
    columns: dict[str, np.ndarray] = {}
    expect(message, BYTES, label)
    for field in fields(data, message.value, message.end, label):
        if field.number == 1:
            table = text_at(data, field, f"{label}.table")
        elif field.number == 2:
            dim = integer_at(field, f"{label}.dim") & _DIM_MAX
        elif field.number == 3:
            code = _enum(integer_at(field, f"{label}.dtype"))
        elif field.number == 4:
            rows_field = field
        elif field.number in _META_COLUMNS:
            name, kind = _META_COLUMNS[field.number]
            columns[name] = array_at(data, field, kind, f"{label}.{name}")
    dtype = _row_dtype(code, f"{label}.dtype", none=True)
    rows = None if dtype is None else _rows_at(data, rows_field, dim, dtype, f"{label}.rows")
    if not columns:
        return TableRows(table, dim, rows, None)
    num_ids = len(columns["found"]) if "found" in columns else 0
    for name, kind in _META_COLUMNS.values():
        _same_length(columns.setdefault(name, np.empty(0, kind)), num_ids, f"{label}.{name}")
    if rows is not None:
        _same_length(rows, num_ids, f"{label}.rows")
    embeddings = np.empty((num_ids, 0), np.float32) if rows is None else rows
    columns["found"] = columns["found"].astype(bool)
    return TableRows(table, dim, rows, Rows(embeddings, **columns))


def encode_push_request(
    epoch: int,
    tables: Iterable[TablePart],
    origins: Sequence[Origin] = (),
    generations: dict[str, int] | None = None,
    event_time_ms: int | None = None,
) -> bytes:
    """A PushRequest; grads are float32 or float16 [n, dim]."""
    writer = Writer()
    writer.integer(1, epoch)
    for part in tables:
        code = dtype_code(part.grads.dtype)
        mark = writer.begin(2)
        writer.text(1, part.table)
        writer.integer(3, part.grads.shape[1])
        if not len(part.ids):
            writer.integer(4, code)
        _column(writer, 2, part.ids, "<u8", pad=(4, code))
        _column(writer, 5, part.grads, _ROW_DTYPES[code], pad=(4, code))
        if part.counts is not None:
            _column(writer, 6, part.counts, "<u4", pad=(4, code))
        if part.event_times_ms is not None:
            _column(writer, 7, part.event_times_ms, "<i8", pad=(4, code))
        if part.lr is not None:
            writer.double(8, part.lr)
        writer.end(mark)
    for origin in origins:
        mark = writer.begin(3)
        writer.text(1, origin.stream)
        writer.integer(2, origin.begin)
        writer.integer(3, origin.end)
        writer.integer(4, (generations or {}).get(origin.stream, 0))
        writer.end(mark)
    if event_time_ms is not None:
        writer.present(4, event_time_ms)
    return _checked(writer, "PushRequest").join()


def decode_push_request(data: bytes) -> PushRequest:
    """Read a PushRequest. Columns have equal lengths; whether numbers are finite is the table's check."""
    epoch, event_time_ms = 0, None
    tables: list[TablePart] = []
    origins: list[Origin] = []
    generations: dict[str, int] = {}
    for field in fields(data, 0, len(data), "PushRequest"):
        if field.number == 1:
            epoch = integer_at(field, "PushRequest.epoch")
        elif field.number == 2:
            label = f"PushRequest.tables[{_room(tables, 'PushRequest.tables', TABLES_PER_CALL_MAX)}]"
            tables.append(_table_part(data, field, label))
        elif field.number == 3:
            label = f"PushRequest.origins[{_room(origins, 'PushRequest.origins', ORIGINS_PER_CALL_MAX)}]"
            origin, generation = _origin(data, field, label)
            if origin.stream in generations:
                raise InvalidArgumentError(label, f"names stream {origin.stream!r} twice")
            origins.append(origin)
            generations[origin.stream] = generation
        elif field.number == 4:
            event_time_ms = _signed(integer_at(field, "PushRequest.event_time_ms"))
    return PushRequest(epoch, tables, origins, generations, event_time_ms)


def _table_part(data: bytes, message: Field, label: str) -> TablePart:
    table, ids, dim, code, lr = "", _EMPTY_IDS, 0, 0, None
    grads_field: Field | None = None
    counts = times = None
    expect(message, BYTES, label)
    for field in fields(data, message.value, message.end, label):
        if field.number == 1:
            table = text_at(data, field, f"{label}.table")
        elif field.number == 2:
            ids = _ids_at(data, field, f"{label}.ids")
        elif field.number == 3:
            dim = integer_at(field, f"{label}.dim") & _DIM_MAX
        elif field.number == 4:
            code = _enum(integer_at(field, f"{label}.dtype"))
        elif field.number == 5:
            grads_field = field
        elif field.number == 6:
            counts = array_at(data, field, "<u4", f"{label}.counts")
        elif field.number == 7:
            times = array_at(data, field, "<i8", f"{label}.event_times_ms")
        elif field.number == 8:
            lr = double_at(data, field, f"{label}.lr")
    dtype = _row_dtype(code, f"{label}.dtype", none=False)
    grads = _rows_at(data, grads_field, dim, dtype, f"{label}.grads")
    _same_length(grads, len(ids), f"{label}.grads")
    counts, times = (None if column is None or not len(column) else column for column in (counts, times))
    for name, column in (("counts", counts), ("event_times_ms", times)):
        if column is not None:
            _same_length(column, len(ids), f"{label}.{name}")
    return TablePart(table, ids, grads, counts, times, lr)


def _origin(data: bytes, message: Field, label: str) -> tuple[Origin, int]:
    stream, begin, end, generation = "", 0, 0, 0
    expect(message, BYTES, label)
    for field in fields(data, message.value, message.end, label):
        if field.number == 1:
            stream = text_at(data, field, f"{label}.stream")
        elif field.number == 2:
            begin = integer_at(field, f"{label}.begin")
        elif field.number == 3:
            end = integer_at(field, f"{label}.end")
        elif field.number == 4:
            generation = integer_at(field, f"{label}.generation")
    if generation > POSITION_MAX:
        raise InvalidArgumentError(f"{label}.generation", f"must be below 2**63, not {generation}")
    try:
        return Origin(stream, begin, end), generation
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{label}.{error.field.removeprefix('Origin.')}", error.problem) from None


_EMPTY_IDS = np.empty(0, np.dtype("<u8"))


def _column(writer: Writer, number: int, column: np.ndarray, dtype: Any, *, pad: tuple[int, int]) -> None:
    data = np.ascontiguousarray(column, dtype=dtype)
    writer.array(number, data.reshape(-1).view(np.uint8).data, data.nbytes, pad_field=pad[0], pad_value=pad[1])


def _checked(writer: Writer, what: str) -> Writer:
    if writer.length > MESSAGE_BYTES_MAX:
        raise LimitError(f"{what} bytes", writer.length, MESSAGE_BYTES_MAX)
    return writer


def _room(items: list[Any], label: str, limit: int) -> int:
    if len(items) >= limit:
        raise LimitError(label, len(items) + 1, limit)
    return len(items)


def _ids_at(data: bytes, field: Field, label: str) -> np.ndarray:
    ids = array_at(data, field, "<u8", label)
    if len(ids) > IDS_PER_CALL_MAX:
        raise LimitError(label, len(ids), IDS_PER_CALL_MAX)
    return ids


def _rows_at(data: bytes, field: Field | None, dim: int, dtype: np.dtype[Any], label: str) -> np.ndarray:
    if field is None:
        return np.empty((0, dim), dtype)
    flat = array_at(data, field, dtype.str, label)
    if not len(flat):
        return flat.reshape(0, dim)
    if not dim or len(flat) % dim:
        raise InvalidArgumentError(label, f"{len(flat)} numbers are no whole rows of dim {dim}")
    return flat.reshape(-1, dim)


def _same_length(column: np.ndarray, num_ids: int, label: str) -> None:
    if len(column) != num_ids:
        raise InvalidArgumentError(label, f"must have {num_ids} entries, one an id, not {len(column)}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _enum(value: int) -> int:
    value &= (1 << 32) - 1
    return value - (1 << 32) if value >> 31 else value


def _row_dtype(code: int, label: str, *, none: bool) -> Any:
    if code == NONE and none:
        return None
    dtype = _ROW_DTYPES.get(code)
    if dtype is None:
        raise InvalidArgumentError(label, f"unknown value {code}" if code != NONE else "must be float32 or float16")
    return dtype
