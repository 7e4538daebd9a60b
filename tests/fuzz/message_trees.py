"""Encoded messages as trees of their fields, so that one field can be changed and all the lengths around it still fit.

Nothing here knows what a message means; :mod:`random_messages` draws the changes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_KINDS = {
    FieldDescriptor.TYPE_DOUBLE: FIXED64,
    FieldDescriptor.TYPE_FIXED64: FIXED64,
    FieldDescriptor.TYPE_FIXED32: FIXED32,
    FieldDescriptor.TYPE_STRING: BYTES,
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_MESSAGE: BYTES,
}


@dataclass(frozen=True)
class Field:
    """What a message type says of one field; ``shape`` of a nested message."""

    name: str
    number: int
    kind: int
    repeated: bool
    double: bool
    shape: Shape | None


@dataclass(frozen=True)
class Shape:
    """A message type."""

    name: str
    fields: tuple[Field, ...]

    def find(self, number: int) -> Field | None:
        """The field of this number, if there is one."""
        return next((field for field in self.fields if field.number == number), None)


@cache
def shape_of(descriptor: Descriptor) -> Shape:
    """The shape that a descriptor gives."""
    return Shape(
        descriptor.name,
        tuple(
            Field(
                each.name,
                each.number,
                _KINDS.get(each.type, VARINT),
                each.is_repeated,
                each.type == FieldDescriptor.TYPE_DOUBLE,
                shape_of(each.message_type) if each.message_type is not None else None,
            )
            for each in descriptor.fields
        ),
    )


def varint(value: int) -> bytes:
    """``value`` (64 bits) in its shortest form."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(number: int, kind: int, value: Any) -> bytes:
    """One field: an integer for a varint, its bytes for anything else."""
    tag = varint(number << 3 | kind)
    if kind == VARINT:
        return tag + varint(value)
    return tag + varint(len(value)) + value if kind == BYTES else tag + bytes(value)


class Node:
    """One field of an encoded message; ``size``: it and everything below it."""

    def __init__(self, number: int, kind: int, value: Any, field: Field | None) -> None:
        self.number, self.kind, self.value, self.field = number, kind, value, field
        self.encoded = encode(number, kind, value)
        nested = field is not None and field.shape is not None and kind == BYTES
        children = parse(value, field.shape) if nested and field is not None and field.shape else ()
        self.children: tuple[Node, ...] = children
        self.size: int = 1 + sum(child.size for child in children)


def parse(data: bytes, shape: Shape) -> tuple[Node, ...]:
    """The fields of a sound message."""
    nodes, at = [], 0
    while at < len(data):
        tag, at = _varint_at(data, at)
        number, kind = tag >> 3, tag & 7
        value: Any
        if kind == VARINT:
            value, at = _varint_at(data, at)
        else:
            length = {FIXED64: 8, FIXED32: 4}.get(kind)
            if length is None:
                length, at = _varint_at(data, at)
            value, at = data[at : at + length], at + length
        nodes.append(Node(number, kind, value, shape.find(number)))
    return tuple(nodes)


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at


def changed(nodes: Sequence[Node], at: int, change: Callable[[Node], bytes]) -> bytes:
    """The message with what ``change`` makes of node ``at`` (counted parents first) in its place."""
    out = []
    for node in nodes:
        if not 0 <= at < node.size:
            out.append(node.encoded)
        elif at == 0:
            out.append(change(node))
        else:
            out.append(encode(node.number, node.kind, changed(node.children, at - 1, change)))
        at -= node.size
    return b"".join(out)


def doubles(*values: float) -> tuple[bytes, ...]:
    """Each as the 8 bytes of a message."""
    return tuple(struct.pack("<d", value) for value in values)
