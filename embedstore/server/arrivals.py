"""Measures how old what a follower was sent is when it can answer with it.

Belongs to the thread of one leader's intake. What it remembers is bounded by the number of chunks and of probes. Ids
that are not held here, as a standby of a part of its leader gets to hear of, are not looked for.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from embedstore.errors import TableNotFoundError
from embedstore.freshness import (
    EVENT_TO_VISIBLE,
    PROBES_MAX,
    PUBLISHED_TO_VISIBLE,
    TIME_TO_FIRST_EMBEDDING,
    Probe,
)
from embedstore.placement import chunks_of_ids

if TYPE_CHECKING:
    from embedstore.deltas import DeltaInfo
    from embedstore.server.intake import Holder
    from embedstore.table import Table
    from embedstore.v1 import sync_pb2


class Arrivals:
    """What has come from one leader; ``clock_ms`` is the wall clock."""

    def __init__(self, holder: Holder, clock_ms: Callable[[], int]) -> None:
        self._holder = holder
        self._clock_ms = clock_ms
        self._changes: Counter[str] = Counter()
        self._events: Counter[tuple[str, int, int]] = Counter()
        self._probes: deque[Probe] = deque(maxlen=PROBES_MAX)

    def applied(self, table: Table, delta: DeltaInfo, part: sync_pb2.DeltaPart) -> None:
        """One delta, of which this was the last part, is visible now."""
        oldest_ms, newest_ms = part.oldest_event_ms, part.newest_event_ms
        table.changes.add(self._clock_ms(), oldest_ms, newest_ms)
        self._changes[part.table] += delta.num_changes
        if oldest_ms > 0:
            self._events[part.table, oldest_ms, newest_ms] += delta.num_changes

    def came(self, sent_ms: int, *, measured: bool) -> None:
        """All of a message that the leader let go at ``sent_ms`` has been applied. The first copy is not ``measured``:
        it is as old as it is."""
        now_ms = self._clock_ms()
        if measured:
            freshness = self._holder.freshness
            for table, count in self._changes.items():
                freshness.observe_ms(PUBLISHED_TO_VISIBLE, table, now_ms - sent_ms, count)
            for (table, oldest_ms, newest_ms), count in self._events.items():
                freshness.observe_between_ms(EVENT_TO_VISIBLE, table, now_ms - newest_ms, now_ms - oldest_ms, count)
        self._changes.clear()
        self._events.clear()
        self._look()

    def look_for(self, message: sync_pb2.Probes) -> None:
        """Measure when these ids have rows here, and have those who follow from here do the same."""
        self._probes.extend(Probe(each.table, each.id, each.event_time_ms) for each in message.probes)
        self._look()

    def _look(self) -> None:
        if not self._probes:
            return
        waiting: defaultdict[str, list[Probe]] = defaultdict(list)
        for probe in self._probes:
            waiting[probe.table].append(probe)
        self._probes.clear()
        for name, announced in waiting.items():
            try:
                table = self._holder.table(name)
            except TableNotFoundError:
                continue
            chunks = chunks_of_ids(np.array([probe.id for probe in announced], np.uint64), table.spec.num_chunks)
            probes = [probe for probe, chunk in zip(announced, chunks.tolist(), strict=True) if chunk in table.chunks]
            found = table.contains(np.array([probe.id for probe in probes], np.uint64))
            now_ms = self._clock_ms()
            there = [probe for probe, is_there in zip(probes, found.tolist(), strict=True) if is_there]
            self._probes.extend(probe for probe in probes if probe not in there)
            for probe in there:
                self._holder.freshness.observe_ms(TIME_TO_FIRST_EMBEDDING, name, now_ms - probe.event_time_ms)
            self._holder.freshness.add_probes(there)
