"""What a row takes besides its floats."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import embedstore as es
from benchmarks import data
from benchmarks.harness import Absent, Contender, Figures, Line, Settings, race
from benchmarks.reference import HashMap, absence

Fill = Callable[[Settings, np.ndarray, np.ndarray], object]
FIGURE = "B/row above floats"


def memory(settings: Settings) -> list[Line]:
    """Bytes a row takes above its floats: growth of a fresh process's resident memory, against hash maps."""
    references = [
        _contender(settings, kind, absence(kind, settings.dim)) for kind in ("libcuckoo", "std::unordered_map")
    ]
    ours = [Contender("Table, resident", lambda number: _alone(_ours, settings))]
    return race(settings, "memory", "SGD table", ours, references, limits={FIGURE: 40.0}, warm_up=False)


def _contender(settings: Settings, kind: str, missing: str | None) -> Contender | Absent:
    if missing:
        return Absent(kind, missing)
    fill = _cuckoo if kind == "libcuckoo" else _std
    return Contender(kind, lambda number: _alone(fill, settings))


def _alone(fill: Fill, settings: Settings) -> Figures:
    """Run in a process of its own: memory that another measurement left behind would hide growth."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_growth, fill, settings).result()


def _growth(fill: Fill, settings: Settings) -> Figures:
    ids = data.all_ids(settings)
    rows = data.some_rows(settings, settings.batch)
    gc.collect()
    before = _resident_bytes()
    held = fill(settings, ids, rows)
    _give_back()
    grown = _resident_bytes() - before
    assert held is not None
    return {FIGURE: max(grown / settings.rows - 4 * settings.dim, 1e-3)}


def _ours(settings: Settings, ids: np.ndarray, rows: np.ndarray) -> object:
    store = es.open(None, tables=[data.spec(settings, es.SGD(lr=data.LR))])
    for part in data.slices(settings):
        store.assign("items", ids[part], rows[: part.stop - part.start])
    return store


def _cuckoo(settings: Settings, ids: np.ndarray, rows: np.ndarray) -> object:
    filled = HashMap("libcuckoo", settings.dim)
    for part in data.slices(settings):
        filled.assign(ids[part], rows[: part.stop - part.start])
    return filled


def _std(settings: Settings, ids: np.ndarray, rows: np.ndarray) -> object:
    filled = HashMap("std::unordered_map", settings.dim)
    for part in data.slices(settings):
        filled.assign(ids[part], rows[: part.stop - part.start])
    return filled


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _give_back() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
