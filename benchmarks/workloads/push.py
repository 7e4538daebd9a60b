"""Training rows in this process: distinct ids that all have rows, one optimizer after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

import embedstore as es
from benchmarks import data, peers, tables
from benchmarks.harness import Absent, Contender, Figures, Line, Settings, per_row, race
from benchmarks.reference import HashMap, KnownRows, absence, keep_memory
from benchmarks.sizes import fitted, lack_of_memory

STREAM = "bench/push"
TIMES_MAX = 1.5
Step = Callable[[np.ndarray, np.ndarray], object]


@dataclass(frozen=True)
class _Kind:
    """One optimizer: ours, the floats of a known row at a dim, and its class in torch (None: it has none)."""

    name: str
    ours: es.Optimizer
    width: Callable[[int], int]
    torch_name: str | None

    @property
    def known(self) -> str:
        return f"C++ {self.name} on known rows"

    def row_bytes(self, dim: int) -> int:
        """What our table and the known rows take."""
        return 8 * self.width(dim) + tables.HEADER_BYTES


KINDS = (
    _Kind("Adagrad", es.Adagrad(lr=data.LR), lambda dim: 2 * dim, "Adagrad"),
    # The accumulator takes a cache line, so that every row begins with one.
    _Kind("row-wise Adagrad", es.RowwiseAdagrad(lr=data.LR), lambda dim: dim + 16, None),
    _Kind("Adam", es.Adam(lr=data.LR), lambda dim: 3 * dim, "SparseAdam"),
)


def push(settings: Settings) -> list[Line]:
    """Adagrad, row-wise Adagrad and Adam against the same on known rows, torch, a hash map and other libraries."""
    torch.set_num_threads(1)
    keep_memory()
    return [line for kind in KINDS for line in _race(settings, kind)]


def _race(settings: Settings, kind: _Kind) -> list[Line]:
    settings = fitted(settings, kind.row_bytes)
    grads = data.some_rows(settings, settings.batch)
    with ExitStack() as stack:
        store = tables.filled(settings, kind.ours)
        stack.callback(store.close)
        store.open_stream(STREAM, 0)
        known = stack.enter_context(KnownRows(settings.rows, settings.dim, kind.width(settings.dim)))
        known.fill(np.zeros((settings.batch, settings.dim), np.float32))
        references: list[Contender | Absent] = [_known(settings, kind, known, grads)]
        if kind.torch_name is not None:
            references.append(_torch(settings, kind, grads))
        if kind.name == "Adagrad":
            references.append(_cuckoo(settings, grads, stack))
        references += peers.contenders(settings, f"push {kind.name}", stack)
        ours = _ours(settings, store, grads)
        budgets = {("ns/row", kind.known): TIMES_MAX}
        return race(settings, "push", f"{kind.name}, in process", ours, references, budgets=budgets)


def _ours(settings: Settings, store: Any, grads: np.ndarray) -> list[Contender]:
    table = store.table(tables.NAME)
    positions = count()

    def to_store(wanted: np.ndarray) -> None:
        at = next(positions)
        store.push({tables.NAME: (wanted, grads)}, origins=[es.Origin(STREAM, at, at + 1)], event_time_ms=at)

    def contender(name: str, call: Callable[[np.ndarray], object]) -> Contender:
        def run(number: int) -> Figures:
            batches = [data.ids_of(settings, numbers) for numbers in data.distinct_batches(settings, number)]
            return per_row(settings, call, batches)

        return Contender(name, run)

    return [
        contender("Store.push with origin", to_store),
        contender("Table.push", lambda wanted: table.push(wanted, grads, now_ms=0)),
    ]


def _known(settings: Settings, kind: _Kind, known: KnownRows, grads: np.ndarray) -> Contender:
    steps = count(1)
    calls: dict[str, Callable[[np.ndarray], object]] = {
        "Adagrad": lambda numbers: known.adagrad(numbers, grads, data.LR),
        "row-wise Adagrad": lambda numbers: known.rowwise_adagrad(numbers, grads, data.LR),
        "Adam": lambda numbers: known.adam(numbers, grads, data.LR, next(steps)),
    }

    def run(number: int) -> Figures:
        return per_row(settings, calls[kind.name], data.distinct_batches(settings, number))

    return Contender(kind.known, run)


def _torch(settings: Settings, kind: _Kind, grads: np.ndarray) -> Contender | Absent:
    name = f"torch sparse {kind.name}"
    missing = lack_of_memory(4 * settings.rows * kind.width(settings.dim))
    if missing:
        return Absent(name, missing)
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    weight = torch.nn.Parameter(torch.zeros(settings.rows, settings.dim))
    optimizer = getattr(torch.optim, kind.torch_name or "")([weight], lr=data.LR)
    values = torch.from_numpy(grads)

    def step(numbers: torch.Tensor) -> None:
        weight.grad = torch.sparse_coo_tensor(
            numbers[None], values, weight.shape, check_invariants=False, is_coalesced=False
        )
        optimizer.step()

    def run(number: int) -> Figures:
        batches = [torch.from_numpy(numbers.view(np.int64)) for numbers in data.distinct_batches(settings, number)]
        return per_row(settings, step, batches)

    return Contender(name, run)


def _cuckoo(settings: Settings, grads: np.ndarray, stack: ExitStack) -> Contender | Absent:
    missing = absence("libcuckoo", 2 * settings.dim, settings.rows)
    if missing:
        return Absent("libcuckoo update", missing)
    cuckoo = stack.enter_context(HashMap("libcuckoo", 2 * settings.dim))
    zeros = np.zeros((settings.batch, settings.dim), np.float32)
    for ids in data.new_ids(settings):
        cuckoo.assign(ids, zeros[: len(ids)])

    def run(number: int) -> Figures:
        batches = [data.ids_of(settings, numbers) for numbers in data.distinct_batches(settings, number)]
        return per_row(settings, lambda wanted: cuckoo.adagrad(wanted, grads, data.LR), batches)

    return Contender("libcuckoo update", run)
