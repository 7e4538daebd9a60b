"""When a table changed lately, and how old the events were that changed it.

What is asked is always "since that moment": a follower's lag is measured from there. All the time that the table has
lived is remembered, in a bounded number of spans: the further back, the longer they are, each up to a small part of its
own age. So a time that is given is never too late, and hardly too early.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

SPAN_MS = 5
SPANS_MAX = 1024
PART = 32
"""A span is at most this part of its age long, or ``SPAN_MS``."""


class Span(NamedTuple):
    """First and last of some changes, and the oldest and newest of their events, in unix milliseconds; an event's time
    is 0 when none is known."""

    first_ms: int
    last_ms: int
    oldest_event_ms: int = 0
    newest_event_ms: int = 0

    def joined(self, other: Span) -> Span:
        """What holds both."""
        return Span(
            min(self.first_ms, other.first_ms),
            max(self.last_ms, other.last_ms),
            min(self.oldest_event_ms or other.oldest_event_ms, other.oldest_event_ms or self.oldest_event_ms),
            max(self.newest_event_ms, other.newest_event_ms),
        )


class Changes:
    """The changes of one table. Any thread may call anything."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    def add(self, now_ms: int, oldest_event_ms: int = 0, newest_event_ms: int = 0) -> None:
        """The table has just changed."""
        span = Span(now_ms, now_ms, oldest_event_ms, newest_event_ms)
        with self._lock:
            spans = self._spans
            if spans and 0 <= now_ms - spans[-1].first_ms < SPAN_MS:
                spans[-1] = spans[-1].joined(span)
                return
            spans.append(span)
            if len(spans) > SPANS_MAX:
                self._spans = _fewer(spans, now_ms)

    def since(self, moment_ms: int) -> Span | None:
        """All changes at this moment and after it; None: there are none."""
        found: Span | None = None
        with self._lock:
            for span in reversed(self._spans):
                if span.last_ms < moment_ms:
                    break
                found = span if found is None else found.joined(span)
        return found


def _fewer(spans: list[Span], now_ms: int) -> list[Span]:
    """The same with neighbours put together where that is short for their age, or where clocks that went back left too
    many."""
    kept: list[Span] = []
    for span in reversed(spans):
        if kept:
            joined = kept[-1].joined(span)
            age_ms = now_ms - kept[-1].last_ms
            if len(kept) > SPANS_MAX * 7 // 8 or joined.last_ms - joined.first_ms <= age_ms // PART:
                kept[-1] = joined
                continue
        kept.append(span)
    return kept[::-1]
