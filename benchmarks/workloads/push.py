"""Training rows in this process."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from typing import Any

import numpy as np
import torch

import embedstore as es
from benchmarks import data
from benchmarks.harness import Absent, Contender, Figures, Line, Settings, per_row_ns, race
from benchmarks.reference import HashMap, KnownRows, absence, lack_of_memory

KNOWN = "C++ Adagrad on known rows"
STREAM = "bench/push"
BUDGETS = {("ns/row", KNOWN): 1.5}


def push(settings: Settings) -> list[Line]:
    """Adagrad on existing rows, distinct ids, against known rows, torch sparse Adagrad and a hash map."""
    torch.set_num_threads(1)
    ids = data.all_ids(settings)
    grads = data.some_rows(settings, settings.batch)
    store = es.open(None, tables=[data.spec(settings)])
    with ExitStack() as stack:
        stack.callback(store.close)
        store.open_stream(STREAM, 0)
        known = stack.enter_context(KnownRows(settings.rows, settings.dim, 2 * settings.dim))
        known.fill(np.zeros((1, settings.dim), np.float32))
        for part in data.slices(settings):
            store.assign("items", ids[part], np.zeros((part.stop - part.start, settings.dim), np.float32))
        references = [_known(settings, known, grads), _torch(settings, grads), _cuckoo(settings, ids, grads, stack)]
        return race(
            settings, "push", "Adagrad, in process", _ours(settings, store, ids, grads), references, budgets=BUDGETS
        )


def _ours(settings: Settings, store: Any, ids: np.ndarray, grads: np.ndarray) -> list[Contender]:
    table = store.table("items")
    positions = count()

    def to_store(wanted: np.ndarray) -> None:
        at = next(positions)
        store.push({"items": (wanted, grads)}, origins=[es.Origin(STREAM, at, at + 1)], event_time_ms=at)

    def through_store(number: int) -> Figures:
        batches = [ids[numbers] for numbers in data.distinct_batches(settings, number)]
        return {"ns/row": per_row_ns(settings, to_store, batches, _rows(settings))}

    def through_table(number: int) -> Figures:
        batches = [ids[numbers] for numbers in data.distinct_batches(settings, number)]
        return {
            "ns/row": per_row_ns(settings, lambda wanted: table.push(wanted, grads, now_ms=0), batches, _rows(settings))
        }

    return [Contender("Store.push with origin", through_store), Contender("Table.push", through_table)]


def _known(settings: Settings, known: KnownRows, grads: np.ndarray) -> Contender:
    def run(number: int) -> Figures:
        batches = data.distinct_batches(settings, number)
        return {
            "ns/row": per_row_ns(
                settings, lambda numbers: known.adagrad(numbers, grads, data.LR), batches, _rows(settings)
            )
        }

    return Contender(KNOWN, run)


def _torch(settings: Settings, grads: np.ndarray) -> Contender | Absent:
    missing = lack_of_memory(8 * settings.rows * settings.dim)
    if missing:
        return Absent("torch sparse Adagrad", missing)
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    weight = torch.nn.Parameter(torch.zeros(settings.rows, settings.dim))
    optimizer = torch.optim.Adagrad([weight], lr=data.LR)
    values = torch.from_numpy(grads)

    def step(numbers: torch.Tensor) -> None:
        weight.grad = torch.sparse_coo_tensor(
            numbers[None], values, weight.shape, check_invariants=False, is_coalesced=False
        )
        optimizer.step()

    def run(number: int) -> Figures:
        batches = [torch.from_numpy(numbers.view(np.int64)) for numbers in data.distinct_batches(settings, number)]
        return {"ns/row": per_row_ns(settings, step, batches, _rows(settings))}

    return Contender("torch sparse Adagrad", run)


def _cuckoo(settings: Settings, ids: np.ndarray, grads: np.ndarray, stack: ExitStack) -> Contender | Absent:
    missing = absence("libcuckoo", 2 * settings.dim, settings.rows)
    if missing:
        return Absent("libcuckoo update", missing)
    cuckoo = stack.enter_context(HashMap("libcuckoo", 2 * settings.dim))
    for part in data.slices(settings):
        cuckoo.assign(ids[part], np.zeros((part.stop - part.start, settings.dim), np.float32))

    def run(number: int) -> Figures:
        batches = [ids[numbers] for numbers in data.distinct_batches(settings, number)]
        return {
            "ns/row": per_row_ns(
                settings, lambda wanted: cuckoo.adagrad(wanted, grads, data.LR), batches, _rows(settings)
            )
        }

    return Contender("libcuckoo update", run)


def _rows(settings: Settings) -> int:
    return settings.batch * settings.batches_per_round
