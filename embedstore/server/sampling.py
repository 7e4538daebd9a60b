"""Looks at a few rows of a few pushes, to measure how fresh rows are without costing pushes much, or changing what
becomes of them; what is looked at of pulls, the store knows itself. Usable from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from embedstore.errors import TableNotFoundError, WrongShardError
from embedstore.freshness import EVENT_TO_TRAINED, SAMPLE_IDS_MAX, Probe
from embedstore.interface import TablePush
from embedstore.table_set import wall_clock_ms

if TYPE_CHECKING:
    from embedstore.table import Table
    from embedstore.table_set import TableSet


class Sampler:
    """See the module; ``clock_ms`` is the wall clock."""

    def __init__(self, *, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._clock_ms = clock_ms

    def missing(self, store: TableSet, pushes: Mapping[str, TablePush]) -> dict[str, tuple[Table, np.ndarray]]:
        """Before a push: each table that is due, and some places of ids without a row in it."""
        found = {}
        for name, push in pushes.items():
            if len(push.ids) and store.freshness.is_due(EVENT_TO_TRAINED, name):
                first = np.asarray(push.ids[:SAMPLE_IDS_MAX])
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
