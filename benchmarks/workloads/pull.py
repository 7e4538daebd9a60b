"""Reading rows in this process.

Two ways, each compared with its like: into a new array every time, as a training loop does, and into one that is used
again. New arrays cost everyone the same: malloc keeps their memory, so no page is faulted in twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import data, peers, tables
from benchmarks.harness import Absent, Contender, Figures, Line, Settings, per_row, race
from benchmarks.reference import HashMap, KnownRows, absence, keep_memory
from benchmarks.sizes import fitted, lack_of_memory

GATHER = "C++ gather of known rows"
GATHER_NEW = f"{GATHER}, new array"
TORCH = "torch F.embedding, known rows"
TORCH_HUGE = f"{TORCH} on huge pages"
TORCH_OUT = "torch.index_select(out=), known rows on huge pages"
CUCKOO = "libcuckoo find and copy"
STORE, TABLE, TABLE_OUT = "Store.pull", "Table.pull", "Table.pull(out=)"
BUDGETS = {
    ("ns/row", GATHER): 1.7,
    ("ns/row", GATHER_NEW): 1.7,
    ("ns/row", TORCH): 1.0,
    ("ns/row", TORCH_HUGE): 1.0,
}
Pull = Callable[[np.ndarray], object]


def row_bytes(dim: int) -> int:
    """What our table and the gather's rows take."""
    return 8 * dim + tables.HEADER_BYTES


def pull(settings: Settings) -> list[Line]:
    """Pull rows in this process, against rows whose place is known, a hash map and other libraries."""
    torch.set_num_threads(1)
    keep_memory()
    settings = fitted(settings, row_bytes)
    rows = data.some_rows(settings, settings.batch)
    with ExitStack() as stack:
        store = tables.filled(settings, tables.without_state(), rows)
        stack.callback(store.close)
        known = stack.enter_context(KnownRows(settings.rows, settings.dim, settings.dim))
        known.fill(rows)
        new = [*_torch(settings, known, rows), by_number(settings, GATHER_NEW, partial(_gather_new, settings, known))]
        new += peers.contenders(settings, "pull", stack)
        reused = [*_known_out(settings, known), _cuckoo(settings, rows, stack)]
        pairs = {STORE: [one.name for one in new], TABLE: [one.name for one in new]}
        pairs[TABLE_OUT] = [one.name for one in reused]
        ours = our_pulls(settings, store)
        return race(settings, "pull", "uniform ids", ours, [*new, *reused], budgets=BUDGETS, pairs=pairs)


def our_pulls(
    settings: Settings, store: Any, batches: Callable[[int], list[np.ndarray]] | None = None
) -> list[Contender]:
    """The three ways to pull; ``batches(round)`` gives row numbers (default: uniform ones)."""
    table = store.table(tables.NAME)
    out = np.empty((settings.batch, settings.dim), np.float32)
    draw = batches or partial(data.uniform_batches, settings)

    def contender(name: str, call: Pull) -> Contender:
        def run(number: int) -> Figures:
            return per_row(settings, call, [data.ids_of(settings, numbers) for numbers in draw(number)])

        return Contender(name, run)

    return [
        contender(STORE, lambda wanted: store.pull({tables.NAME: wanted})),
        contender(TABLE, table.pull),
        contender(TABLE_OUT, lambda wanted: table.pull(wanted, out=out)),
    ]


def by_number(settings: Settings, name: str, call: Pull) -> Contender:
    """A contender that is told the numbers of the rows."""

    def run(number: int) -> Figures:
        return per_row(settings, call, data.uniform_batches(settings, number))

    return Contender(name, run)


def _gather_new(settings: Settings, known: KnownRows, numbers: np.ndarray) -> None:
    known.gather(numbers, np.empty((settings.batch, settings.dim), np.float32))


def _known_out(settings: Settings, known: KnownRows) -> list[Contender | Absent]:
    out = np.empty((settings.batch, settings.dim), np.float32)
    weight, out_torch = torch.from_numpy(known.rows), torch.from_numpy(out)

    def select(numbers: np.ndarray) -> None:
        torch.index_select(weight, 0, torch.from_numpy(numbers.view(np.int64)), out=out_torch)

    return [
        by_number(settings, GATHER, lambda numbers: known.gather(numbers, out)),
        by_number(settings, TORCH_OUT, select),
    ]


def _torch(settings: Settings, known: KnownRows, rows: np.ndarray) -> list[Contender | Absent]:
    """Rows in memory that torch allocated, as an nn.Embedding has them, and in the gather's huge pages."""

    def contender(name: str, weight: torch.Tensor) -> Contender:
        def read(numbers: np.ndarray) -> None:
            functional.embedding(torch.from_numpy(numbers.view(np.int64)), weight)

        return by_number(settings, name, read)

    huge = contender(TORCH_HUGE, torch.from_numpy(known.rows))
    missing = lack_of_memory(4 * settings.rows * settings.dim)
    if missing:
        return [Absent(TORCH, missing), huge]
    weight = torch.empty(settings.rows, settings.dim)
    for part in data.slices(settings):
        weight[part] = torch.from_numpy(rows[: part.stop - part.start])
    return [contender(TORCH, weight), huge]


def _cuckoo(settings: Settings, rows: np.ndarray, stack: ExitStack) -> Contender | Absent:
    missing = absence("libcuckoo", settings.dim, settings.rows)
    if missing:
        return Absent(CUCKOO, missing)
    cuckoo = stack.enter_context(HashMap("libcuckoo", settings.dim))
    for ids in data.new_ids(settings):
        cuckoo.assign(ids, rows[: len(ids)])
    out = np.empty((settings.batch, settings.dim), np.float32)

    def run(number: int) -> Figures:
        batches = [data.ids_of(settings, numbers) for numbers in data.uniform_batches(settings, number)]
        return per_row(settings, lambda wanted: cuckoo.find(wanted, out), batches)

    return Contender(CUCKOO, run)
