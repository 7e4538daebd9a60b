"""A reader of ChunkDelta bytes written from docs/formats/delta.md alone: it shares no code with the native one."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import crc32c
import numpy as np

MAGIC = b"ESCD"
HEADER = struct.Struct("<4sHHIIIIIIQQQQQqQQQIIQQQ")


@dataclass
class ReadDelta:
    embeddings_only: bool
    chunk: int
    num_chunks: int
    dim: int
    state_floats: int
    optimizer: int
    incarnation: int
    parent_incarnation: int
    branch_version: int
    from_version: int
    to_version: int
    clock_ms: int
    watermarks: dict[str, int]
    ids: np.ndarray
    versions: np.ndarray
    first_seen_s: np.ndarray
    last_seen_s: np.ndarray
    updates: np.ndarray
    embeddings: np.ndarray
    states: np.ndarray
    tombstone_ids: np.ndarray
    tombstone_versions: np.ndarray
    tombstone_reasons: np.ndarray
    sketch_slots: int
    sketch_halvings: int
    sketch_blocks: dict[int, dict[int, tuple[int, int]]]  # block -> slot of the sketch -> (fingerprint, count)


def read_delta(data: bytes, *, sketch_dropped: bool = False) -> ReadDelta:
    """AssertionError where the bytes are not as documented; ``sketch_dropped``: as a table with embeddings only does,
    without asking whether the sketch's entries can be found."""
    fields = HEADER.unpack_from(data)
    magic, version, flags, chunk, num_chunks, dim, state_floats, optimizer, num_watermarks = fields[:9]
    incarnation, parent, branch, begin, end, clock, num_rows, num_tombstones, watermark_bytes = fields[9:18]
    sketch_slots, num_blocks, num_entries, halvings, total = fields[18:]
    assert (magic, version, flags & ~1, total) == (MAGIC, 2, 0, len(data))
    assert struct.unpack("<I", data[-4:])[0] == crc32c.crc32c(data[:-4])

    at = HEADER.size
    watermarks = {}
    for _ in range(num_watermarks):
        (length,) = struct.unpack_from("<H", data, at)
        stream = data[at + 2 : at + 2 + length].decode()
        (watermarks[stream],) = struct.unpack_from("<q", data, at + 2 + length)
        at += 2 + length + 8
    assert list(watermarks) == sorted(watermarks, key=str.encode)
    at = HEADER.size + watermark_bytes

    def column(dtype: str, count: int) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(data, np.dtype(dtype), count, at)
        at += values.nbytes
        return values

    ids, versions = column("<u8", num_rows), column("<u8", num_rows)
    first, last, updates = (column("<u4", num_rows) for _ in range(3))
    embeddings = column("<f4", num_rows * dim).reshape(num_rows, dim)
    states = column("<f4", num_rows * state_floats).reshape(num_rows, state_floats)
    assert not any(data[at : at + -at % 8])
    at += -at % 8
    gone, gone_versions = column("<u8", num_tombstones), column("<u8", num_tombstones)
    reasons = column("u1", num_tombstones)
    assert not any(data[at : at + -at % 8])
    at += -at % 8
    masks, numbers = column("<u8", num_blocks), column("<u4", num_blocks)
    blocks = read_blocks(masks.tolist(), numbers.tolist(), column("<u4", num_entries), column("<u4", num_entries))
    assert at + 4 == total
    if not sketch_dropped:
        check_sketch(sketch_slots, blocks, whole=begin == 0)
    return ReadDelta(
        bool(flags & 1), chunk, num_chunks, dim, state_floats, optimizer, incarnation, parent, branch, begin, end,
        clock, watermarks, ids, versions, first, last, updates, embeddings, states, gone, gone_versions, reasons,
        sketch_slots, halvings, blocks,
    )  # fmt: skip


def read_blocks(
    masks: list[int], numbers: list[int], fingerprints: np.ndarray, counts: np.ndarray
) -> dict[int, dict[int, tuple[int, int]]]:
    entries = list(zip(fingerprints.tolist(), counts.tolist(), strict=True))
    blocks = {}
    for mask, number in zip(masks, numbers, strict=True):
        slots = [64 * number + bit for bit in range(64) if mask >> bit & 1]
        blocks[number] = dict(zip(slots, entries, strict=False))
        assert len(blocks[number]) == len(slots)
        entries = entries[len(slots) :]
    assert not entries and numbers == sorted(blocks)
    return blocks


def check_sketch(num_slots: int, blocks: dict[int, dict[int, tuple[int, int]]], *, whole: bool) -> None:
    """Raise AssertionError where the blocks cannot be of a sketch with this many slots; ``whole``: all of it."""
    used = {slot: entry for block in blocks.values() for slot, entry in block.items()}
    if num_slots == 0:
        assert not blocks
        return
    assert num_slots >= 64 and num_slots & (num_slots - 1) == 0
    assert all(number < num_slots // 64 for number in blocks) and all(count > 0 for _, count in used.values())
    assert len({fingerprint for fingerprint, _ in used.values()}) == len(used) <= num_slots * 3 // 4
    if whole:
        assert all(blocks.values())
        for slot, (fingerprint, _) in used.items():
            home = fingerprint % num_slots
            assert all((home + step) % num_slots in used for step in range((slot - home) % num_slots))
