"""The few pieces of the protobuf wire format that Pull and Push need, without a copy of their arrays.

Writing: a :class:`Writer` collects pieces and remembers how long they are together. It uses two freedoms of the format.
A nested message's length is written as a varint of fixed width, so that the length may be filled in afterwards; and
the array of a bytes field is brought to a multiple of 8 bytes from the message's beginning by writing a small varint
field before it with leading zero groups. Every protobuf parser reads both. A reader on the other side then uses the
array where it lies.

Reading: :func:`fields` walks one message. It is as strict as the ordinary parsers, and stricter where they would skip:
a known field of the wrong wire type, groups and more than ``FIELDS_MAX`` fields (``NESTED_FIELDS_MAX`` in a message
within) are refused: a field of two bytes takes as long to read as one of a megabyte. Nothing here keeps state;
a Writer belongs to one thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from embedstore.errors import InvalidArgumentError, LimitError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIELDS_MAX = 1 << 16
NESTED_FIELDS_MAX = 64
ALIGNMENT_BYTES = 8
_LENGTH_WIDTH = 4
_LENGTH_MAX = (1 << 7 * _LENGTH_WIDTH) - 1
_KINDS = {VARINT: "a varint", FIXED64: "8 bytes", BYTES: "bytes", FIXED32: "4 bytes"}


class Field(NamedTuple):
    """One field: its number, its wire type, and its value (an integer, or the bounds of its bytes in the message)."""

    number: int
    kind: int
    value: int
    end: int


def varint(value: int) -> bytes:
    """``value`` (64 bits; negative as two's complement) in its shortest form."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _wide_varint(value: int, width: int) -> bytes:
    return bytes([value >> 7 * i & 0x7F | 0x80 for i in range(width - 1)] + [value >> 7 * (width - 1)])


class Writer:
    """Collects the pieces of one message; see the module's text."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.length = 0

    def raw(self, piece: Any, length: int) -> None:
        """Append a piece that will be ``length`` bytes long."""
        self.pieces.append(piece)
        self.length += length

    def _bytes(self, data: bytes) -> None:
        self.pieces.append(data)
        self.length += len(data)

    def integer(self, number: int, value: int) -> None:
        """A varint field; zero is left out, as proto3 does."""
        if value:
            self._bytes(varint(number << 3) + varint(value))

    def present(self, number: int, value: int) -> None:
        """A varint field with presence: zero is written too."""
        self._bytes(varint(number << 3) + varint(value))

    def double(self, number: int, value: float) -> None:
        """A double field with presence."""
        self._bytes(varint(number << 3 | FIXED64) + struct.pack("<d", value))

    def text(self, number: int, value: str) -> None:
        """A string field; empty is left out."""
        if value:
            data = value.encode()
            self._bytes(varint(number << 3 | BYTES) + varint(len(data)) + data)

    def array(self, number: int, piece: Any, length: int, *, pad_field: int, pad_value: int) -> None:
        """A bytes field whose data begins at a multiple of 8; ``pad_field`` is written before it to get there."""
        if not length:
            return
        head = varint(number << 3 | BYTES) + varint(length)
        behind = self.length + 1 + len(head)
        width = 1 + (-(behind + 1)) % ALIGNMENT_BYTES
        self._bytes(bytes((pad_field << 3,)) + _wide_varint(pad_value, width) + head)
        self.raw(piece, length)

    def begin(self, number: int) -> tuple[int, int, int]:
        """Open a nested message; give the result to :meth:`end`."""
        self.pieces.append(b"")
        self.length += 1 + _LENGTH_WIDTH
        return number, len(self.pieces) - 1, self.length

    def end(self, mark: tuple[int, int, int]) -> None:
        """Close the nested message that :meth:`begin` opened."""
        number, index, start = mark
        length = self.length - start
        if length > _LENGTH_MAX:
            raise LimitError("message bytes", length, _LENGTH_MAX)
        self.pieces[index] = bytes((number << 3 | BYTES,)) + _wide_varint(length, _LENGTH_WIDTH)

    def join(self) -> bytes:
        """The message; every piece must be bytes-like."""
        return b"".join(self.pieces)


def _varint_at(data: bytes, at: int, end: int, width_max: int, where: str) -> tuple[int, int]:
    value = shift = 0
    stop = min(end, at + width_max)
    while at < stop:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    problem = "ends inside a number" if stop == end else "has a number that is too long"
    raise InvalidArgumentError(where, f"malformed message: it {problem}")


def fields(data: bytes, start: int, end: int, where: str, limit: int = FIELDS_MAX) -> Iterator[Field]:
    """The fields of the message in ``data[start:end]``, at most ``limit``; ``where`` names it in errors."""
    at = start
    for _ in range(limit):
        if at >= end:
            return
        tag, at = _varint_at(data, at, end, 5, where)
        number, kind = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise InvalidArgumentError(where, f"malformed message: field number {number}")
        if kind == VARINT:
            value, at = _varint_at(data, at, end, 10, where)
            if value >> 64:
                raise InvalidArgumentError(where, "malformed message: it has a number over 64 bits")
            yield Field(number, kind, value, at)
            continue
        if kind == BYTES:
            length, at = _varint_at(data, at, end, 5, where)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise InvalidArgumentError(where, f"malformed message: field {number} has wire type {kind}")
        if length > end - at:
            raise InvalidArgumentError(where, f"malformed message: field {number} is longer than the message")
        yield Field(number, kind, at, at + length)
        at += length
    if at < end:
        raise LimitError(f"{where} fields", limit + 1, limit)


def expect(field: Field, kind: int, label: str) -> None:
    """Refuse a field of another wire type than ``kind``."""
    if field.kind != kind:
        raise InvalidArgumentError(label, f"must be {_KINDS[kind]} on the wire, not {_KINDS[field.kind]}")


def text_at(data: bytes, field: Field, label: str) -> str:
    """The string that a field holds."""
    expect(field, BYTES, label)
    try:
        return data[field.value : field.end].decode()
    except UnicodeDecodeError:
        raise InvalidArgumentError(label, "is not UTF-8") from None


def integer_at(field: Field, label: str) -> int:
    """The unsigned 64-bit integer that a field holds."""
    expect(field, VARINT, label)
    return field.value


def double_at(data: bytes, field: Field, label: str) -> float:
    """The double that a field holds."""
    expect(field, FIXED64, label)
    return float(struct.unpack_from("<d", data, field.value)[0])


def array_at(data: bytes, field: Field, dtype: str, label: str) -> np.ndarray:
    """A read-only one-dimensional view of a bytes field; a copy only where the sender did not align it."""
    expect(field, BYTES, label)
    kind = np.dtype(dtype)
    length = field.end - field.value
    if length % kind.itemsize:
        raise InvalidArgumentError(label, f"must be a multiple of {kind.itemsize} bytes, not {length}")
    array = np.frombuffer(data, kind, length // kind.itemsize, field.value)
    return array if array.flags.aligned else array.copy()
