"""Looks at a few rows of a few requests, to measure how fresh rows are without costing requests much, or changing what
becomes of them.

At most one pull and one push of each table within ``INTERVAL_S`` are looked at, and ``IDS_MAX`` ids of it. Usable from
any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from embedstore.errors import TableNotFoundError, WrongShardError
from embedstore.freshness import EVENT_TO_TRAINED, SERVED_ROW_AGE, Probe
from embedstore.interface import TablePush
from embedstore.table_set import wall_clock_ms

if TYPE_CHECKING:
    from embedstore.table import Table
    from embedstore.table_set import TableSet

INTERVAL_S = 0.05
IDS_MAX = 16
TABLES_MAX = 1 << 12


class Sampler:
    """See the module; ``clock_ms`` is the wall clock, ``monotonic_s`` what intervals are measured with."""

    def __init__(
        self, *, clock_ms: Callable[[], int] = wall_clock_ms, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock_ms = clock_ms
        self._monotonic_s = monotonic_s
        self._due_s: dict[tuple[str, str], float] = {}

    def served(self, store: TableSet, table: Table, ids: np.ndarray) -> None:
        """These have been pulled from this table, which may be gone by now."""
        if len(ids) and self.is_due("pull", table.spec.name):
            self.observe_served(store, table, ids)

    def observe_served(self, store: TableSet, table: Table, ids: np.ndarray) -> None:
        """The same of ids that are due to be looked at."""
        name = table.spec.name
        seen = table.last_seen_s(ids[:IDS_MAX])
        now_ms = self._clock_ms()
        for seen_s in seen.tolist():
            store.freshness.observe_ms(SERVED_ROW_AGE, name, now_ms - 1000 * seen_s)

    def missing(self, store: TableSet, pushes: Mapping[str, TablePush]) -> dict[str, tuple[Table, np.ndarray]]:
        """Before a push: each table that is due, and some places of ids without a row in it."""
        found = {}
        for name, push in pushes.items():
            if len(push.ids) and self.is_due("push", name):
                first = np.asarray(push.ids[:IDS_MAX])
                try:
                    table = store.table(name)
                    places = np.flatnonzero(~table.contains(first))
                except (TableNotFoundError, WrongShardError):  # the push says what is wrong with it
                    continue
                if len(places):
                    found[name] = table, places
        return found

    def trained(
        self,
        store: TableSet,
        pushes: Mapping[str, TablePush],
        event_time_ms: int | None,
        missing: Mapping[str, tuple[Table, np.ndarray]],
    ) -> None:
        """After the push: how old its events are by now, and probes for the rows that it brought."""
        now_ms = self._clock_ms()
        for name, push in pushes.items():
            times_ms = push.event_times_ms
            oldest_ms = int(np.min(times_ms)) if times_ms is not None and len(times_ms) else event_time_ms
            if oldest_ms is None or not len(push.ids):
                continue
            store.freshness.observe_ms(EVENT_TO_TRAINED, name, now_ms - oldest_ms)
            if name not in missing:
                continue
            table, places = missing[name]
            ids = np.asarray(push.ids)[places]
            there = table.contains(ids)
            each = np.full(len(ids), oldest_ms) if times_ms is None else np.asarray(times_ms)[places]
            store.freshness.add_probes(
                Probe(name, int(id_), int(time_ms)) for id_, time_ms in zip(ids[there], each[there], strict=True)
            )

    def is_due(self, what: str, name: str) -> bool:
        """Whether to look at this "pull" or "push" of a table; then not again for a while."""
        now_s = self._monotonic_s()
        if now_s < self._due_s.get((what, name), 0.0):
            return False
        if len(self._due_s) >= TABLES_MAX:  # most of which are gone
            self._due_s.clear()
        self._due_s[what, name] = now_s + INTERVAL_S
        return True
