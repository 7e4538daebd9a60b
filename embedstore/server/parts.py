"""Bounded parts of large values, and arrays as bytes: the pure half of the Follow protocol.

A delta or a dense set has one encoding. What is too large for one message leaves as consecutive parts of it and takes
effect with the last; the receiver's :class:`Assembler` keeps at most one unfinished value, so a sender that never
finishes costs no more than the largest value allowed. Nothing here is thread-safe: each call owns its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from embedstore.errors import InvalidArgumentError
from embedstore.spec import NUM_CHUNKS_MAX
from embedstore.v1 import sync_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray


PART_BYTES_MAX = 1 << 20
VALUE_BYTES_MAX = 1 << 30

Key = TypeVar("Key", bound=Hashable)


def split(value: bytes, part_bytes: int = PART_BYTES_MAX) -> Iterator[tuple[int, bytes]]:
    """``value`` as (offset, bytes) of at most ``part_bytes`` each; an empty value is one empty part."""
    if len(value) <= part_bytes:
        yield 0, value
        return
    view = memoryview(value)
    for offset in range(0, len(value), part_bytes):
        yield offset, bytes(view[offset : offset + part_bytes])


class Assembler(Generic[Key]):
    """Puts parts together again. ``lost``: the keys of which something is missing, to be asked for again.

    Repeated parts are ignored. A part that continues nothing, or that interrupts another value, loses the value that
    can no longer be completed: it is added to ``lost`` and never handed out.
    """

    def __init__(self, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        self._value_bytes_max = value_bytes_max
        self._key: Key | None = None
        self._length = 0
        self._parts: list[bytes] = []
        self._have = 0
        self.lost: list[Key] = []

    def add(self, key: Key, offset: int, length: int, data: bytes) -> bytes | None:
        """The whole value when ``data`` completes it, else None."""
        if length > self._value_bytes_max or offset + len(data) > length or (not data and length):
            self._lose(key)
            return None
        if self._key is not None and key == self._key and length == self._length:
            if offset + len(data) <= self._have:
                return None
            if offset == self._have:
                return self._append(data)
        if offset:
            self._lose(key)
            return None
        if self._key is not None and self._key != key:
            self._lose(self._key)
        self._key, self._length, self._parts, self._have = key, length, [], 0
        return self._append(data)

    def abandon(self) -> None:
        """No more parts of an unfinished value will come: it is lost."""
        if self._key is not None:
            self.lost.append(self._key)
            self._reset()

    def _append(self, data: bytes) -> bytes | None:
        self._parts.append(data)
        self._have += len(data)
        if self._have < self._length:
            return None
        value = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._reset()
        return value

    def _lose(self, key: Key) -> None:
        if self._key is not None and self._key != key:
            self.lost.append(self._key)
        self.lost.append(key)
        self._reset()

    def _reset(self) -> None:
        self._key, self._length, self._parts, self._have = None, 0, [], 0


@dataclass(frozen=True)
class Cursors:
    """Where a follower stands in chunks of one table: ``chunks`` uint32 [k], ``incarnations`` and ``versions``
    uint64 [k]."""

    chunks: NDArray[np.uint32]
    incarnations: NDArray[np.uint64]
    versions: NDArray[np.uint64]

    @classmethod
    def at_zero(cls, chunks: list[int]) -> Cursors:
        """Nothing yet of these chunks."""
        zeros = np.zeros(len(chunks), np.uint64)
        return cls(np.array(chunks, np.uint32), zeros, zeros)

    def then(self, later: Cursors) -> Cursors:
        """Both; of equal chunks the later one counts."""
        mine = ~np.isin(self.chunks, later.chunks)
        return Cursors(
            np.concatenate([self.chunks[mine], later.chunks]),
            np.concatenate([self.incarnations[mine], later.incarnations]),
            np.concatenate([self.versions[mine], later.versions]),
        )

    def to_proto(self, table: str) -> sync_pb2.TableCursors:
        """The message for ``table``."""
        return sync_pb2.TableCursors(
            table=table,
            chunks=to_bytes(self.chunks, "<u4"),
            incarnations=to_bytes(self.incarnations, "<u8"),
            versions=to_bytes(self.versions, "<u8"),
        )

    @classmethod
    def from_proto(cls, message: sync_pb2.TableCursors) -> Cursors:
        """Read a message; InvalidArgumentError names the field whose length does not fit."""
        chunks = from_bytes("TableCursors.chunks", message.chunks, "<u4")
        if len(chunks) > NUM_CHUNKS_MAX:
            raise InvalidArgumentError("TableCursors.chunks", f"at most {NUM_CHUNKS_MAX}, not {len(chunks)}")
        return cls(
            chunks,
            from_bytes("TableCursors.incarnations", message.incarnations, "<u8", len(chunks)),
            from_bytes("TableCursors.versions", message.versions, "<u8", len(chunks)),
        )


def to_bytes(array: np.ndarray, dtype: str) -> bytes:
    """The numbers of ``array`` as little-endian ``dtype``."""
    return np.ascontiguousarray(array, np.dtype(dtype)).tobytes()


def from_bytes(label: str, data: bytes, dtype: str, length: int | None = None) -> np.ndarray:
    """A read-only array over ``data``; InvalidArgumentError names ``label`` unless it holds ``length`` numbers."""
    width = np.dtype(dtype).itemsize
    if len(data) % width or (length is not None and len(data) != length * width):
        expected = f"{length} numbers of" if length is not None else "a multiple of"
        raise InvalidArgumentError(label, f"must be {expected} {width} bytes, not {len(data)} bytes")
    return np.frombuffer(data, np.dtype(dtype))
