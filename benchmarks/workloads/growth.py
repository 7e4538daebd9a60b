"""What size costs: the same work on a small and on a large table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from benchmarks import data, tables
from benchmarks.harness import Contender, Figures, Line, Settings, per_row, race
from benchmarks.reference import KnownRows
from benchmarks.sizes import fitted

BASE_ROWS = 1_000_000
TIMES_MAX = 1.6
Draw = Callable[[Settings, int], list[np.ndarray]]


def growth(settings: Settings) -> list[Line]:
    """Pull and push with Adagrad on all rows, against the same on a million (a quarter when there are no more)."""
    base_rows = BASE_ROWS if settings.rows > BASE_ROWS else max(settings.batch, settings.rows // 4)
    large = fitted(
        settings, lambda dim: (12 * dim + tables.HEADER_BYTES) * (settings.rows + base_rows) // settings.rows
    )
    small = replace(large, rows=base_rows)
    with ExitStack() as stack:
        ours = [*_of_table(large, stack), _of_gather(large, stack)]
        references = [*_of_table(small, stack), _of_gather(small, stack)]
        pairs = {mine.name: [theirs.name] for mine, theirs in zip(ours, references, strict=True)}
        budgets = {("ns/row", theirs.name): TIMES_MAX for theirs in references[:2]}
        case = f"{large.rows:,} rows against {small.rows:,}"
        return race(large, "growth", case, ours, references, budgets=budgets, pairs=pairs)


def _of_table(settings: Settings, stack: ExitStack) -> list[Contender]:
    store = tables.filled(settings)
    stack.callback(store.close)
    table = store.table(tables.NAME)
    out = np.empty((settings.batch, settings.dim), np.float32)
    grads = data.some_rows(settings, settings.batch)

    def contender(name: str, call: Callable[[np.ndarray], object], draw: Draw) -> Contender:
        def run(number: int) -> Figures:
            return per_row(settings, call, [data.ids_of(settings, numbers) for numbers in draw(settings, number)])

        return Contender(f"{name}, {settings.rows:,} rows", run)

    return [
        contender("Table.pull(out=)", lambda wanted: table.pull(wanted, out=out), data.uniform_batches),
        contender("Table.push, Adagrad", lambda wanted: table.push(wanted, grads, now_ms=0), data.distinct_batches),
    ]


def _of_gather(settings: Settings, stack: ExitStack) -> Contender:
    known = stack.enter_context(KnownRows(settings.rows, settings.dim, settings.dim))
    known.fill(data.some_rows(settings, settings.batch))
    out = np.empty((settings.batch, settings.dim), np.float32)

    def run(number: int) -> Figures:
        return per_row(settings, lambda numbers: known.gather(numbers, out), data.uniform_batches(settings, number))

    return Contender(f"C++ gather of known rows, {settings.rows:,} rows", run)
