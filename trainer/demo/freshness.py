"""Measures time to first embedding from outside: asks the serving follower for new items until it returns their rows.

A thread of its own asks every ``interval_s`` about the items whose first event is over and whose row has not been
seen, so a measured wait is at most that much (and one answer) too long, never too short.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from embedstore.errors import UnavailableError
from embedstore.interface import Reader
from trainer.demo.result import Sight

INTERVAL_S = 0.02
ASK_MAX = 8192


class FreshnessProbe:
    """Waits for rows of one table on one follower. Every method may be called from any thread."""

    def __init__(
        self,
        reader: Reader,
        table: str,
        *,
        interval_s: float = INTERVAL_S,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._reader = reader
        self._table = table
        self._interval_s = interval_s
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._ids = np.empty(0, np.uint64)
        self._times_s = np.empty(0, np.float64)
        self._seen: list[tuple[float, float]] = []
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="freshness", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def expect(self, ids: np.ndarray, times_s: np.ndarray) -> None:
        """Watch for new items: uint64 [n] and the wall time of each one's first event, which may lie ahead."""
        with self._lock:
            ids = np.concatenate([self._ids, np.asarray(ids, np.uint64)])
            times_s = np.concatenate([self._times_s, np.asarray(times_s, np.float64)])
            order = np.argsort(times_s, kind="stable")
            self._ids, self._times_s = ids[order], times_s[order]

    def waiting(self) -> int:
        """How many items had their first event and have no row at the follower yet."""
        with self._lock:
            return int(np.searchsorted(self._times_s, self._clock_s(), side="right"))

    def sights(self, start_s: float) -> list[Sight]:
        """What has been seen, in the order of seeing; times count from ``start_s``. Raises what stopped the thread."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            return [Sight(first - start_s, wait) for first, wait in self._seen]

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended by itself, which it does only after a failure."""
        self._thread.join(timeout_s)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._interval_s):
                self._ask()
        except Exception as error:  # handed to whoever asks for the sights
            with self._lock:
                self._failure = error

    def _ask(self) -> None:
        with self._lock:
            due = int(np.searchsorted(self._times_s, self._clock_s(), side="right"))
            ids = self._ids[: min(due, ASK_MAX)]
        if ids.size == 0:
            return
        try:
            found = self._reader.contains(self._table, ids)
        except (UnavailableError, LookupError):
            return  # the follower has not heard of the table, or is away: the items go on waiting
        now_s = self._clock_s()
        with self._lock:
            known = np.zeros(self._ids.size, bool)
            known[: ids.size] = self._ids[: ids.size] == ids
            known[: ids.size] &= found
            self._seen += [(first, now_s - first) for first in self._times_s[known].tolist()]
            self._ids, self._times_s = self._ids[~known], self._times_s[~known]
