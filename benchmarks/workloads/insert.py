"""New ids, into a table that grows from nothing."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import numpy as np

import embedstore as es
from benchmarks import data, peers, tables
from benchmarks.harness import CPU, Absent, Contender, Figures, Line, Settings, race
from benchmarks.reference import HashMap, absence, keep_memory
from benchmarks.sizes import fitted, touch_memory

Write = Callable[[np.ndarray, np.ndarray], object]
Kind = Literal["libcuckoo", "std::unordered_map"]
KINDS: tuple[Kind, ...] = ("libcuckoo", "std::unordered_map")
# References that grow beyond this take minutes a round.
REFERENCE_ROWS_MAX = 10_000_000
HUGE_PAGE_BYTES = 2 << 20


def insert(settings: Settings) -> list[Line]:
    """New ids into a table that grows from nothing, by assign and by first push; mean and worst batch."""
    keep_memory()
    assigning = fitted(settings, lambda dim: 4 * dim + tables.HEADER_BYTES)
    pushing = fitted(settings, lambda dim: 8 * dim + tables.HEADER_BYTES)
    with ExitStack() as stack:
        assign = race(
            assigning,
            "insert",
            "assign of new ids",
            [_ours(assigning, "Store.assign", tables.without_state())],
            [
                _touch(assigning, 4 * assigning.dim),
                *(_map(assigning, kind, assigning.dim) for kind in KINDS),
                *peers.contenders(assigning, "insert", stack),
            ],
            limits={"ns/row": 250.0, "worst batch ms": 5.0},
            warm_up=False,
        )
    push = race(
        pushing,
        "insert",
        "first push, Adagrad",
        [_ours(pushing, "Store.push", es.Adagrad(lr=data.LR))],
        [_touch(pushing, 8 * pushing.dim), *(_map(pushing, kind, 2 * pushing.dim) for kind in KINDS)],
        limits={"ns/row": 400.0},
        warm_up=False,
    )
    return [*assign, *push]


def _ours(settings: Settings, name: str, optimizer: es.Optimizer) -> Contender:
    row_bytes = (4 if name == "Store.assign" else 8) * settings.dim + tables.HEADER_BYTES
    memory_bytes = settings.rows * row_bytes * 5 // 4
    rows = data.some_rows(settings, settings.batch)

    def run(number: int) -> Figures:
        touch_memory(memory_bytes)
        store = es.open(None, tables=[tables.spec(settings, optimizer)])
        try:
            if name == "Store.assign":
                return grow(settings, rows, lambda new, values: store.assign(tables.NAME, new, values))
            return grow(settings, rows, lambda new, values: store.push({tables.NAME: (new, values)}))
        finally:
            store.close()

    return Contender(name, run)


def grow(settings: Settings, rows: np.ndarray, write: Write) -> Figures:
    """Write every id once, a batch at a time."""
    seconds, cpu_s = [], []
    for ids in data.new_ids(settings):
        values = rows[: len(ids)]
        begin_s, begin_cpu_s = settings.now_s(), settings.cpu_s()
        write(ids, values)
        seconds.append(settings.now_s() - begin_s)
        cpu_s.append(settings.cpu_s() - begin_cpu_s)
    return {
        "ns/row": sum(seconds) / settings.rows * 1e9,
        f"{CPU}ns/row": sum(cpu_s) / settings.rows * 1e9,
        "worst batch ms": max(seconds) * 1e3,
        f"{CPU}worst batch ms": max(cpu_s) * 1e3,
    }


class _Toucher:
    """Touches the next pages of fresh memory, as many as the rows of a batch take."""

    def __init__(self, memory: mmap.mmap, row_bytes: int) -> None:
        self._memory = memory
        self._row_bytes = row_bytes
        whole = np.frombuffer(memory, np.uint8)
        self._begin = -whole.ctypes.data % HUGE_PAGE_BYTES

    def __call__(self, ids: np.ndarray, values: np.ndarray) -> None:
        end = self._begin + len(ids) * self._row_bytes
        first = -(-self._begin // mmap.PAGESIZE) * mmap.PAGESIZE
        np.frombuffer(self._memory, np.uint8)[first : end : mmap.PAGESIZE] = 1
        self._begin = end


def _touch(settings: Settings, row_bytes: int) -> Contender:
    """What the system alone takes for the floats of new rows: first touches of fresh huge pages.

    The memory is what the guest has at hand, as for the others.
    """
    rows = data.some_rows(settings, settings.batch)

    def run(number: int) -> Figures:
        touch_memory(settings.rows * row_bytes)
        with mmap.mmap(-1, settings.rows * row_bytes + HUGE_PAGE_BYTES) as memory:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            return grow(settings, rows, _Toucher(memory, row_bytes))

    return Contender("first touch of the floats' memory", run)


def _map(settings: Settings, kind: Kind, width: int) -> Contender | Absent:
    missing = absence(kind, width, settings.rows)
    if settings.rows > REFERENCE_ROWS_MAX:
        missing = f"measured up to {REFERENCE_ROWS_MAX:,} rows: growing takes too long"
    if missing:
        return Absent(kind, missing)
    rows = data.some_rows(settings, settings.batch)

    def run(number: int) -> Figures:
        touch_memory(settings.rows * width * 8)
        with ExitStack() as stack:
            hash_map = stack.enter_context(HashMap(kind, width))
            return grow(settings, rows, hash_map.assign)

    return Contender(kind, run)
