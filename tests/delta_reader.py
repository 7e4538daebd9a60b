"""A reader of ChunkDelta bytes written from docs/formats/delta.md alone: it shares no code with the native one."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import crc32c
import numpy as np

MAGIC = b"ESCD"
HEADER = struct.Struct("<4sHHIIIIIIQQQQQqQQQQ")


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


def read_delta(data: bytes) -> ReadDelta:
    fields = HEADER.unpack_from(data)
    magic, version, flags, chunk, num_chunks, dim, state_floats, optimizer, num_watermarks = fields[:9]
    incarnation, parent, branch, begin, end, clock, num_rows, num_tombstones, watermark_bytes, total = fields[9:]
    assert (magic, version, flags & ~1, total) == (MAGIC, 1, 0, len(data))
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
    at += -at % 8
    gone, gone_versions = column("<u8", num_tombstones), column("<u8", num_tombstones)
    reasons = column("u1", num_tombstones)
    assert at + 4 == total
    return ReadDelta(
        bool(flags & 1), chunk, num_chunks, dim, state_floats, optimizer, incarnation, parent, branch, begin, end,
        clock, watermarks, ids, versions, first, last, updates, embeddings, states, gone, gone_versions, reasons,
    )  # fmt: skip
