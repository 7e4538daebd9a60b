"""The client's own streams: numbers for updates that come without an origin.

Each such update takes a stream for itself until its outcome is known, so that a stream has one request in flight;
concurrent callers get streams of their own. A number is used for one update only, whatever becomes of it. The shard
recognises a repeated number, and a jump tells how many earlier updates a restart has taken back; updates that already
ended in an error for their caller are not counted again. All methods may be called from any thread.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from embedstore.interface import Origin

PREFIX = "client/"


class ClientStream:
    """One stream towards one shard; belongs to one update at a time."""

    def __init__(self) -> None:
        self.name = PREFIX + secrets.token_hex(12)
        self._next = 0
        self._reported = 0

    def origin(self) -> Origin:
        """The next number as an origin; counted as failed until :meth:`applied` says otherwise."""
        origin = Origin(self.name, self._next, self._next + 1)
        self._next += 1
        self._reported += 1
        return origin

    def applied(self, lost_updates: int) -> int:
        """The update of the last origin was applied, after ``lost_updates`` missing ones: how many of them are news."""
        news = max(0, lost_updates - (self._reported - 1))
        self._reported = 0
        return news


class ClientStreams:
    """The idle streams towards each shard; there are never more than there were callers at once. The one that was idle
    for longest goes first: what a restart took back of a stream is told with its next number, so each gets its turn."""

    def __init__(self, num_shards: int) -> None:
        self._lock = threading.Lock()
        self._idle: list[deque[ClientStream]] = [deque() for _ in range(num_shards)]

    @contextmanager
    def take(self, shards: Sequence[int]) -> Iterator[dict[int, ClientStream]]:
        """A stream towards each of ``shards`` (each named once), for the length of one update."""
        with self._lock:
            taken = {shard: self._idle[shard].popleft() if self._idle[shard] else ClientStream() for shard in shards}
        try:
            yield taken
        finally:
            with self._lock:
                for shard, stream in taken.items():
                    self._idle[shard].append(stream)
