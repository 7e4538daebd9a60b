"""What sync and checkpoints pay to find what changed."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from benchmarks import data, tables
from benchmarks.harness import CPU, Contender, Figures, Line, Settings, race
from benchmarks.reference import KnownRows, keep_memory
from benchmarks.sizes import fitted
from embedstore.spec import NUM_CHUNKS_DEFAULT

OURS = "Table.delta of every chunk"
SCAN = "C++ version scan and copy, one array"
EMPTY = "a ctypes call that does nothing"
CHANGED = 0.01
# The size that the budget is stated for.
ROWS_OF_LIMIT = 10_000_000


def delta(settings: Settings) -> list[Line]:
    """Deltas of all chunks after 1 % of the rows changed, for one consumer and for two, and of unchanged chunks."""
    keep_memory()
    settings = fitted(settings, lambda dim: 16 * dim + tables.HEADER_BYTES)
    rows = data.some_rows(settings, settings.batch)
    with ExitStack() as stack:
        store = tables.filled(settings, rows=rows)
        stack.callback(store.close)
        known = stack.enter_context(KnownRows(settings.rows, settings.dim, 2 * settings.dim))
        known.fill(rows)
        scan = _scan(settings, known)
        changed = race(
            settings,
            "delta",
            f"{CHANGED:.0%} of rows changed",
            [Contender(OURS, _Consumers(settings, store, 1).read)],
            [scan],
            limits={"ms": 50.0} if settings.rows == ROWS_OF_LIMIT else None,
        )
        two = race(
            settings,
            "delta",
            f"{CHANGED:.0%} of rows changed, and {2 * CHANGED:.0%} for a second consumer one round behind",
            [Contender(OURS, _Consumers(settings, store, 2).read)],
            [scan],
        )
        unchanged = race(
            settings,
            "delta",
            "nothing changed",
            [Contender(OURS, partial(_ours_unchanged, settings, store.table(tables.NAME)))],
            [Contender(EMPTY, partial(_empty_call, settings, known))],
        )
        return [*changed, *two, *unchanged]


class _Consumers:
    """Readers of one table: the first knows everything up to the last round, each other one a round less."""

    def __init__(self, settings: Settings, store: Any, num_consumers: int) -> None:
        self._settings, self._store, self._table = settings, store, store.table(tables.NAME)
        self._cursors = [_cursors(self._table) for _ in range(num_consumers)]

    def read(self, number: int) -> Figures:
        """Change rows, then give every consumer what it lacks."""
        settings = self._settings
        changed = _changed(settings, number)
        self._cursors = [_cursors(self._table), *self._cursors[:-1]]
        for at in range(0, len(changed), settings.batch):
            some = changed[at : at + settings.batch]
            grads = np.ones((len(some), settings.dim), np.float32)
            self._store.push({tables.NAME: (data.ids_of(settings, some), grads)})
        began_s, began_cpu_s = settings.now_s(), settings.cpu_s()
        num_bytes = 0
        for cursors in self._cursors:
            for chunk, incarnation, version in cursors:
                num_bytes += len(self._table.delta(chunk, incarnation, version))
        taken_s, taken_cpu_s = settings.now_s() - began_s, settings.cpu_s() - began_cpu_s
        assert num_bytes > len(self._cursors) * len(changed) * 8 * settings.dim
        return {"ms": taken_s * 1e3, f"{CPU}ms": taken_cpu_s * 1e3}


def _ours_unchanged(settings: Settings, table: Any, number: int) -> Figures:
    cursors = _cursors(table)
    began_s = settings.now_s()
    for chunk, incarnation, version in cursors:
        table.delta(chunk, incarnation, version)
    return {"us per chunk": (settings.now_s() - began_s) / len(cursors) * 1e6}


def _empty_call(settings: Settings, known: KnownRows, number: int) -> Figures:
    nothing, out = np.empty(0, np.uint64), np.empty((0, settings.dim), np.float32)
    began_s = settings.now_s()
    for _ in range(NUM_CHUNKS_DEFAULT):
        known.gather(nothing, out)
    return {"us per chunk": (settings.now_s() - began_s) / NUM_CHUNKS_DEFAULT * 1e6}


def _cursors(table: Any) -> list[tuple[int, int, int]]:
    """Chunk, incarnation and version of every chunk."""
    states = table.chunk_states()
    return list(zip(table.chunks, states.incarnations.tolist(), states.versions.tolist(), strict=True))


def _scan(settings: Settings, known: KnownRows) -> Contender:
    ids = data.ids_of(settings, np.arange(settings.rows, dtype=np.uint64))
    clock = count(1)
    versions = np.zeros(settings.rows, np.uint64)
    num_changed = len(_changed(settings, 0))
    ids_out = np.empty(num_changed, np.uint64)
    out = np.empty((num_changed, 2 * settings.dim), np.float32)

    def run(number: int) -> Figures:
        version = next(clock)
        versions[_changed(settings, number)] = version
        began_s = settings.now_s()
        found = known.changed(versions, ids, version - 1, ids_out, out)
        taken_s = settings.now_s() - began_s
        assert found == num_changed
        return {"ms": taken_s * 1e3}

    return Contender(SCAN, run)


def _changed(settings: Settings, number: int) -> np.ndarray:
    """The row numbers that change in a round; one of a hundred, at least one."""
    generator = np.random.default_rng((settings.seed, number + 1))
    return generator.choice(settings.rows, max(1, int(settings.rows * CHANGED)), replace=False)
