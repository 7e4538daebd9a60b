"""Inputs: distinct ids, rows and batches of row numbers, all from the seed of the run. Needs NumPy alone, because the
worker processes of other libraries make the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

import numpy as np

from benchmarks.harness import Settings

LR = 0.05
ZIPF_EXPONENT = 1.05


def ids_of(settings: Settings, numbers: np.ndarray) -> np.ndarray:
    """The ids of rows by number, uint64: splitmix64's finalizer, a bijection, so distinct and without order."""
    x = numbers.astype(np.uint64) + np.uint64(settings.seed << 40)
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


def new_ids(settings: Settings) -> Iterator[np.ndarray]:
    """The ids of the rows in order, a batch at a time."""
    return (ids_of(settings, np.arange(part.start, part.stop, dtype=np.uint64)) for part in slices(settings))


def uniform_batches(settings: Settings, number: int) -> list[np.ndarray]:
    """Row numbers of round ``number``: uint64 [batch] each, uniform, equal ones possible."""
    generator = np.random.default_rng((settings.seed, number + 1))
    shape = (settings.batches_per_round, settings.batch)
    return list(generator.integers(0, settings.rows, shape, dtype=np.uint64))


def skewed_batches(settings: Settings, number: int, misses: float) -> list[np.ndarray]:
    """Row numbers with Zipf's frequencies (exponent 1.05), many equal ones; a share ``misses`` lies beyond the rows.

    The rank is drawn by inverting the integral of its density; how often a row occurs has nothing to do with where it
    lies.
    """
    generator = np.random.default_rng((settings.seed, number + 1))
    shape = (settings.batches_per_round, settings.batch)
    power = 1.0 - ZIPF_EXPONENT
    uniform = generator.random(shape)
    ranks = (1.0 + uniform * ((settings.rows + 1.0) ** power - 1.0)) ** (1.0 / power)
    step = next(
        step for step in range(settings.rows * 5 // 8 | 1, 2 * settings.rows + 2) if gcd(step, settings.rows) == 1
    )
    numbers = (np.minimum(ranks.astype(np.uint64) - np.uint64(1), np.uint64(settings.rows - 1))) * np.uint64(step)
    numbers %= np.uint64(settings.rows)
    missing = generator.random(shape) < misses
    numbers[missing] = generator.integers(settings.rows, 2 * settings.rows, int(missing.sum()), dtype=np.uint64)
    return list(numbers)


def distinct_batches(settings: Settings, number: int) -> list[np.ndarray]:
    """Uniform row numbers without equal ones in a batch."""
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
