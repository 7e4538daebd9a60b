"""Pull messages; see :mod:`embedstore.wire`.

Most messages differ from an earlier one in their arrays only. So what stands before the arrays is kept (in bounded
caches): writing looks it up, and reading compares it instead of parsing it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from embedstore.interface import Rows
from embedstore.protowire import (
    ALIGNMENT_BYTES,
    BYTES,
    NESTED_FIELDS_MAX,
    Field,
    Writer,
    array_at,
    expect,
    fields,
    integer_at,
    text_at,
)
from embedstore.wire_columns import (
    DIM_MAX,
    EMPTY_IDS,
    TABLES_PER_CALL_MAX,
    checked,
    dtype_code,
    enum,
    ids_at,
    put_column,
    room,
    row_dtype,
    rows_at,
    same_length,
)

HEADS_MAX = 4096


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


@lru_cache(maxsize=HEADS_MAX)
def _epoch_field(epoch: int) -> bytes:
    writer = Writer()
    writer.integer(1, epoch)
    return writer.join()


@lru_cache(maxsize=HEADS_MAX)
def _pull_head(table: str, code: int, meta: bool, num_ids: int, phase: int) -> bytes:
    """A TablePull up to its ids, which come last; ``phase``: where it begins in its message, modulo 8."""
    writer = Writer()
    writer.length = phase
    mark = writer.begin(2)
    writer.text(1, table)
    writer.integer(4, meta)
    if not num_ids:
        writer.integer(3, code)
    writer.array(2, b"", 8 * num_ids, pad_field=3, pad_value=code)
    writer.end(mark)
    return writer.join()


def encode_pull_request(epoch: int, tables: Iterable[TablePull]) -> bytes:
    """A PullRequest."""
    writer = Writer()
    head = _epoch_field(epoch)
    writer.raw(head, len(head))
    for pull in tables:
        num_ids = len(pull.ids)
        head = _pull_head(pull.table, dtype_code(pull.dtype), bool(pull.meta), num_ids, writer.length % ALIGNMENT_BYTES)
        writer.raw(head, len(head))
        writer.raw(np.ascontiguousarray(pull.ids, "<u8").data, 8 * num_ids)
    return checked(writer, "PullRequest").join()


class _Shape(NamedTuple):
    """All of a request for one table but its ids, which are the rest of the message."""

    head: bytes
    epoch: int
    table: str
    dtype: np.dtype[Any] | None
    meta: bool
    num_ids: int


_recent_shapes: dict[int, _Shape] = {}
"""By length of the message: a message of the same length with the same head says the same of other ids."""


def decode_pull_request(data: bytes) -> PullRequest:
    """Read a PullRequest."""
    shape = _recent_shapes.get(len(data))
    if shape is not None and data.startswith(shape.head):
        ids = np.frombuffer(data, "<u8", shape.num_ids, len(shape.head))
        return PullRequest(shape.epoch, [TablePull(shape.table, ids, shape.dtype, shape.meta)])
    epoch = 0
    tables: list[TablePull] = []
    for field in fields(data, 0, len(data), "PullRequest"):
        if field.number == 1:
            epoch = integer_at(field, "PullRequest.epoch")
        elif field.number == 2:
            label = f"PullRequest.tables[{room(tables, 'PullRequest.tables', TABLES_PER_CALL_MAX)}]"
            tables.append(_table_pull(data, field, label))
    if len(tables) == 1:
        _remember_shape(data, epoch, tables[0])
    return PullRequest(epoch, tables)


def _remember_shape(data: bytes, epoch: int, pull: TablePull) -> None:
    start, num_ids = _epoch_field(epoch), len(pull.ids)
    head = start + _pull_head(pull.table, dtype_code(pull.dtype), pull.meta, num_ids, len(start) % ALIGNMENT_BYTES)
    if len(head) + 8 * num_ids == len(data) and data.startswith(head):
        if len(_recent_shapes) >= HEADS_MAX:
            _recent_shapes.clear()
        _recent_shapes[len(data)] = _Shape(head, epoch, pull.table, pull.dtype, pull.meta, num_ids)


def _table_pull(data: bytes, message: Field, label: str) -> TablePull:
    table, ids, code, meta = "", EMPTY_IDS, 0, False
    expect(message, BYTES, label)
    for field in fields(data, message.value, message.end, label, NESTED_FIELDS_MAX):
        if field.number == 1:
            table = text_at(data, field, f"{label}.table")
        elif field.number == 2:
            ids = ids_at(data, field, f"{label}.ids")
        elif field.number == 3:
            code = enum(integer_at(field, f"{label}.dtype"))
        elif field.number == 4:
            meta = integer_at(field, f"{label}.meta") != 0
    return TablePull(table, ids, row_dtype(code, f"{label}.dtype", none=True), meta)


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
        length = 0 if dtype is None else num_ids * dim * dtype.itemsize
        if meta is None:
            head = _rows_head(name, dim, code, length, writer.length % ALIGNMENT_BYTES)
            writer.raw(head, len(head))
            if length:
                writer.raw(piece, length)
            return
        mark = writer.begin(1)
        writer.text(1, name)
        writer.integer(2, dim)
        if not length:
            writer.integer(3, code)
        writer.array(4, piece, length, pad_field=3, pad_value=code)
        for number, column, kind in (
            (5, meta.found, "u1"),
            (6, meta.updates, "<u4"),
            (7, meta.first_seen_s, "<i8"),
            (8, meta.last_seen_s, "<i8"),
        ):
            put_column(writer, number, column, kind, pad=(3, code))
        writer.end(mark)

    def pieces(self) -> list[Any]:
        """Everything collected, in order; arrays as bytes."""
        pieces = checked(self._writer, "PullResponse").pieces
        return [bytes(piece) if isinstance(piece, memoryview) else piece for piece in pieces]

    def join(self) -> bytes:
        """The message, when every piece is bytes-like."""
        return checked(self._writer, "PullResponse").join()


@lru_cache(maxsize=HEADS_MAX)
def _rows_head(table: str, dim: int, code: int, length: int, phase: int) -> bytes:
    """A TableRows without metadata up to its rows, which come last; ``phase`` as in a TablePull's head."""
    writer = Writer()
    writer.length = phase
    mark = writer.begin(1)
    writer.text(1, table)
    writer.integer(2, dim)
    if not length:
        writer.integer(3, code)
    writer.array(4, b"", length, pad_field=3, pad_value=code)
    writer.end(mark)
    return writer.join()


def match_rows(data: bytes, expected: Iterable[tuple[str, int, int]], dtype: np.dtype[Any]) -> list[TableRows] | None:
    """A PullResponse written by :class:`PullResponseWriter` that answers (table, num_ids, dim) each, without metadata.

    None for any other message, which :func:`decode_pull_response` may still be able to read.
    """
    at, code = 0, dtype_code(dtype)
    tables: list[TableRows] = []
    for table, num_ids, dim in expected:
        length = num_ids * dim * dtype.itemsize
        head = _rows_head(table, dim, code, length, at % ALIGNMENT_BYTES)
        begin = at + len(head)
        if not data.startswith(head, at) or begin + length > len(data):
            return None
        rows = np.frombuffer(data, dtype, num_ids * dim, begin) if length else np.empty(0, dtype)
        tables.append(TableRows(table, dim, rows.reshape(num_ids, dim), None))
        at = begin + length
    return tables if at == len(data) else None


def decode_pull_response(data: bytes) -> list[TableRows]:
    """Read a PullResponse."""
    tables: list[TableRows] = []
    for field in fields(data, 0, len(data), "PullResponse"):
        if field.number == 1:
            label = f"PullResponse.tables[{room(tables, 'PullResponse.tables', TABLES_PER_CALL_MAX)}]"
            tables.append(_table_rows(data, field, label))
    return tables


_META_COLUMNS = {5: ("found", "u1"), 6: ("updates", "<u4"), 7: ("first_seen_s", "<i8"), 8: ("last_seen_s", "<i8")}


def _table_rows(data: bytes, message: Field, label: str) -> TableRows:
    table, dim, code = "", 0, 0
    rows_field: Field | None = None
    columns: dict[str, np.ndarray] = {}
    expect(message, BYTES, label)
    for field in fields(data, message.value, message.end, label, NESTED_FIELDS_MAX):
        if field.number == 1:
            table = text_at(data, field, f"{label}.table")
        elif field.number == 2:
            dim = integer_at(field, f"{label}.dim") & DIM_MAX
        elif field.number == 3:
            code = enum(integer_at(field, f"{label}.dtype"))
        elif field.number == 4:
            rows_field = field
        elif field.number in _META_COLUMNS:
            name, kind = _META_COLUMNS[field.number]
            columns[name] = array_at(data, field, kind, f"{label}.{name}")
    dtype = row_dtype(code, f"{label}.dtype", none=True)
    rows = None if dtype is None else rows_at(data, rows_field, dim, dtype, f"{label}.rows")
    if not columns:
        return TableRows(table, dim, rows, None)
    num_ids = len(columns["found"]) if "found" in columns else 0
    for name, kind in _META_COLUMNS.values():
        same_length(columns.setdefault(name, np.empty(0, kind)), num_ids, f"{label}.{name}")
    if rows is not None:
        same_length(rows, num_ids, f"{label}.rows")
    embeddings = np.empty((num_ids, 0), np.float32) if rows is None else rows
    columns["found"] = columns["found"].astype(bool)
    return TableRows(table, dim, rows, Rows(embeddings, **columns))
