"""Prints by how many bytes this process grew when it filled one table or map: a process of its own for each figure,
because memory that another measurement left behind would hide growth.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Literal, cast

import numpy as np

import embedstore as es
from benchmarks import data
from benchmarks.harness import Settings
from benchmarks.reference import HashMap


def fill(kind: str, settings: Settings, ids: np.ndarray, rows: np.ndarray) -> object:
    """A table ("ours") or hash map that holds every id."""
    if kind == "ours":
        store = es.open(None, tables=[data.spec(settings, es.SGD(lr=data.LR))])
        for part in data.slices(settings):
            store.assign("items", ids[part], rows[: part.stop - part.start])
        return store
    hash_map = HashMap(cast(Literal["libcuckoo", "std::unordered_map"], kind), settings.dim)
    for part in data.slices(settings):
        hash_map.assign(ids[part], rows[: part.stop - part.start])
    return hash_map


def resident_bytes() -> int:
    """Memory of this process that is in RAM, after malloc gave back what it can."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    kind, rows, dim, batch, seed = sys.argv[1], *map(int, sys.argv[2:6])
    settings = Settings(rows, dim, batch, 1, 1, seed, False, Path())
    ids, values = data.all_ids(settings), data.some_rows(settings, batch)
    before = resident_bytes()
    held = fill(kind, settings, ids, values)
    print(resident_bytes() - before)
    del held


if __name__ == "__main__":
    main()
