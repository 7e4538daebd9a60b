"""One encoding of a delta for all followers that want the same: those that stand at the same cursor of a chunk.

A delta that was made a moment ago is given again instead of a newer one, so that followers who are woken by the same
change stay together. One that begins a little before the cursor will do as well, as long as it brings more than it
repeats: that brings those together who came at different moments. A delta says when its round began, because that, and
not the present, is up to when it is complete. Usable from any thread; several that want the same at once wait for the
first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from embedstore.deltas import DeltaInfo, delta_info
from embedstore.table import Table

BYTES_MAX = 32 << 20
LOCKS = 64


class SharedDelta(NamedTuple):
    """A delta; ``as_of_ms``: the moment before which it lacks nothing."""

    data: bytes
    info: DeltaInfo
    as_of_ms: int
    made_ms: int

    def serves(self, incarnation: int, version: int) -> bool:
        """Whether it continues this cursor too, and more than half of it is new there."""
        begin, end = self.info.from_version, self.info.to_version
        same = self.info.incarnation == incarnation and not self.info.full
        return same and begin <= version and version - begin < end - version


Place = tuple[Table, int, bool]
Key = tuple[Table, int, bool, int, int]


class SharedDeltas:
    """Keeps what was made lately, in at most ``bytes_max`` bytes. ``wanted`` says whether anyone could want a delta
    again; without a second follower nothing is kept."""

    def __init__(self, wanted: Callable[[], bool], bytes_max: int = BYTES_MAX) -> None:
        self._wanted = wanted
        self._bytes_max = bytes_max
        self._kept: OrderedDict[Key, SharedDelta] = OrderedDict()
        self._latest: dict[Place, Key] = {}
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
        key = (table, chunk, embeddings_only, *cursor)
        if not self._wanted():
            return self._make(key, now_ms, as_of_ms)
        with self._making[chunk % LOCKS]:
            with self._lock:
                found = self._find(key, now_ms - age_ms_max)
                if found is not None:
                    self.shared += 1
                    return found
            fresh = self._make(key, now_ms, as_of_ms)
            self._keep(key, fresh)
            return fresh

    def _find(self, key: Key, made_ms_min: int) -> SharedDelta | None:
        for known in (key, self._latest.get(key[:3])):
            found = None if known is None else self._kept.get(known)
            if found is not None and found.made_ms >= made_ms_min and (known == key or found.serves(*key[3:])):
                return found
        return None

    def _make(self, key: Key, now_ms: int, as_of_ms: int) -> SharedDelta:
        table, chunk, embeddings_only, incarnation, version = key
        self.made += 1
        data = table.delta(chunk, incarnation, version, embeddings_only=embeddings_only)
        return SharedDelta(data, delta_info(data), as_of_ms, now_ms)

    def _keep(self, key: Key, fresh: SharedDelta) -> None:
        if len(fresh.data) > self._bytes_max:
            return
        with self._lock:
            if not self._wanted():  # any more, and everything has been forgotten
                return
            self._drop(key)
            self._kept[key], self._latest[key[:3]] = fresh, key
            self.bytes_kept += len(fresh.data)
            while self.bytes_kept > self._bytes_max:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        old = self._kept.pop(key, None)
        if old is None:
            return
        self.bytes_kept -= len(old.data)
        if self._latest.get(key[:3]) == key:
            del self._latest[key[:3]]

    def forget_table(self, table: Table) -> None:
        """Keep nothing of a table that is gone, which would stay in memory as long as a delta of it is kept."""
        with self._lock:
            for key in [key for key in self._kept if key[0] is table]:
                self._drop(key)

    def forget(self) -> None:
        """Keep nothing: nobody follows, or one alone."""
        with self._lock:
            self._kept.clear()
            self._latest.clear()
            self.bytes_kept = 0
