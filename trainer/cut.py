"""The trainer's cut: everything it alone holds, and the positions up to which it holds it, in one file.

A file is written beside the old one, synced and renamed over it, so a reader finds the old cut or the new one and
never a mixture. The format is described in docs/formats/cut.md. Histories live in their own database, synced before
the cut is written and allowed to be ahead of it (see :mod:`trainer.history`).

Not safe for concurrent writers; the history database's lock keeps a second trainer out of a state directory.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import crc32c
import numpy as np

from embedstore.errors import CheckpointFailedError, CorruptCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAGIC: Final = b"ESCUT\r\n\x1a"
FORMAT: Final = 1
FILE_NAME: Final = "cut"
_HEADER = struct.Struct("<8sII")
_TEXT_SIZE = struct.Struct("<Q")
_DTYPES = ("<f4", "<f8", "<i8", "<u8", "<i4", "|b1", "|u1")


@dataclass(frozen=True)
class Cut:
    """``positions``: where each stream stands. ``arrays``: named numpy arrays. ``values``: anything JSON can hold."""

    positions: Mapping[str, int]
    arrays: Mapping[str, np.ndarray]
    values: Mapping[str, Any]


def write_cut(directory: Path, cut: Cut) -> None:
    """Replace the directory's cut; when this returns, the disk has the new one. :class:`CheckpointFailedError` leaves
    the old one."""
    try:
        _write(directory, encode_cut(cut))
    except OSError as problem:
        raise CheckpointFailedError(str(directory / FILE_NAME), str(problem)) from problem


def _write(directory: Path, data: bytes) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"{FILE_NAME}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / FILE_NAME)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_cut(directory: Path) -> Cut | None:
    """The directory's cut, or None when there is none; :class:`CorruptCheckpointError` when it cannot be read."""
    path = directory / FILE_NAME
    if not path.exists():
        return None
    return decode_cut(path.read_bytes(), str(path))


def encode_cut(cut: Cut) -> bytes:
    """The bytes of a cut file."""
    directory, blobs, offset = [], [], 0
    for name, array in cut.arrays.items():
        blob = np.ascontiguousarray(array)
        blob = blob.astype(blob.dtype.newbyteorder("<"), copy=False)
        directory.append([name, blob.dtype.str, list(np.shape(array)), offset])
        blobs.append(blob.tobytes())
        offset += len(blobs[-1])
    text = json.dumps({"positions": dict(cut.positions), "values": dict(cut.values), "arrays": directory}).encode()
    body = b"".join([_TEXT_SIZE.pack(len(text)), text, *blobs])
    return _HEADER.pack(MAGIC, FORMAT, crc32c.crc32c(body)) + body


def decode_cut(data: bytes, label: str) -> Cut:
    """Read :func:`encode_cut`'s bytes back; ``label`` names them in errors."""
    if len(data) < _HEADER.size + _TEXT_SIZE.size:
        raise CorruptCheckpointError(label, f"{len(data)} bytes are too few for a cut")
    magic, version, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise CorruptCheckpointError(label, "is no cut file")
    if version != FORMAT:
        raise CorruptCheckpointError(label, f"has format {version}, this release reads {FORMAT}")
    body = memoryview(data)[_HEADER.size :]
    if crc32c.crc32c(body) != checksum:
        raise CorruptCheckpointError(label, "does not match its checksum")
    text_end = _TEXT_SIZE.size + _TEXT_SIZE.unpack_from(body)[0]
    parts = json.loads(bytes(body[_TEXT_SIZE.size : text_end]))
    blobs = body[text_end:]
    arrays = {name: _array(label, blobs, name, *entry) for name, *entry in parts["arrays"]}
    return Cut(parts["positions"], arrays, parts["values"])


def _array(label: str, blobs: memoryview, name: str, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    if dtype not in _DTYPES:
        raise CorruptCheckpointError(label, f"array {name!r} has the unknown type {dtype!r}")
    count = int(np.prod(shape, dtype=np.int64))
    if offset + count * np.dtype(dtype).itemsize > len(blobs):
        raise CorruptCheckpointError(label, f"array {name!r} runs past the end")
    return np.frombuffer(blobs, dtype, count, offset).reshape(shape).copy()
