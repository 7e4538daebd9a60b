"""Pull messages; see :mod:`embedstore.wire`.

Most messages differ from an earlier one in their arrays only. So what stands before the arrays is kept (in bounded
caches): writing looks it up, and reading compares it instead of parsing it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from embedstore import _native
from embedstore.interface import IDS_PER_CALL_MAX, Rows
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
    HEADS_MAX,
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


@lru_cache(maxsize=HEADS_MAX)
def request_head(epoch: int, table: str, code: int, meta: bool, num_ids: int) -> bytes:
    """A PullRequest for one table up to its ids."""
    start = _epoch_field(epoch)
    return start + _pull_head(table, code, meta, num_ids, len(start) % ALIGNMENT_BYTES)


def encode_pull_request(epoch: int, tables: Sequence[TablePull]) -> bytes:
    """A PullRequest."""
    if len(tables) == 1:
        table, ids, dtype, meta = tables[0]
        if len(ids) <= IDS_PER_CALL_MAX:
            ids = np.ascontiguousarray(ids, "<u8")
            return b"".join((request_head(epoch, table, dtype_code(dtype), bool(meta), len(ids)), ids.data))
    writer = Writer()
    head = _epoch_field(epoch)
    writer.raw(head, len(head))
    for pull in tables:
        num_ids = len(pull.ids)
        head = _pull_head(pull.table, dtype_code(pull.dtype), bool(pull.meta), num_ids, writer.length % ALIGNMENT_BYTES)
        writer.raw(head, len(head))
        writer.raw(np.ascontiguousarray(pull.ids, "<u8").data, 8 * num_ids)
    return checked(writer, "PullRequest").join()


class PullShape(NamedTuple):
    """All of a request for one table but its ids, which are the rest of the message. ``width``: bytes of one number of
    the rows, 0 when it does not ask for rows alone; ``code``: the wire's number for their dtype."""

    head: bytes
    epoch: int
    table: str
    dtype: np.dtype[Any] | None
    meta: bool
    num_ids: int
    code: int
    width: int

    def ids(self, data: bytes) -> np.ndarray:
        """The ids of such a request."""
        return np.frombuffer(data, "<u8", self.num_ids, len(self.head))


_recent_shapes: dict[int, PullShape] = {}
"""By length of the message: a message of the same length with the same head says the same of other ids."""


def known_pull_request(data: bytes) -> PullShape | None:
    """What :func:`decode_pull_request` would find, if it has read one like it."""
    shape = _recent_shapes.get(len(data))
    return shape if shape is not None and data.startswith(shape.head) else None


def decode_pull_request(data: bytes) -> PullRequest:
    """Read a PullRequest."""
    known = known_pull_request(data)
    if known is not None:
        return PullRequest(known.epoch, [TablePull(known.table, known.ids(data), known.dtype, known.meta)])
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
    num_ids, code = len(pull.ids), dtype_code(pull.dtype)
    head = request_head(epoch, pull.table, code, pull.meta, num_ids)
    if len(head) + 8 * num_ids == len(data) and data.startswith(head):
        width = 0 if pull.meta or pull.dtype is None or not num_ids else pull.dtype.itemsize
        if len(_recent_shapes) >= HEADS_MAX:
            _recent_shapes.clear()
        _recent_shapes[len(data)] = PullShape(head, epoch, pull.table, pull.dtype, pull.meta, num_ids, code, width)


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
            head = rows_head(name, dim, code, length, writer.length % ALIGNMENT_BYTES)
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
def rows_head(table: str, dim: int, code: int, length: int, phase: int) -> bytes:
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


def own_rows(data: bytes, table: str, num_ids: int, dim: int, code: int, width: int) -> np.ndarray | None:
    """As :func:`match_rows` of one table: its rows as an array that may be written to, and has the message's memory.

    Only for a message that nobody else looks at any more. One copy less is a tenth of a large pull.
    """
    length = num_ids * dim * width
    head = rows_head(table, dim, code, length, 0)
    if not length or len(head) + length != len(data) or not data.startswith(head):
        return None
    return _native.rows_of(data, len(head), num_ids, dim, width)


def match_rows(data: bytes, expected: Iterable[tuple[str, int, int]], dtype: np.dtype[Any]) -> list[TableRows] | None:
    """A PullResponse written by :class:`PullResponseWriter` that answers (table, num_ids, dim) each, without metadata.

    None for any other message, which :func:`decode_pull_response` may still be able to read.
    """
    at, code, width = 0, dtype_code(dtype), dtype.itemsize
    tables: list[TableRows] = []
    for table, num_ids, dim in expected:
        length = num_ids * dim * width
        head = rows_head(table, dim, code, length, at % ALIGNMENT_BYTES)
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
