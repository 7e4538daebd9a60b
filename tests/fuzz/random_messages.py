"""Messages that a server must survive: broken bytes, sound ones that mean nonsense, and valid ones changed a little.

A :class:`Messages` of the same seed draws the same messages, as long as it is told the same of what was accepted.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from message_trees import BYTES, FIXED32, FIXED64, VARINT, Field, Node, Shape, changed, doubles, encode, parse, varint

NAN, INFINITY = float("nan"), float("inf")
INTEGERS = (0, 1, 2, 7, 8, 127, 128, 4095, 4097, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
DOUBLES = doubles(0, -0.0, 1, -1, 0.05, 1e-3, 1e9, NAN, INFINITY, -INFINITY, 1e308, 5e-324, 3.5e38, 1 - 2**-53)
FIXED32S = (b"\0\0\0\0", b"\1\0\0\0", b"\xff\xff\xff\xff", b"\0\0\x80\x7f")
NUMBERS = (
    *(struct.pack("<f", value) for value in (NAN, INFINITY, -INFINITY, 3.4e38, 1e-45, -1.0)),
    *(struct.pack("<q", value) for value in (-1, 2**63 - 1, -(2**63), 0)),
    *(struct.pack("<Q", value) for value in (1, 2, 2**32, 2**63 + 1)),
    struct.pack("<e", NAN),
)
TEXTS = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    "\u00e9\u20ac".encode(),
    b"a" * 64,
    b"n" * 513,
    b"..",
    b"/",
)
UNKNOWN_FIELDS = (6, 15, 16, 99, 19_000, 2**29 - 1)
COPIES = (4097, 1025, 70_000)
TINY_COPIES = 1_200_000
LENGTHS = (1 << 16, 1 << 20, (1 << 25) + 8)
RECENT_MAX = 64
T = TypeVar("T")


class Messages:
    """Draws messages of one type. ``valid``: sound ones to start from; ``likely``: values that make sense, by the name
    of their field (integers, or bytes)."""

    def __init__(self, shape: Shape, valid: Sequence[bytes], likely: Mapping[str, Sequence[Any]], seed: str) -> None:
        self._rng = random.Random(seed)
        self._shape = shape
        self._valid = list(valid)
        self._likely = {
            (name, whole): [value for value in values if isinstance(value, int) == whole]
            for name, values in likely.items()
            for whole in (True, False)
        }
        self._trees: list[tuple[Node, ...]] = [parse(data, shape) for data in valid]
        self._sizes = [sum(node.size for node in tree) for tree in self._trees]
        self._recent: list[bytes] = list(valid)
        self._plans: list[Callable[[], bytes]] = [
            *[self._mutated] * 40,
            *[self._one_field_changed] * 36,
            *[self._from_the_descriptor] * 14,
            *[self._spliced] * 4,
            *[self._as_it_was] * 4,
            *[self._noise] * 2,
        ]
        self._changes: tuple[Callable[[Node], bytes], ...] = (
            *[self._other_value] * 6,
            self._gone,
            self._twice,
            self._other_kind,
            self._other_number,
            self._wrong_length,
            self._unknown_beside,
            *[self._other_bytes] * 4,
            self._torn,
        )

    def next(self) -> bytes:
        """One more."""
        if self._rng.random() < 0.0001:
            return self._huge()
        return self._plans[int(self._rng.random() * len(self._plans))]()

    def accepted(self, data: bytes) -> None:
        """The server took this one: more will be made from it."""
        if len(data) < 4096:
            if len(self._recent) >= RECENT_MAX:
                self._recent[int(self._rng.random() * RECENT_MAX)] = data
            else:
                self._recent.append(data)

    # -- whole messages

    def _pick(self, values: Sequence[T]) -> T:
        return values[int(self._rng.random() * len(values))]

    def _as_it_was(self) -> bytes:
        return self._pick(self._recent)

    def _noise(self) -> bytes:
        return self._rng.randbytes(self._pick((0, 1, 2, 3, 8, 40)))

    def _spliced(self) -> bytes:
        first, second = self._pick(self._recent), self._pick(self._recent)
        cut = self._place(first)
        return first[:cut] + second[self._place(second) if self._rng.random() < 0.5 else cut :]

    def _mutated(self) -> bytes:
        data = bytearray(self._pick(self._recent))
        for _ in range(self._pick((1, 1, 1, 2, 4))):
            at, way = self._place(data), int(self._rng.random() * 8)
            if way == 0 and at < len(data):
                data[at] ^= 1 << int(self._rng.random() * 8)
            elif way == 1 and at < len(data):
                data[at] = self._pick((0, 1, 0x7F, 0x80, 0xFF))
            elif way == 2:
                del data[at:]
            elif way == 3:
                del data[at : at + self._pick((1, 2, 4, 8))]
            elif way == 4:
                data[at:at] = self._rng.randbytes(self._pick((1, 2, 8)))
            elif way == 5:
                data[at:at] = data[at : at + self._pick((1, 4, 16, 64))]
            elif way == 6:
                number = self._pick(NUMBERS)
                data[at : at + len(number)] = number
            else:
                data[at : at + 1] = varint(self._pick(INTEGERS))
        return bytes(data)

    def _place(self, data: bytes | bytearray) -> int:
        return int(self._rng.random() * (len(data) + 1))

    def _from_the_descriptor(self) -> bytes:
        return self._message(self._shape)

    def _message(self, shape: Shape) -> bytes:
        parts: list[bytes] = []
        for field in shape.fields:
            if self._rng.random() < 0.3:
                continue
            times = self._pick((1, 1, 2, 3)) if field.repeated else 1
            parts.extend(encode(field.number, field.kind, self._value(field)) for _ in range(times))
        if self._rng.random() < 0.1:
            self._rng.shuffle(parts)
        return b"".join(parts)

    def _huge(self) -> bytes:
        """A field as often, or as long, as no honest caller would have it."""
        if not self._trees or not any(self._sizes):
            return encode(self._pick(UNKNOWN_FIELDS), VARINT, 1) * self._pick(COPIES)
        tree = self._pick([tree for tree in self._trees if tree])
        at = int(self._rng.random() * sum(node.size for node in tree))
        copies, length = self._pick(COPIES), self._pick(LENGTHS)

        def change(node: Node) -> bytes:
            if node.kind == BYTES and not node.children and self._rng.random() < 0.6:
                return encode(node.number, BYTES, (node.value or b"a") * (length // len(node.value or b"a")))
            if self._rng.random() < 0.06:
                return encode(node.number, node.kind, {VARINT: 1, BYTES: b""}.get(node.kind, node.value)) * TINY_COPIES
            return node.encoded * copies

        return changed(tree, at, change)

    # -- one field

    def _one_field_changed(self) -> bytes:
        which = int(self._rng.random() * len(self._trees))
        if not self._sizes[which]:
            return self._from_the_descriptor()
        at = int(self._rng.random() * self._sizes[which])
        return changed(self._trees[which], at, self._pick(self._changes))

    def _value(self, field: Field) -> Any:
        if field.shape is not None:
            return self._message(field.shape)
        likely = self._likely.get((field.name, field.kind == VARINT))
        if likely and self._rng.random() < 0.75:
            return self._pick(likely)
        if field.kind == VARINT:
            return self._pick(INTEGERS)
        if field.kind == FIXED64:
            return self._pick(DOUBLES)
        if field.kind == FIXED32:
            return self._pick(FIXED32S)
        if self._rng.random() < 0.5:
            return self._pick(TEXTS)
        return b"".join(self._pick(NUMBERS) for _ in range(self._pick((1, 2, 3, 6))))

    def _other_value(self, node: Node) -> bytes:
        if node.field is None or node.field.kind != node.kind:
            return node.encoded
        return encode(node.number, node.kind, self._value(node.field))

    def _gone(self, node: Node) -> bytes:
        return b""

    def _twice(self, node: Node) -> bytes:
        return node.encoded * 2

    def _other_kind(self, node: Node) -> bytes:
        kind = self._pick((VARINT, FIXED64, BYTES, FIXED32, 3, 4, 6, 7))
        if kind == VARINT:
            return encode(node.number, kind, self._pick(INTEGERS))
        data = node.value if isinstance(node.value, bytes) else bytes(8)
        if kind in (FIXED64, FIXED32):
            return encode(node.number, kind, data[:8].ljust(8, b"\0")[: 8 if kind == FIXED64 else 4])
        return encode(node.number, kind, data)

    def _other_number(self, node: Node) -> bytes:
        return encode(self._pick((1, 2, 3, 4, 5, 6, 7, 8, *UNKNOWN_FIELDS, 0)), node.kind, node.value)

    def _wrong_length(self, node: Node) -> bytes:
        if node.kind != BYTES:
            return node.encoded[:-1]
        length = self._pick((0, len(node.value) + 1, max(0, len(node.value) - 1), *INTEGERS))
        return varint(node.number << 3 | BYTES) + varint(length) + bytes(node.value)

    def _unknown_beside(self, node: Node) -> bytes:
        number, kind = self._pick(UNKNOWN_FIELDS), self._pick((VARINT, FIXED64, BYTES, FIXED32))
        value = self._pick(INTEGERS) if kind == VARINT else bytes(4 if kind == FIXED32 else 8)
        return encode(number, kind, value) + node.encoded

    def _other_bytes(self, node: Node) -> bytes:
        """The same length, some numbers in it changed."""
        if not isinstance(node.value, bytes) or not node.value:
            return self._other_value(node)
        number = self._pick(NUMBERS)
        width = self._pick((1, 2, 4, 8))
        at = int(self._rng.random() * len(node.value)) // width * width
        value = node.value[:at] + number + node.value[at + len(number) :]
        return encode(node.number, node.kind, value[: len(node.value)])

    def _torn(self, node: Node) -> bytes:
        """Longer or shorter by some bytes, with a length that fits."""
        if not isinstance(node.value, bytes) or node.kind != BYTES:
            return self._other_value(node)
        by = self._pick((-8, -4, -1, 1, 4, 8))
        value = node.value[:by] if by < 0 else node.value + self._rng.randbytes(by)
        return encode(node.number, BYTES, value)
