"""Our side of the workloads in this process: stores with one filled table."""

from __future__ import annotations

from typing import Any

import numpy as np

import embedstore as es
from benchmarks import data
from benchmarks.harness import Settings

NAME = "items"
HEADER_BYTES = 64
"""More than a row of ours takes besides its floats."""


def spec(settings: Settings, optimizer: es.Optimizer | None = None, **more: Any) -> es.TableSpec:
    """The table of a workload."""
    optimizer = optimizer or es.Adagrad(lr=data.LR)
    return es.TableSpec(NAME, dim=settings.dim, optimizer=optimizer, init=es.Uniform(0.01, seed=1), **more)


def filled(settings: Settings, optimizer: es.Optimizer | None = None, rows: np.ndarray | None = None) -> Any:
    """A store in memory whose table holds every row: ``rows`` over and over again, float32 [batch, dim], else zeros."""
    store = es.open(None, tables=[spec(settings, optimizer)])
    values = np.zeros((settings.batch, settings.dim), np.float32) if rows is None else rows
    for ids in data.new_ids(settings):
        store.assign(NAME, ids, values[: len(ids)])
    return store


def without_state() -> es.Optimizer:
    """The optimizer of tables that are only read or assigned."""
    return es.SGD(lr=data.LR)
