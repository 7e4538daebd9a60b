"""Rows that a reader was given lately, so that hot ones are not asked for again and again.

Two generations: rows come into the young one; every half ``max_age_ms`` it becomes the old one, and what was old is
gone. So no row is served that came longer ago than ``max_age_ms``, without a time for each, and a row that is used all
the time is asked for once in a while. Both generations are native tables, found and copied as fast as any; together
they hold ``rows_max`` rows of each table. Rows of float16 are kept apart from those of float32, at half the size, and
have room of their own. Usable from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from embedstore.errors import InvalidArgumentError
from embedstore.rules import SGD, Zeros
from embedstore.spec import TableSpec
from embedstore.table import Table

ROWS_MAX = 1 << 18
AGE_MS_MAX = 3_600_000
_CHUNKS = 64
FLOAT32 = np.dtype(np.float32)


class RowCache:
    """See the module. ``monotonic_ms`` is the clock that ages are measured with."""

    def __init__(
        self,
        max_age_ms: int,
        rows_max: int = ROWS_MAX,
        monotonic_ms: Callable[[], float] = lambda: time.monotonic() * 1000,
    ) -> None:
        if isinstance(max_age_ms, bool) or not isinstance(max_age_ms, int) or not 1 <= max_age_ms <= AGE_MS_MAX:
            raise InvalidArgumentError("max_age_ms", f"must be in [1, {AGE_MS_MAX}], not {max_age_ms!r}")
        if isinstance(rows_max, bool) or not isinstance(rows_max, int) or rows_max < 2:
            raise InvalidArgumentError("cache_rows_max", f"must be at least 2, not {rows_max!r}")
        self._half_ms = max_age_ms / 2
        self._rows_max = rows_max
        self._monotonic_ms = monotonic_ms
        self._tables: dict[tuple[str, np.dtype[Any]], _Generations] = {}
        self._lock = threading.Lock()

    def found(self, spec: TableSpec, ids: np.ndarray, dtype: np.dtype[Any] = FLOAT32) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n, dim] of distinct ids, and which are here, bool [n]; what is not is left undefined."""
        return self._of(spec, dtype).found(ids)

    def keep(self, spec: TableSpec, asked_ms: float, ids: np.ndarray, rows: np.ndarray) -> None:
        """These were answered to a question of that time, by :meth:`now_ms`."""
        self._of(spec, rows.dtype).keep(asked_ms, ids, rows)

    def now_ms(self) -> float:
        """The time to remember before asking."""
        return self._monotonic_ms()

    def _of(self, spec: TableSpec, dtype: np.dtype[Any] = FLOAT32) -> _Generations:
        key = spec.name, dtype
        with self._lock:
            known = self._tables.get(key)
            now_ms = self._monotonic_ms()
            if known is None or known.spec != spec:
                self._tables = {other: each for other, each in self._tables.items() if not each.is_past(now_ms)}
                known = self._tables[key] = _Generations(spec, dtype, self._half_ms, self._rows_max)
            known.turn(now_ms)
            return known


class _Generations:
    """The young and the old rows of one table, in one dtype."""

    def __init__(self, spec: TableSpec, dtype: np.dtype[Any], half_ms: float, rows_max: int) -> None:
        self.spec = spec
        self._dtype = dtype
        self._half_ms = half_ms
        self._rows_max = rows_max // 2
        self._kept = TableSpec(spec.name, spec.dim, optimizer=SGD(1.0), init=Zeros(), num_chunks=_CHUNKS)
        self._lock = threading.Lock()
        self._young, self._old = self._empty(), self._empty()
        self._began_ms: float | None = None

    def turn(self, now_ms: float) -> None:
        """Let go of what is too old by now."""
        with self._lock:
            if self._began_ms is None:
                self._began_ms = now_ms
            turns = int((now_ms - self._began_ms) / self._half_ms)
            if turns >= 1:
                self._old = self._young if turns == 1 else self._empty()
                self._young = self._empty()
                self._began_ms += turns * self._half_ms

    def is_past(self, now_ms: float) -> bool:
        """Whether all of it is too old."""
        return self._began_ms is not None and now_ms - self._began_ms >= 2 * self._half_ms

    def found(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            young, old = self._young, self._old
        rows = young.pull_rows(ids, dtype=self._dtype)
        missing = np.flatnonzero(~rows.found)
        if len(missing) and len(old):
            older = old.pull_rows(ids[missing], dtype=self._dtype)
            there = missing[older.found]
            rows.embeddings[there] = older.embeddings[older.found]
            rows.found[there] = True
        return rows.embeddings, rows.found

    def keep(self, asked_ms: float, ids: np.ndarray, rows: np.ndarray) -> None:
        finite = np.isfinite(rows).all(axis=1)  # a row that has overflowed is asked for each time: tables take none
        if not finite.all():
            ids, rows = ids[finite], rows[finite]
        with self._lock:
            # An answer that took so long would be too old here before it goes.
            if self._began_ms is None or asked_ms < self._began_ms:
                return
            room = self._rows_max - len(self._young)
            if room > 0:
                self._young.assign(ids[:room], rows[:room], now_ms=0)

    def _empty(self) -> Table:
        return Table(self._kept, embeddings_only=True, rows="fp32" if self._dtype == FLOAT32 else "fp16")


def check_cache(max_age_ms: Any, rows_max: Any) -> RowCache | None:
    """The cache that was asked for; None: none was."""
    return None if max_age_ms is None else RowCache(max_age_ms, ROWS_MAX if rows_max is None else rows_max)
