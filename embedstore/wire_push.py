"""Push requests; see :mod:`embedstore.wire`. (The answer is small: the generated class reads and writes it.)"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

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
from embedstore.wire_columns import (
    DIM_MAX,
    EMPTY_IDS,
    ORIGINS_PER_CALL_MAX,
    ROW_DTYPES,
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
        put_column(writer, 2, part.ids, "<u8", pad=(4, code))
        put_column(writer, 5, part.grads, ROW_DTYPES[code], pad=(4, code))
        if part.counts is not None:
            put_column(writer, 6, part.counts, "<u4", pad=(4, code))
        if part.event_times_ms is not None:
            put_column(writer, 7, part.event_times_ms, "<i8", pad=(4, code))
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
    return checked(writer, "PushRequest").join()


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
