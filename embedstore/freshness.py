"""How fresh rows are, as numbers: histograms of seconds by table, and probes that travel with the rows.

A push changes chunks, each once; lag is counted for each of these changes. Their way from the event: *trained* when a
shard has applied the push that it was part of, *published* when a delta with the change has been handed to a follower's
connection, *visible* when the follower answers with it. A probe is an id that has just got its first row; whoever
follows looks for it until it is there, which gives the time to first embedding as a reader sees it. Times are compared
across processes, so they are as exact as the clocks of producers, shards and followers agree; what would be negative
counts as 0. Everything may be called from any thread.

A delta carries all changes of a chunk since the one before. Of their times the first and the last are known, and their
number; the others are counted as if they lay evenly in between. So the histograms show what somebody would see who
waits for each change alone, and the stages' means add up to the whole.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

EVENT_TO_TRAINED = "event_to_trained_seconds"
TRAINED_TO_PUBLISHED = "trained_to_published_seconds"
PUBLISHED_TO_VISIBLE = "published_to_visible_seconds"
EVENT_TO_VISIBLE = "event_to_visible_seconds"
TIME_TO_FIRST_EMBEDDING = "time_to_first_embedding_seconds"
SERVED_ROW_AGE = "served_row_age_seconds"

MEANINGS = {
    EVENT_TO_TRAINED: "From the oldest event of a push to the moment when it had been applied.",
    TRAINED_TO_PUBLISHED: "From a change of a chunk to the moment when a delta with it was on a follower's call.",
    PUBLISHED_TO_VISIBLE: "From a change's leaving the leader to the moment when the follower answered with it.",
    EVENT_TO_VISIBLE: "From the event of a change of a chunk to the moment when a follower answered with it.",
    TIME_TO_FIRST_EMBEDDING: "From the event of the push that gave an id its row to a follower's answer with it.",
    SERVED_ROW_AGE: "From the last event of a row, to half a second, to a pull of it, of a sample of pulled rows.",
}
_SHORT_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
_LONG_S = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 21_600.0, 86_400.0)
BOUNDS_S = (*_SHORT_S, *_LONG_S)
PROBES_MAX = 256
SAMPLE_INTERVAL_S = 0.05
SAMPLE_IDS_MAX = 16
"""Requests are looked at so seldom, and so many ids of each, that it costs them little."""
SAMPLED_TABLES_MAX = 1 << 12


class Distribution(NamedTuple):
    """Counts of values by upper bound, the last of those above all; and the values' sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    def __add__(self, other: object) -> Distribution:
        """Over the bounds that both have: a process of another release may have others."""
        if not isinstance(other, Distribution):
            return NotImplemented
        common = [bound for bound in self.bounds if bound in other.bounds]
        counts = tuple(a + b for a, b in zip(self._over(common), other._over(common), strict=True))
        return Distribution(tuple(common), counts, self.total + other.total)

    def _over(self, bounds: Sequence[float]) -> list[int]:
        """Counts by some of the bounds."""
        counts = [0] * (len(bounds) + 1)
        for i, count in enumerate(self.counts):
            place = bisect_left(bounds, self.bounds[i]) if i < len(self.bounds) else len(bounds)
            counts[place] += count
        return counts

    @property
    def num_values(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """The value that this share of all lies at or below, interpolated between bounds; NaN when there are none and
        infinity above the last bound."""
        wanted = share * self.num_values
        if not self.num_values:
            return float("nan")
        below, low = 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= wanted:
                return low + (bound - low) * max(wanted - below, 0.0) / count
            below, low = below + count, bound
        return float("inf")


class Histogram:
    """Counts values; see :class:`Distribution`."""

    def __init__(self, bounds: Sequence[float] = BOUNDS_S) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, ``count`` times."""
        value = max(value, 0.0)
        at = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[at] += count
            self._total += value * count

    def observe_between(self, low: float, high: float, count: int) -> None:
        """Count values that lie evenly from the lowest to the highest, both included; one alone is the highest."""
        if count < 1:
            return
        low, high = max(min(low, high), 0.0), max(high, 0.0)
        first, last = bisect_left(self._bounds, low), bisect_left(self._bounds, high)
        if first == last or count == 1:
            self.observe(high if count == 1 else (low + high) / 2, count)
            return
        within = [int((bound - low) / (high - low) * (count - 1)) + 1 for bound in self._bounds[first:last]]
        with self._lock:
            for at, (end, begin) in enumerate(zip([*within, count], [0, *within], strict=True), first):
                self._counts[at] += end - begin
            self._total += (low + high) / 2 * count

    def read(self) -> Distribution:
        """What has been counted."""
        with self._lock:
            return Distribution(self._bounds, tuple(self._counts), self._total)


class Probe(NamedTuple):
    """An id whose first row has come from an event at ``event_time_ms``."""

    table: str
    id: int
    event_time_ms: int


class Freshness:
    """The histograms of one process, by measure and table, and its latest probes."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[str, str], Histogram] = {}
        self._lock = threading.Lock()
        self._probes: deque[Probe] = deque(maxlen=PROBES_MAX)
        self._last_probe = 0
        self._due_s: dict[tuple[str, str], float] = {}

    def observe_ms(self, measure: str, table: str, milliseconds: float, count: int = 1) -> None:
        """Count a time in milliseconds."""
        self._histogram(measure, table).observe(milliseconds / 1000, count)

    def observe_between_ms(self, measure: str, table: str, low_ms: float, high_ms: float, count: int) -> None:
        """Count times in milliseconds that lie evenly between two."""
        self._histogram(measure, table).observe_between(low_ms / 1000, high_ms / 1000, count)

    def _histogram(self, measure: str, table: str) -> Histogram:
        histogram = self._histograms.get((measure, table))
        if histogram is None:
            with self._lock:
                histogram = self._histograms.setdefault((measure, table), Histogram())
        return histogram

    def is_due(self, measure: str, table: str) -> bool:
        """Whether to look at this request for this measure; then not again for a while."""
        now_s = time.monotonic()
        if now_s < self._due_s.get((measure, table), 0.0):
            return False
        if len(self._due_s) >= SAMPLED_TABLES_MAX:  # most of which are gone
            self._due_s.clear()
        self._due_s[measure, table] = now_s + SAMPLE_INTERVAL_S
        return True

    def read(self) -> dict[tuple[str, str], Distribution]:
        """Everything by measure and table."""
        with self._lock:
            histograms = dict(self._histograms)
        return {key: histogram.read() for key, histogram in sorted(histograms.items())}

    def keep_tables(self, tables: Container[str]) -> None:
        """Forget what was measured of all others."""
        with self._lock:
            self._histograms = {key: each for key, each in self._histograms.items() if key[1] in tables}

    def add_probes(self, probes: Iterable[Probe]) -> None:
        """Have followers look for these; the oldest go when there are too many."""
        with self._lock:
            for probe in probes:
                self._probes.append(probe)
                self._last_probe += 1

    def probes_after(self, number: int) -> tuple[int, list[Probe]]:
        """The number of the last probe, and those after ``number`` that are still known."""
        if number == self._last_probe:
            return number, []
        with self._lock:
            count = min(self._last_probe - number, len(self._probes))
            return self._last_probe, list(self._probes)[len(self._probes) - count :]


def merge(parts: Iterable[Mapping[tuple[str, str], Distribution]]) -> dict[tuple[str, str], Distribution]:
    """Sums by measure and table."""
    merged: dict[tuple[str, str], Distribution] = {}
    for part in parts:
        for key, distribution in part.items():
            merged[key] = merged[key] + distribution if key in merged else distribution
    return dict(sorted(merged.items()))
