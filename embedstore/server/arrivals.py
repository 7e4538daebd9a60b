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
from embedstore.table import delta_info

if TYPE_CHECKING:
    from embedstore.server.intake import Holder
    from embedstore.v1 import sync_pb2


class Arrivals:
    """What has come from one leader; ``clock_ms`` is the wall clock."""

    def __init__(self, holder: Holder, clock_ms: Callable[[], int]) -> None:
        self._holder = holder
        self._clock_ms = clock_ms
        self._clocks_ms: dict[tuple[str, int], int] = {}
        self._fresh: list[tuple[str, int]] = []
        self._deltas: Counter[str] = Counter()
        self._probes: deque[Probe] = deque(maxlen=PROBES_MAX)

    def applied(self, table: str, chunk: int, delta: bytes) -> None:
        """One delta is visible now."""
        clock_ms = delta_info(delta).clock_ms
        self._deltas[table] += 1
        if clock_ms > self._clocks_ms.get((table, chunk), 0):
            self._clocks_ms[table, chunk] = clock_ms
            self._fresh.append((table, clock_ms))

    def dropped(self, table: str) -> None:
        """There is no such table any more."""
        self._clocks_ms = {key: clock_ms for key, clock_ms in self._clocks_ms.items() if key[0] != table}

    def came(self, sent_ms: int, *, measured: bool) -> None:
        """All of a message that the leader let go at ``sent_ms`` has been applied. The first copy is not ``measured``:
        it is as old as it is."""
        now_ms = self._clock_ms()
        if measured:
            for table, count in self._deltas.items():
                self._holder.freshness.observe_ms(PUBLISHED_TO_VISIBLE, table, now_ms - sent_ms, count)
            for table, clock_ms in self._fresh:
                self._holder.freshness.observe_ms(EVENT_TO_VISIBLE, table, now_ms - clock_ms)
        self._deltas.clear()
        self._fresh.clear()
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
