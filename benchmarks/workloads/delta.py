"""What sync and checkpoints pay to find what changed."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

import embedstore as es
from benchmarks import data
from benchmarks.harness import Contender, Figures, Line, Settings, race
from benchmarks.reference import KnownRows
from embedstore.spec import NUM_CHUNKS_DEFAULT

SCAN = "C++ version scan and copy, one array"
EMPTY = "a ctypes call that does nothing"
CHANGED = 0.01
# The size that the budget is stated for.
ROWS_OF_LIMIT = 10_000_000


def delta(settings: Settings) -> list[Line]:
    """Deltas of all chunks after 1 % of the rows changed, and of unchanged chunks, against a plain scan and copy."""
    ids = data.all_ids(settings)
    rows = data.some_rows(settings, settings.batch)
    store = es.open(None, tables=[data.spec(settings)])
    with ExitStack() as stack:
        stack.callback(store.close)
        for part in data.slices(settings):
            store.assign("items", ids[part], rows[: part.stop - part.start])
        known = stack.enter_context(KnownRows(settings.rows, settings.dim, 2 * settings.dim))
        known.fill(np.zeros((1, settings.dim), np.float32))
        changed = race(
            settings,
            "delta",
            f"{CHANGED:.0%} of rows changed",
            [Contender("Table.delta of every chunk", partial(_ours_changed, settings, store, ids))],
            [_scan(settings, known, ids)],
            limits={"ms": 50.0} if settings.rows == ROWS_OF_LIMIT else None,
        )
        unchanged = race(
            settings,
            "delta",
            "nothing changed",
            [Contender("Table.delta of every chunk", partial(_ours_unchanged, settings, store.table("items")))],
            [Contender(EMPTY, partial(_empty_call, settings, known))],
        )
        return [*changed, *unchanged]


def _ours_changed(settings: Settings, store: Any, ids: np.ndarray, number: int) -> Figures:
    table = store.table("items")
    cursors = _cursors(table)
    changed = _changed(settings, number)
    for at in range(0, len(changed), settings.batch):
        some = changed[at : at + settings.batch]
        store.push({"items": (ids[some], np.ones((len(some), settings.dim), np.float32))})
    began_s = settings.now_s()
    num_bytes = sum(len(table.delta(chunk, incarnation, version)) for chunk, incarnation, version in cursors)
    taken_s = settings.now_s() - began_s
    assert num_bytes > len(changed) * 8 * settings.dim
    return {"ms": taken_s * 1e3}


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


def _scan(settings: Settings, known: KnownRows, ids: np.ndarray) -> Contender:
    versions = np.zeros(settings.rows, np.uint64)
    num_changed = len(_changed(settings, 0))
    ids_out = np.empty(num_changed, np.uint64)
    out = np.empty((num_changed, 2 * settings.dim), np.float32)

    def run(number: int) -> Figures:
        versions[_changed(settings, number)] = number + 2
        began_s = settings.now_s()
        found = known.changed(versions, ids, number + 1, ids_out, out)
        taken_s = settings.now_s() - began_s
        assert found == num_changed
        return {"ms": taken_s * 1e3}

    return Contender(SCAN, run)


def _changed(settings: Settings, number: int) -> np.ndarray:
    """The row numbers that change in a round; one of a hundred, at least one."""
    generator = np.random.default_rng((settings.seed, number + 1))
    return generator.choice(settings.rows, max(1, int(settings.rows * CHANGED)), replace=False)
