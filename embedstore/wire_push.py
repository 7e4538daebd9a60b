"""Push requests; see :mod:`embedstore.wire`. (The answer is small: the generated class reads and writes it.)

What follows the tables in a request, its *tail*, is small as well, and a message by itself: the generated class reads
and writes that, too. Most requests are gradients for ids of one table and a tail; all else in them is the same from one
request to the next, and is not made or read anew each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from embedstore.errors import InvalidArgumentError
from embedstore.interface import POSITION_MAX, Origin
from embedstore.protowire import (
    BYTES,
    NESTED_FIELDS_MAX,
    Field,
    Writer,
    array_at,
    double_at,
    expect,
    fields,
    integer_at,
    text_at,
)
from embedstore.v1 import store_pb2
from embedstore.wire_columns import (
    DIM_MAX,
    EMPTY_IDS,
    HEADS_MAX,
    ORIGINS_PER_CALL_MAX,
    ROW_DTYPES,
    TABLES_PER_CALL_MAX,
    check_message,
    checked,
    dtype_code,
    enum,
    ids_at,
    put_column,
    room,
    row_dtype,
    rows_at,
    same_length,
    signed,
)


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


def _tail(origins: Sequence[Origin], generations: dict[str, int] | None, event_time_ms: int | None) -> bytes:
    known = generations or {}
    sources = [
        store_pb2.Origin(stream=o.stream, begin=o.begin, end=o.end, generation=known.get(o.stream, 0)) for o in origins
    ]
    return store_pb2.PushRequest(origins=sources, event_time_ms=event_time_ms).SerializeToString()


@lru_cache(maxsize=HEADS_MAX)
def _around_columns(epoch: int, table: str, code: int, dim: int, num_ids: int) -> tuple[bytes, bytes]:
    """Of a request with nothing but gradients of one table: all before the ids, and all between them and those."""
    writer = Writer()
    writer.integer(1, epoch)
    mark = writer.begin(2)
    writer.text(1, table)
    writer.integer(3, dim)
    writer.array(2, b"", 8 * num_ids, pad_field=4, pad_value=code)
    ids_at = len(writer.pieces)
    writer.array(5, b"", ROW_DTYPES[code].itemsize * dim * num_ids, pad_field=4, pad_value=code)
    writer.end(mark)
    return b"".join(writer.pieces[:ids_at]), b"".join(writer.pieces[ids_at:])


def _is_plain(part: TablePart) -> bool:
    return len(part.ids) > 0 and part.counts is None and part.event_times_ms is None and part.lr is None


def encode_push_request(
    epoch: int,
    tables: Sequence[TablePart],
    origins: Sequence[Origin] = (),
    generations: dict[str, int] | None = None,
    event_time_ms: int | None = None,
) -> bytes:
    """A PushRequest; grads are float32 or float16 [n, dim]."""
    tail = _tail(origins, generations, event_time_ms)
    if len(tables) == 1 and _is_plain(tables[0]):
        table, ids, grads = tables[0][:3]
        code = dtype_code(grads.dtype)
        head, middle = _around_columns(epoch, table, code, grads.shape[1], len(ids))
        ids, grads = np.ascontiguousarray(ids, "<u8"), np.ascontiguousarray(grads, ROW_DTYPES[code])
        check_message("PushRequest", len(head) + ids.nbytes + len(middle) + grads.nbytes + len(tail))
        return b"".join((head, ids.data, middle, grads.data, tail))
    writer = Writer()
    writer.integer(1, epoch)
    for part in tables:
        code = dtype_code(part.grads.dtype)
        mark = writer.begin(2)
        writer.text(1, part.table)
        writer.integer(3, part.grads.shape[1])
        if not len(part.ids):
            writer.integer(4, code)
        put_column(writer, 2, part.ids, "<u8", pad=(4, code))
        put_column(writer, 5, part.grads, ROW_DTYPES[code], pad=(4, code))
        if part.counts is not None:
            put_column(writer, 6, part.counts, "<u4", pad=(4, code))
        if part.event_times_ms is not None:
            put_column(writer, 7, part.event_times_ms, "<i8", pad=(4, code))
        if part.lr is not None:
            writer.double(8, part.lr)
        writer.end(mark)
    writer.raw(tail, len(tail))
    return checked(writer, "PushRequest").join()


class _Shape(NamedTuple):
    """All of a request for gradients of one table but its columns and its tail, and where these are."""

    epoch: int
    table: str
    num_ids: int
    dim: int
    dtype: np.dtype[Any]
    head: bytes
    middle: bytes
    middle_at: int
    grads_at: int
    tail_at: int

    @classmethod
    def of(cls, epoch: int, part: TablePart) -> _Shape:
        """That of a request with this part."""
        num_ids, dim = part.grads.shape
        head, middle = _around_columns(epoch, part.table, dtype_code(part.grads.dtype), dim, num_ids)
        middle_at = len(head) + part.ids.nbytes
        grads_at = middle_at + len(middle)
        sizes = (middle_at, grads_at, grads_at + part.grads.nbytes)
        return cls(epoch, part.table, num_ids, dim, part.grads.dtype, head, middle, *sizes)

    def begins(self, data: bytes) -> bool:
        """Whether the message is of this shape up to its tail."""
        return data.startswith(self.head) and data.startswith(self.middle, self.middle_at)

    def part(self, data: bytes) -> TablePart:
        """The columns of such a request."""
        ids = np.frombuffer(data, "<u8", self.num_ids, len(self.head))
        grads = np.frombuffer(data, self.dtype, self.num_ids * self.dim, self.grads_at)
        return TablePart(self.table, ids, grads.reshape(self.num_ids, self.dim), None, None, None)


_recent_shapes: dict[int, _Shape] = {}
"""By length of the message, as those of pulls."""


def _decode_known(data: bytes) -> PushRequest | None:
    """What :func:`decode_push_request` would return, if it has read one like it and the tail is as ours are."""
    shape = _recent_shapes.get(len(data))
    if shape is None or not shape.begins(data):
        return None
    encoded = data[shape.tail_at :]
    try:
        tail = store_pb2.PushRequest.FromString(encoded)
        origins = [Origin(each.stream, each.begin, each.end) for each in tail.origins]
    except (DecodeError, InvalidArgumentError):  # reading it field by field says what is wrong
        return None
    generations = {each.stream: each.generation for each in tail.origins}
    event_time_ms = tail.event_time_ms if tail.HasField("event_time_ms") else None
    if len(generations) != len(origins) or len(origins) > ORIGINS_PER_CALL_MAX:
        return None
    if max(generations.values(), default=0) > POSITION_MAX or _tail(origins, generations, event_time_ms) != encoded:
        return None
    return PushRequest(shape.epoch, [shape.part(data)], origins, generations, event_time_ms)


def _remember_shape(data: bytes, request: PushRequest) -> None:
    [part] = request.tables
    if not _is_plain(part):
        return
    shape = _Shape.of(request.epoch, part)
    if shape.begins(data) and shape.tail_at <= len(data):
        if len(_recent_shapes) >= HEADS_MAX:
            _recent_shapes.clear()
        _recent_shapes[len(data)] = shape


def decode_push_request(data: bytes) -> PushRequest:
    """Read a PushRequest. Columns have equal lengths; whether numbers are finite is the table's check."""
    request = _decode_known(data)
    if request is None:
        request = _decode(data)
        if len(request.tables) == 1:
            _remember_shape(data, request)
    return request


def _decode(data: bytes) -> PushRequest:
    epoch, event_time_ms = 0, None
    tables: list[TablePart] = []
    origins: list[Origin] = []
    generations: dict[str, int] = {}
    for field in fields(data, 0, len(data), "PushRequest"):
        if field.number == 1:
            epoch = integer_at(field, "PushRequest.epoch")
        elif field.number == 2:
            label = f"PushRequest.tables[{room(tables, 'PushRequest.tables', TABLES_PER_CALL_MAX)}]"
            tables.append(_table_part(data, field, label))
        elif field.number == 3:
            label = f"PushRequest.origins[{room(origins, 'PushRequest.origins', ORIGINS_PER_CALL_MAX)}]"
            origin, generation = _origin(data, field, label)
            if origin.stream in generations:
                raise InvalidArgumentError(label, f"names stream {origin.stream!r} twice")
            origins.append(origin)
            generations[origin.stream] = generation
        elif field.number == 4:
            event_time_ms = signed(integer_at(field, "PushRequest.event_time_ms"))
    return PushRequest(epoch, tables, origins, generations, event_time_ms)


def _table_part(data: bytes, message: Field, label: str) -> TablePart:
    table, ids, dim, code, lr = "", EMPTY_IDS, 0, 0, None
    grads_field: Field | None = None
    counts = times = None
    expect(message, BYTES, label)
    for field in fields(data, message.value, message.end, label, NESTED_FIELDS_MAX):
        if field.number == 1:
            table = text_at(data, field, f"{label}.table")
        elif field.number == 2:
            ids = ids_at(data, field, f"{label}.ids")
        elif field.number == 3:
            dim = integer_at(field, f"{label}.dim") & DIM_MAX
        elif field.number == 4:
            code = enum(integer_at(field, f"{label}.dtype"))
        elif field.number == 5:
            grads_field = field
        elif field.number == 6:
            counts = array_at(data, field, "<u4", f"{label}.counts")
        elif field.number == 7:
            times = array_at(data, field, "<i8", f"{label}.event_times_ms")
        elif field.number == 8:
            lr = double_at(data, field, f"{label}.lr")
    dtype = row_dtype(code, f"{label}.dtype", none=False)
    grads = rows_at(data, grads_field, dim, dtype, f"{label}.grads")
    same_length(grads, len(ids), f"{label}.grads")
    counts, times = (None if column is None or not len(column) else column for column in (counts, times))
    for name, column in (("counts", counts), ("event_times_ms", times)):
        if column is not None:
            same_length(column, len(ids), f"{label}.{name}")
    return TablePart(table, ids, grads, counts, times, lr)


def _origin(data: bytes, message: Field, label: str) -> tuple[Origin, int]:
    stream, begin, end, generation = "", 0, 0, 0
    expect(message, BYTES, label)
    for field in fields(data, message.value, message.end, label, NESTED_FIELDS_MAX):
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
