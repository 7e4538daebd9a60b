"""A wall clock that can be stepped from outside while a process runs.

The offset lies in a file that the process maps; whoever writes there steps the clock. Shifted is ``time.time_ns``,
where embedstore and the trainer read the calendar. ``time.time`` is not: gRPC hands what it says to a core that reads
the system's clock, which nobody can step without special rights, and half a step is what no machine does.

Run as a program: ``offset_clock.py FILE ...`` is ``embedstore ...`` under that clock.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

_OFFSET = struct.Struct("<q")


def write_offset(path: Path, offset_ms: int) -> None:
    """Step the clock of everybody who follows ``path``, to so many milliseconds beside the true time."""
    if not path.exists():
        path.write_bytes(bytes(_OFFSET.size))
    with path.open("r+b") as file:
        file.write(_OFFSET.pack(offset_ms * 1_000_000))


def follow_offset(path: str) -> None:
    """This process's calendar is beside the true one by what ``path`` holds, from now on."""
    with Path(path).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    true_ns = time.time_ns

    def time_ns() -> int:
        return true_ns() + int(_OFFSET.unpack_from(mapped)[0])

    time.time_ns = time_ns


if __name__ == "__main__":
    follow_offset(sys.argv.pop(1))
    from embedstore import cli

    cli.main()
