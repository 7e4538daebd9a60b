"""What float16 is to every reader: its own float32 rounded, bit for bit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from embedstore.interface import Reader

ROUNDED = {
    0.0: 0.0,
    1.0: 1.0,
    1 + 2**-11: 1.0,
    1 + 2**-11 + 2**-23: 1 + 2**-10,
    1 + 3 * 2**-11: 1 + 2**-9,
    65504.0: 65504.0,
    65519.99609375: 65504.0,
    65520.0: np.inf,
    3.4e38: np.inf,
    2**-14: 2**-14,
    2**-24: 2**-24,
    1.5 * 2**-24: 2**-23,
    2**-25 + 2**-40: 2**-24,
    2**-25: 0.0,
    2**-149: 0.0,
}
"""What a number becomes; with the other sign, the same with the other sign."""


def rounded_rows(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of :data:`ROUNDED` and their negatives as float32 rows, and what they are in float16."""
    exact, halves = (np.array(list(each), np.float64) for each in (ROUNDED, ROUNDED.values()))
    both = [np.concatenate([each, -each]) for each in (exact, halves)]
    num_rows = -(-len(both[0]) // dim)
    full, half = (np.resize(each, (num_rows, dim)) for each in both)
    return full.astype(np.float32), half.astype(np.float16)


def bits(rows: np.ndarray) -> Any:
    """What two arrays must have in common to be the same to the bit."""
    return rows.dtype, rows.shape, rows.tobytes()


def as_halves(rows: np.ndarray) -> np.ndarray:
    """Rounded by numpy."""
    with np.errstate(over="ignore"):
        return rows.astype(np.float16)


def check_halves(store: Reader, tables: dict[str, Any]) -> None:
    """float16 is float32 rounded, alone and with what is known of the rows, which the dtype does not change."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full, halves = store.pull(tables), store.pull(tables, dtype=np.float16)
        known, known_halves = store.pull(tables, meta=True), store.pull(tables, meta=True, dtype=np.float16)
    assert set(full) == set(halves) == set(known) == set(known_halves) == set(tables)
    for name in tables:
        expected = as_halves(full[name])
        assert bits(halves[name]) == bits(expected)
        assert halves[name].flags.writeable
        assert bits(known_halves[name].embeddings) == bits(expected)
        assert bits(known[name].embeddings) == bits(full[name])
        for column in ("found", "updates", "first_seen_s", "last_seen_s"):
            assert bits(getattr(known_halves[name], column)) == bits(getattr(known[name], column)), column
