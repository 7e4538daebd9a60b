"""New ids, into a table that grows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import numpy as np

import embedstore as es
from benchmarks import data
from benchmarks.harness import Absent, Contender, Figures, Line, Settings, race
from benchmarks.reference import HashMap, absence

Write = Callable[[np.ndarray, np.ndarray], object]


def insert(settings: Settings) -> list[Line]:
    """New ids into a table that grows from nothing, by assign and by first push; mean and worst batch."""
    ids = data.all_ids(settings)
    rows = data.some_rows(settings, settings.batch)
    assigned: list[Contender | Absent] = [_map(settings, ids, rows, kind, settings.dim) for kind in _KINDS]
    pushed: list[Contender | Absent] = [_map(settings, ids, rows, kind, 2 * settings.dim) for kind in _KINDS]

    def assign(number: int) -> Figures:
        store = es.open(None, tables=[data.spec(settings, es.SGD(lr=data.LR))])
        try:
            return grow(settings, ids, rows, lambda new, values: store.assign("items", new, values))
        finally:
            store.close()

    def push(number: int) -> Figures:
        store = es.open(None, tables=[data.spec(settings)])
        try:
            return grow(settings, ids, rows, lambda new, values: store.push({"items": (new, values)}))
        finally:
            store.close()

    return [
        *race(
            settings,
            "insert",
            "assign of new ids",
            [Contender("Store.assign", assign)],
            assigned,
            limits={"ns/row": 250.0, "worst batch ms": 5.0},
            warm_up=False,
        ),
        *race(
            settings,
            "insert",
            "first push, Adagrad",
            [Contender("Store.push", push)],
            pushed,
            limits={"ns/row": 400.0},
            warm_up=False,
        ),
    ]


_KINDS: tuple[Literal["libcuckoo", "std::unordered_map"], ...] = ("libcuckoo", "std::unordered_map")


def grow(settings: Settings, ids: np.ndarray, rows: np.ndarray, write: Write) -> Figures:
    """Write every id once, a batch at a time."""
    seconds = []
    for part in data.slices(settings):
        values = rows[: part.stop - part.start]
        begin = settings.now_s()
        write(ids[part], values)
        seconds.append(settings.now_s() - begin)
    return {"ns/row": sum(seconds) / settings.rows * 1e9, "worst batch ms": max(seconds) * 1e3}


def _map(
    settings: Settings, ids: np.ndarray, rows: np.ndarray, kind: Literal["libcuckoo", "std::unordered_map"], width: int
) -> Contender | Absent:
    missing = absence(kind, width, settings.rows)
    if missing:
        return Absent(kind, missing)

    def run(number: int) -> Figures:
        with ExitStack() as stack:
            hash_map = stack.enter_context(HashMap(kind, width))
            return grow(settings, ids, rows, hash_map.assign)

    return Contender(kind, run)
