"""Files of one record a line, readable from any record without reading what is before it.

Opening scans the file once: it takes the content's digest and remembers where every 1024th line begins. Memory is
8 bytes for 1024 lines; a line over the record limit is never held whole.
"""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.events import RECORD_BYTES_MAX

INDEX_STRIDE = 1024
BLOCK_BYTES = 1 << 20
LINE_BYTES_MAX = RECORD_BYTES_MAX + 2


class LineFile:
    """The lines of a file, by number. For one thread at a time.

    ``digest`` is the SHA-256 of the content; ``num_lines`` counts a last line without its end too.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb", buffering=BLOCK_BYTES)
        self._index = array("q", [0])
        self._next_line = 0
        self.digest, self.num_lines = self._scan()
        self._file.seek(0)

    def _scan(self) -> tuple[str, int]:
        sha = hashlib.sha256()
        num_ends = begin = 0
        last = b"\n"
        while block := self._file.read(BLOCK_BYTES):
            sha.update(block)
            ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
            first = -(num_ends + 1) % INDEX_STRIDE
            self._index.extend((ends[first::INDEX_STRIDE] + begin + 1).tolist())
            num_ends += ends.size
            begin += len(block)
            last = block[-1:]
        return sha.hexdigest(), num_ends + (last != b"\n")

    def read(self, begin: int, end: int) -> list[bytes | None]:
        """Lines [begin, end) without their ends; None for one over the record limit."""
        if begin != self._next_line:
            self._seek(begin)
        lines: list[bytes | None] = [self._read_line() for _ in range(end - begin)]
        self._next_line = end
        return lines

    def _seek(self, line: int) -> None:
        mark = line // INDEX_STRIDE
        self._file.seek(self._index[mark])
        for _ in range(line - mark * INDEX_STRIDE):
            self._read_line()
        self._next_line = line

    def _read_line(self) -> bytes | None:
        line = self._file.readline(LINE_BYTES_MAX)
        if len(line) < LINE_BYTES_MAX or line.endswith(b"\n"):
            return line.rstrip(b"\r\n")
        while line and not line.endswith(b"\n"):
            line = self._file.readline(BLOCK_BYTES)
        return None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
