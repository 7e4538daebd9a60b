"""The header of a ChunkDelta: what its bytes are about, without decoding them. docs/formats/delta.md has the format."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from embedstore.errors import CorruptDeltaError

DELTA_HEADER_BYTES = 136
ROW_BYTES = 28
"""Of each row, besides its floats."""
_HEADER = struct.Struct("<4sHH6I5Qq3Q2I3Q")


@dataclass(frozen=True)
class DeltaInfo:
    """What the header of a ChunkDelta says; see docs/formats/delta.md."""

    embeddings_only: bool
    chunk: int
    num_chunks: int
    dim: int
    state_floats: int
    incarnation: int
    parent_incarnation: int
    branch_version: int
    from_version: int
    to_version: int
    clock_ms: int
    num_rows: int
    num_tombstones: int
    watermark_bytes: int
    sketch_slots: int
    sketch_blocks: int
    sketch_entries: int
    sketch_halvings: int
    num_bytes: int

    @property
    def row_bytes(self) -> int:
        """What one row takes in it."""
        return ROW_BYTES + 4 * (self.dim + self.state_floats)

    @property
    def num_changes(self) -> int:
        """How many changes of the chunk it carries; one that replaces it counts as one."""
        return 1 if self.full else self.to_version - self.from_version

    @property
    def full(self) -> bool:
        """Whether it replaces the chunk."""
        return self.from_version == 0


def delta_info(delta: bytes | memoryview) -> DeltaInfo:
    """Read a delta's header without checking the rest; :class:`CorruptDeltaError` when it is none."""
    if len(delta) < _HEADER.size:
        raise CorruptDeltaError("delta is shorter than its header")
    magic, version, flags, chunk, num_chunks, dim, state_floats, _, _, *longs = _HEADER.unpack_from(delta)
    if magic != b"ESCD" or version != 2:
        raise CorruptDeltaError("delta has an unknown format")
    incarnation, parent, branch, begin, end, clock, num_rows, num_tombstones, watermark_bytes, *rest = longs
    slots, blocks, entries, halvings, num_bytes = rest
    return DeltaInfo(
        embeddings_only=bool(flags & 1),
        chunk=chunk,
        num_chunks=num_chunks,
        dim=dim,
        state_floats=state_floats,
        incarnation=incarnation,
        parent_incarnation=parent,
        branch_version=branch,
        from_version=begin,
        to_version=end,
        clock_ms=clock,
        num_rows=num_rows,
        num_tombstones=num_tombstones,
        watermark_bytes=watermark_bytes,
        sketch_slots=slots,
        sketch_blocks=blocks,
        sketch_entries=entries,
        sketch_halvings=halvings,
        num_bytes=num_bytes,
    )
