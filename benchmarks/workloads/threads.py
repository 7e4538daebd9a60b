"""Reading from two threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from time import perf_counter

import numpy as np

from benchmarks import data, tables
from benchmarks.harness import Contender, Figures, Line, Settings, race
from benchmarks.reference import KnownRows
from benchmarks.sizes import fitted
from benchmarks.workloads.pull import row_bytes

FIGURE = "million rows/s"
THREADS = 2
TABLE, GATHER = "Table.pull(out=)", "C++ gather"
Read = Callable[[np.ndarray, np.ndarray], object]


def threads(settings: Settings) -> list[Line]:
    """Two threads that pull, against one; the gather's speed-up beside ours is what the machine gives."""
    settings = fitted(settings, row_bytes)
    rows = data.some_rows(settings, settings.batch)
    with ExitStack() as stack:
        store = tables.filled(settings, tables.without_state(), rows)
        stack.callback(store.close)
        table = store.table(tables.NAME)
        known = stack.enter_context(KnownRows(settings.rows, settings.dim, settings.dim))
        known.fill(rows)
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))

        def read(wanted: np.ndarray, out: np.ndarray) -> None:
            table.pull(wanted, out=out)

        both: list[tuple[str, Read, bool]] = [(TABLE, read, True), (GATHER, known.gather, False)]
        ours, references, pairs = [], [], {}
        for name, call, by_id in both:
            ours.append(_contender(settings, pool, THREADS, name, call, by_id))
            references.append(_contender(settings, pool, 1, name, call, by_id))
            pairs[ours[-1].name] = [references[-1].name]
        budgets = {(FIGURE, _name(TABLE, 1)): 1.7}
        return race(
            settings, "threads", "uniform ids", ours, references, budgets=budgets, pairs=pairs, higher_is_better=True
        )


def _name(name: str, num_threads: int) -> str:
    return f"{name}, {num_threads} thread{'s' if num_threads > 1 else ''}"


def _contender(
    settings: Settings, pool: ThreadPoolExecutor, num_threads: int, name: str, call: Read, by_id: bool
) -> Contender:
    outs = [np.empty((settings.batch, settings.dim), np.float32) for _ in range(num_threads)]

    def work(batches: list[np.ndarray], out: np.ndarray) -> None:
        for batch in batches:
            call(batch, out)

    def run(number: int) -> Figures:
        batches = data.uniform_batches(settings, number)
        if by_id:
            batches = [data.ids_of(settings, numbers) for numbers in batches]
        begin_s = perf_counter()
        parts = [pool.submit(partial(work, batches[first::num_threads], out)) for first, out in enumerate(outs)]
        for part in parts:
            part.result()
        return {FIGURE: settings.rows_per_round / (perf_counter() - begin_s) / 1e6}

    return Contender(_name(name, num_threads), run)
