"""Prints how the memory of this process moves when it fills one table or map, and when rows go again: a process of
its own for each figure, because memory that another measurement left behind would hide growth.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from benchmarks import data, tables
from benchmarks.harness import Settings
from benchmarks.reference import HashMap


def fill(kind: str, settings: Settings) -> object:
    """A table ("ours") or hash map that holds every id."""
    rows = data.some_rows(settings, settings.batch)
    if kind == "ours":
        return tables.filled(settings, tables.without_state(), rows)
    hash_map = HashMap(cast(Literal["libcuckoo", "std::unordered_map"], kind), settings.dim)
    for ids in data.new_ids(settings):
        hash_map.assign(ids, rows[: len(ids)])
    return hash_map


def resident_bytes() -> int:
    """Memory of this process that is in RAM, after malloc gave back what it can."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    kind, rows, dim, batch, seed = sys.argv[1], *map(int, sys.argv[2:6])
    settings = Settings(rows, dim, batch, 1, 1, seed, False, Path(), Path())
    # What the first calls bring in once and for all is no table's.
    held = fill(kind, replace(settings, rows=min(rows, batch)))
    del held
    before = resident_bytes()
    held = fill(kind, settings)
    print(resident_bytes() - before)
    del held


if __name__ == "__main__":
    main()
