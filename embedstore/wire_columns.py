"""What Pull and Push messages have in common: bounds, number formats, and columns where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedstore.errors import InvalidArgumentError, LimitError
from embedstore.interface import IDS_PER_CALL_MAX, as_row_dtype
from embedstore.protowire import Field, Writer, array_at

MESSAGE_BYTES_MAX = 64 << 20
TABLES_PER_CALL_MAX = 4096
ORIGINS_PER_CALL_MAX = 4096
DIM_MAX = (1 << 32) - 1
HEADS_MAX = 4096
"""Beginnings of messages that are kept, of each kind."""

FLOAT32, FLOAT16, NONE = 1, 2, 3
ROW_DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), FLOAT32: np.dtype("<f4"), FLOAT16: np.dtype("<f2")}
_CODES = {np.dtype(np.float32): FLOAT32, np.dtype(np.float16): FLOAT16}


def dtype_code(dtype: Any) -> int:
    """The wire's number for a dtype of rows; None: no rows."""
    if dtype is None:
        return NONE
    return _CODES[as_row_dtype(dtype)]


EMPTY_IDS = np.empty(0, np.dtype("<u8"))


def put_column(writer: Writer, number: int, column: np.ndarray, dtype: Any, *, pad: tuple[int, int]) -> None:
    """A column of a message, aligned; ``pad`` is the field written before it, and its value."""
    data = np.ascontiguousarray(column, dtype=dtype)
    writer.array(number, data.reshape(-1).view(np.uint8).data, data.nbytes, pad_field=pad[0], pad_value=pad[1])


def check_message(what: str, num_bytes: int) -> None:
    """:class:`LimitError` when a message of so many bytes is larger than they may be."""
    if num_bytes > MESSAGE_BYTES_MAX:
        raise LimitError(f"{what} bytes", num_bytes, MESSAGE_BYTES_MAX)


def checked(writer: Writer, what: str) -> Writer:
    """The writer, if its message is within bounds."""
    check_message(what, writer.length)
    return writer


def room(items: list[Any], label: str, limit: int) -> int:
    """How many there are, if one more is within ``limit``."""
    if len(items) >= limit:
        raise LimitError(label, len(items) + 1, limit)
    return len(items)


def ids_at(data: bytes, field: Field, label: str) -> np.ndarray:
    """The ids that a field holds."""
    ids = array_at(data, field, "<u8", label)
    if len(ids) > IDS_PER_CALL_MAX:
        raise LimitError(label, len(ids), IDS_PER_CALL_MAX)
    return ids


def rows_at(data: bytes, field: Field | None, dim: int, dtype: np.dtype[Any], label: str) -> np.ndarray:
    """The rows [n, dim] that a field holds; none without a field."""
    if field is None:
        return np.empty((0, dim), dtype)
    flat = array_at(data, field, dtype.str, label)
    if not len(flat):
        return flat.reshape(0, dim)
    if not dim or len(flat) % dim:
        raise InvalidArgumentError(label, f"{len(flat)} numbers are no whole rows of dim {dim}")
    return flat.reshape(-1, dim)


def same_length(column: np.ndarray, num_ids: int, label: str) -> None:
    """Refuse a column that has not one entry an id."""
    if len(column) != num_ids:
        raise InvalidArgumentError(label, f"must have {num_ids} entries, one an id, not {len(column)}")


def signed(value: int) -> int:
    """The int64 of a varint's 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def enum(value: int) -> int:
    """The number of an enum, of a varint's 64 bits."""
    value &= (1 << 32) - 1
    return value - (1 << 32) if value >> 31 else value


def row_dtype(code: int, label: str, *, none: bool) -> Any:
    """The dtype that a message's number stands for; None: no rows."""
    if code == NONE and none:
        return None
    dtype = ROW_DTYPES.get(code)
    if dtype is None:
        raise InvalidArgumentError(label, f"unknown value {code}" if code != NONE else "must be float32 or float16")
    return dtype
