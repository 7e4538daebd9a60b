"""Segment files: blobs end to end behind a small header, written once, synced, never changed.

docs/formats/checkpoint.md has the bytes. A directory of segments belongs to one process (the manifest's lock sees to
that). A segment that the manifest does not name is garbage that an unfinished checkpoint left.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from crc32c import crc32c

from embedstore.errors import CheckpointFailedError, CorruptCheckpointError

MAGIC = b"ESSEGMNT"
FORMAT = 1
HEADER_BYTES = 16
PART_BYTES = 32 << 20
PARTS_MAX = 2
_NAME = re.compile(r"(\d{16})\.seg")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blob:
    """Where one blob lies and the checksum of its bytes."""

    segment: int
    offset: int
    length: int
    crc: int


def header() -> bytes:
    """The first bytes of every segment file."""
    front = MAGIC + struct.pack("<I", FORMAT)
    return front + struct.pack("<I", crc32c(front))


def segment_path(directory: Path, number: int) -> Path:
    """Where segment ``number`` lies."""
    return directory / f"{number:016d}.seg"


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def list_segments(directory: Path) -> set[int]:
    """The numbers of all segment files in a directory. OSError."""
    matches = (_NAME.fullmatch(entry.name) for entry in os.scandir(directory))
    return {int(match[1]) for match in matches if match}


def remove_segments(directory: Path, numbers: Iterable[int]) -> None:
    """Delete segments that nothing refers to; one that cannot be deleted is reported and left for the next time."""
    for number in numbers:
        try:
            segment_path(directory, number).unlink(missing_ok=True)
        except OSError as problem:
            _log.warning("unused segment stays: %s", problem)


class SegmentWriter:
    """One new segment; its file appears with the first blob. For one thread. :class:`CheckpointFailedError`.

    What was appended goes to the disk while the next blobs are made, and leaves the file cache then: so a checkpoint
    takes the memory of a few parts, not that of everything it writes, and new file cache is what writing costs most.
    """

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.bytes_written = 0
        self._path = segment_path(directory, number)
        self._file: BinaryIO | None = None
        self._offset = 0
        self._handed = 0
        self._behind: ThreadPoolExecutor | None = None
        self._parts: deque[Future[None]] = deque()

    def append(self, data: bytes | memoryview) -> Blob:
        """Write one blob; it is durable after :meth:`sync`."""
        try:
            if self._file is None:
                self._file = self._path.open("xb", buffering=1 << 20)
                self._file.write(header())
                self._offset = HEADER_BYTES
            self._file.write(data)
            blob = Blob(self.number, self._offset, len(data), crc32c(data))
            self._offset += len(data)
            self.bytes_written += len(data)
            if self._offset - self._handed >= PART_BYTES:
                self._hand_over()
        except OSError as problem:
            raise CheckpointFailedError(str(self._path), str(problem)) from problem
        return blob

    def _hand_over(self) -> None:
        """Have another thread write back what there is; waits when it is ``PARTS_MAX`` parts behind. OSError."""
        assert self._file is not None
        self._file.flush()
        if self._behind is None:
            self._behind = ThreadPoolExecutor(1, thread_name_prefix="segment-writer")
        while len(self._parts) >= PARTS_MAX:
            self._parts.popleft().result()
        begin, self._handed = self._handed, self._offset
        self._parts.append(self._behind.submit(_write_back, self._file.fileno(), begin, self._offset - begin))

    def sync(self) -> None:
        """Make everything appended durable, the file's name included."""
        if self._file is None:
            return
        try:
            if self._behind is not None:
                self._hand_over()
                while self._parts:
                    self._parts.popleft().result()
                self._behind.shutdown()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            sync_directory(self._path.parent)
        except OSError as problem:
            raise CheckpointFailedError(str(self._path), str(problem)) from problem

    def discard(self) -> None:
        """Give the file up: nothing refers to it."""
        if self._behind is not None:
            self._behind.shutdown()
        if self._file is not None:
            try:
                self._file.close()
            except OSError as problem:
                _log.warning("closing an abandoned segment: %s", problem)
            remove_segments(self._path.parent, [self.number])


def _write_back(handle: int, begin: int, length: int) -> None:
    os.fdatasync(handle)
    os.posix_fadvise(handle, begin, length, os.POSIX_FADV_DONTNEED)


class SegmentReader:
    """Reads blobs of one directory; each file is opened once. Any thread may read; close it after all have."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[int, int | CorruptCheckpointError] = {}
        self._buffers = threading.local()

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._files.values():
            if isinstance(handle, int):
                os.close(handle)
        self._files.clear()

    def path(self, number: int) -> Path:
        """Where segment ``number`` lies."""
        return segment_path(self._directory, number)

    def open(self, numbers: Iterable[int]) -> None:
        """Open segments and check their headers; what is wrong is raised by :meth:`read`."""
        for number in sorted(set(numbers) - self._files.keys()):
            self._files[number] = self._open(number)

    def missing(self) -> bool:
        """Whether any segment could not be opened."""
        return any(isinstance(handle, CorruptCheckpointError) for handle in self._files.values())

    def _open(self, number: int) -> int | CorruptCheckpointError:
        path = segment_path(self._directory, number)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as problem:
            return CorruptCheckpointError(str(path), str(problem))
        if os.pread(handle, HEADER_BYTES, 0) != header():
            os.close(handle)
            return CorruptCheckpointError(str(path), "not a segment of this format")
        return handle

    def read(self, blob: Blob) -> memoryview:
        """The bytes of one blob of an opened segment; :class:`CorruptCheckpointError` unless they are sound.

        They lie in memory of the calling thread's and stay until its next read: large buffers that come and go would
        cost more than reading into them.
        """
        path = str(segment_path(self._directory, blob.segment))
        handle = self._files[blob.segment]
        if isinstance(handle, CorruptCheckpointError):
            raise handle
        try:
            if blob.offset + blob.length > os.fstat(handle).st_size:
                raise CorruptCheckpointError(path, f"ends inside the blob at {blob.offset}")
            data = self._room(blob.length)
            _pread(handle, data, blob.offset)
        except OSError as problem:
            raise CorruptCheckpointError(path, str(problem)) from problem
        if crc32c(data) != blob.crc:
            raise CorruptCheckpointError(path, f"checksum of the blob at {blob.offset} does not match")
        return data

    def _room(self, length: int) -> memoryview:
        buffer: bytearray | None = getattr(self._buffers, "buffer", None)
        if buffer is None or len(buffer) < length:
            self._buffers.buffer = buffer = bytearray(length + length // 4)
        return memoryview(buffer)[:length]


def _pread(handle: int, into: memoryview, offset: int) -> None:
    done = 0
    while done < len(into):
        if (count := os.preadv(handle, [into[done : done + (1 << 30)]], offset + done)) == 0:
            raise OSError("ends early")
        done += count
