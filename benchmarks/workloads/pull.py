"""Reading rows in this process."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import embedstore as es
from benchmarks import data
from benchmarks.harness import Absent, Contender, Figures, Line, Settings, per_row_ns, race
from benchmarks.reference import HashMap, KnownRows, absence

GATHER = "C++ gather of known rows"
TORCH = "torch F.embedding, known rows"
BUDGETS = {("ns/row", GATHER): 1.7, ("ns/row", TORCH): 1.0}


def pull(settings: Settings) -> list[Line]:
    """Pull rows in this process, against rows whose place is known and a hash map."""
    torch.set_num_threads(1)
    ids = data.all_ids(settings)
    rows = data.some_rows(settings, settings.rows)
    store = es.open(None, tables=[data.spec(settings)])
    with ExitStack() as stack:
        stack.callback(store.close)
        known = stack.enter_context(KnownRows(settings.rows, settings.dim, settings.dim))
        known.fill(rows)
        for part in data.slices(settings):
            store.assign("items", ids[part], rows[part])
        references = [
            _gather(settings, known),
            _torch(settings, torch.from_numpy(rows)),
            _cuckoo(settings, ids, rows, stack),
        ]
        return race(settings, "pull", "in process", _ours(settings, store, ids), references, budgets=BUDGETS)


def _ours(settings: Settings, store: Any, ids: np.ndarray) -> list[Contender]:
    table = store.table("items")
    out = np.empty((settings.batch, settings.dim), np.float32)

    def through_store(number: int) -> Figures:
        batches = [ids[numbers] for numbers in data.uniform_batches(settings, number)]
        return {"ns/row": per_row_ns(settings, lambda wanted: store.pull({"items": wanted}), batches, _rows(settings))}

    def through_table(number: int) -> Figures:
        batches = [ids[numbers] for numbers in data.uniform_batches(settings, number)]
        return {"ns/row": per_row_ns(settings, lambda wanted: table.pull(wanted, out=out), batches, _rows(settings))}

    return [Contender("Store.pull", through_store), Contender("Table.pull(out=)", through_table)]


def _gather(settings: Settings, known: KnownRows) -> Contender:
    out = np.empty((settings.batch, settings.dim), np.float32)

    def run(number: int) -> Figures:
        batches = data.uniform_batches(settings, number)
        return {"ns/row": per_row_ns(settings, lambda numbers: known.gather(numbers, out), batches, _rows(settings))}

    return Contender(GATHER, run)


def _torch(settings: Settings, weight: torch.Tensor) -> Contender:
    def run(number: int) -> Figures:
        batches = [torch.from_numpy(numbers.view(np.int64)) for numbers in data.uniform_batches(settings, number)]
        with torch.no_grad():
            read = partial(functional.embedding, weight=weight)
            return {"ns/row": per_row_ns(settings, read, batches, _rows(settings))}

    return Contender(TORCH, run)


def _cuckoo(settings: Settings, ids: np.ndarray, rows: np.ndarray, stack: ExitStack) -> Contender | Absent:
    missing = absence("libcuckoo", settings.dim, settings.rows)
    if missing:
        return Absent("libcuckoo find and copy", missing)
    cuckoo = stack.enter_context(HashMap("libcuckoo", settings.dim))
    for part in data.slices(settings):
        cuckoo.assign(ids[part], rows[part])
    out = np.empty((settings.batch, settings.dim), np.float32)

    def run(number: int) -> Figures:
        batches = [ids[numbers] for numbers in data.uniform_batches(settings, number)]
        return {"ns/row": per_row_ns(settings, lambda wanted: cuckoo.find(wanted, out), batches, _rows(settings))}

    return Contender("libcuckoo find and copy", run)


def _rows(settings: Settings) -> int:
    return settings.batch * settings.batches_per_round
