"""What sync and checkpoints pay to find what changed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

import embedstore as es
from benchmarks import data
from benchmarks.harness import Contender, Figures, Line, Settings, race
from benchmarks.reference import KnownRows

SCAN = "C++ version scan and copy, one array"
CHANGED = 0.01


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
        return race(
            settings,
            "delta",
            f"{CHANGED:.0%} of rows changed",
            [_ours(settings, store, ids)],
            [_scan(settings, known, ids)],
            limits={"ms": 50.0} if settings.rows == 10_000_000 else None,
        )


def _ours(settings: Settings, store: Any, ids: np.ndarray) -> Contender:
    table = store.table("items")

    def run(number: int) -> Figures:
        cursors = _cursors(table)
        changed = _changed(settings, number)
        for at in range(0, len(changed), settings.batch):
            some = changed[at : at + settings.batch]
            store.push({"items": (ids[some], np.ones((len(some), settings.dim), np.float32))})
        began = settings.now_s()
        num_bytes = sum(len(table.delta(chunk, incarnation, version)) for chunk, incarnation, version in cursors)
        changed_s = settings.now_s() - began
        assert num_bytes > len(changed) * 8 * settings.dim
        cursors = _cursors(table)
        began = settings.now_s()
        for chunk, incarnation, version in cursors:
            table.delta(chunk, incarnation, version)
        return {"ms": changed_s * 1e3, "us per unchanged chunk": (settings.now_s() - began) / len(cursors) * 1e6}

    return Contender("Table.delta of every chunk", run)


def _cursors(table: Any) -> list[tuple[int, int, int]]:
    """Chunk, incarnation and version of every chunk."""
    states = table.chunk_states()
    return list(zip(table.chunks, states.incarnations.tolist(), states.versions.tolist(), strict=True))


def _scan(settings: Settings, known: KnownRows, ids: np.ndarray) -> Contender:
    versions = np.zeros(settings.rows, np.uint64)
    num_changed = len(_changed(settings, 0))
    ids_out = np.empty(num_changed, np.uint64)
    out = np.empty((num_changed, 2 * settings.dim), np.float32)
    nothing = np.empty(0, np.uint64)

    def run(number: int) -> Figures:
        versions[_changed(settings, number)] = number + 2
        began = settings.now_s()
        found = known.changed(versions, ids, number + 1, ids_out, out)
        scanned_s = settings.now_s() - began
        assert found == num_changed
        began = settings.now_s()
        for _ in range(256):
            known.gather(nothing, out)
        return {"ms": scanned_s * 1e3, "us per unchanged chunk": (settings.now_s() - began) / 256 * 1e6}

    return Contender(SCAN, run)


def _changed(settings: Settings, number: int) -> np.ndarray:
    """The row numbers that change in a round; one of a hundred, at least one."""
    generator = np.random.default_rng((settings.seed, number + 1))
    return generator.choice(settings.rows, max(1, int(settings.rows * CHANGED)), replace=False)
