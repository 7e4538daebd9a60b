"""One encoding of a delta for all followers that want the same: those that stand at the same cursor of a chunk.

A delta that was made a moment ago is given again instead of a newer one, so that followers who are woken by the same
change stay together. It says when its round began, because that, and not the present, is up to when it is complete.
Usable from any thread; several that want the same at once wait for the first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from embedstore.table import Table

BYTES_MAX = 32 << 20
LOCKS = 64


class SharedDelta(NamedTuple):
    """A delta; ``as_of_ms``: the moment before which it lacks nothing."""

    data: bytes
    as_of_ms: int
    made_ms: int


Key = tuple[Table, int, int, int, bool]


class SharedDeltas:
    """Keeps what was made lately, in at most ``bytes_max`` bytes. ``wanted`` says whether anyone could want a delta
    again; without a second follower nothing is kept."""

    def __init__(self, wanted: Callable[[], bool], bytes_max: int = BYTES_MAX) -> None:
        self._wanted = wanted
        self._bytes_max = bytes_max
        self._kept: OrderedDict[Key, SharedDelta] = OrderedDict()
        self.bytes_kept = 0
        self._lock = threading.Lock()
        self._making = [threading.Lock() for _ in range(LOCKS)]
        self.made = 0
        self.shared = 0

    def delta(
        self,
        table: Table,
        chunk: int,
        cursor: tuple[int, int],
        *,
        embeddings_only: bool,
        now_ms: int,
        as_of_ms: int,
        age_ms_max: int,
    ) -> SharedDelta:
        """What follows ``cursor``, made at most ``age_ms_max`` before ``now_ms`` or now."""
        key = (table, chunk, *cursor, embeddings_only)
        if not self._wanted():
            return self._make(key, now_ms, as_of_ms)
        with self._making[hash((chunk, *cursor)) % LOCKS]:
            with self._lock:
                found = self._kept.get(key)
                if found is not None and found.made_ms >= now_ms - age_ms_max:
                    self.shared += 1
                    return found
            fresh = self._make(key, now_ms, as_of_ms)
            self._keep(key, fresh)
            return fresh

    def _make(self, key: Key, now_ms: int, as_of_ms: int) -> SharedDelta:
        table, chunk, incarnation, version, embeddings_only = key
        self.made += 1
        return SharedDelta(table.delta(chunk, incarnation, version, embeddings_only=embeddings_only), as_of_ms, now_ms)

    def _keep(self, key: Key, fresh: SharedDelta) -> None:
        if len(fresh.data) > self._bytes_max:
            return
        with self._lock:
            if not self._wanted():  # any more, and everything has been forgotten
                return
            old = self._kept.pop(key, None)
            self.bytes_kept += len(fresh.data) - (len(old.data) if old is not None else 0)
            self._kept[key] = fresh
            while self.bytes_kept > self._bytes_max:
                _, oldest = self._kept.popitem(last=False)
                self.bytes_kept -= len(oldest.data)

    def forget_table(self, table: Table) -> None:
        """Keep nothing of a table that is gone, which would stay in memory as long as a delta of it is kept."""
        with self._lock:
            for key in [key for key in self._kept if key[0] is table]:
                self.bytes_kept -= len(self._kept.pop(key).data)

    def forget(self) -> None:
        """Keep nothing: nobody follows, or one alone."""
        with self._lock:
            self._kept.clear()
            self.bytes_kept = 0
