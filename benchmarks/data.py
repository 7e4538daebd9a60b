"""Inputs: distinct ids, rows and batches of row numbers, all from the seed of the run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import embedstore as es
from benchmarks.harness import Settings

LR = 0.05


def all_ids(settings: Settings) -> np.ndarray:
    """uint64 [rows], distinct and without order: a bijection (splitmix64's finalizer) of consecutive numbers."""
    x = np.arange(settings.rows, dtype=np.uint64) + np.uint64(settings.seed << 40)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def some_rows(settings: Settings, num_rows: int) -> np.ndarray:
    """float32 [num_rows, dim], small."""
    generator = np.random.default_rng(settings.seed)
    return generator.standard_normal((num_rows, settings.dim), dtype=np.float32) * np.float32(0.01)


def slices(settings: Settings) -> Iterator[slice]:
    """The rows in order, a batch at a time."""
    return (slice(at, min(at + settings.batch, settings.rows)) for at in range(0, settings.rows, settings.batch))


def uniform_batches(settings: Settings, number: int) -> list[np.ndarray]:
    """Row numbers of round ``number``: uint64 [batch] each, uniform, equal ones possible."""
    generator = np.random.default_rng((settings.seed, number + 1))
    shape = (settings.batches_per_round, settings.batch)
    return list(generator.integers(0, settings.rows, shape, dtype=np.uint64))


def distinct_batches(settings: Settings, number: int) -> list[np.ndarray]:
    """The same without equal row numbers in a batch."""
    generator = np.random.default_rng((settings.seed, number + 1))
    size = settings.batch
    chosen: list[np.ndarray] = []
    while len(chosen) < settings.batches_per_round:
        drawn = generator.integers(0, settings.rows, 2 * size, dtype=np.uint64)
        first = np.sort(np.unique(drawn, return_index=True)[1])
        if len(first) < size:
            drawn = generator.permutation(settings.rows).astype(np.uint64)
            first = np.arange(size)
        chosen.append(np.ascontiguousarray(drawn[first[:size]]))
    return chosen


def spec(settings: Settings, optimizer: es.Optimizer | None = None) -> es.TableSpec:
    """The table of a workload."""
    return es.TableSpec(
        "items", dim=settings.dim, optimizer=optimizer or es.Adagrad(lr=LR), init=es.Uniform(0.01, seed=1)
    )
