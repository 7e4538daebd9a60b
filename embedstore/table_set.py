"""TableSet: the tables and dense sets of one process, read the same way whether pushes or deltas fill them.

Tables are found through a dict that is replaced, never changed, so readers take no lock. The tick counts changes and
costs a push one uncontended lock; the leader side of Follow waits on it to learn that there is something to send.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, Self, overload

import numpy as np

from embedstore.errors import ClosedError, DenseSetNotFoundError, InvalidArgumentError, TableNotFoundError
from embedstore.freshness import SAMPLE_IDS_MAX, SERVED_ROW_AGE, Freshness
from embedstore.interface import DenseSet, Ids, LeaderState, Rows, StoreStats, StreamState, as_ids, as_row_dtype
from embedstore.spec import TableSpec
from embedstore.table import Table

TABLES_PER_CALL_MAX = 1024
DENSE_TOLD_MAX = 64
"""Dense sets in the stats, the first by name."""

LAST_SEEN_ROUNDED_MS = 500
"""How much earlier a row says that it was last seen, on average, than it was: it knows whole seconds."""


def wall_clock_ms() -> int:
    """Unix time in milliseconds: the default of ``clock_ms`` wherever one is a parameter."""
    return time.time_ns() // 1_000_000


class TableSet:
    """Tables and dense sets in memory, implementing :class:`embedstore.interface.Reader`.

    Any thread may call anything. A pull waits for nothing but the chunk locks. ``clock_ms`` gives unix milliseconds.
    """

    def __init__(self, *, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._clock_ms = clock_ms
        self._started_ms = clock_ms()
        self._tables: Mapping[str, Table] = {}
        self._dense: Mapping[str, DenseSet] = {}
        self._set_lock = threading.Lock()
        self._changed = threading.Condition()
        self._tick = 0
        self.freshness = Freshness()
        self._followers = 0
        self._closed = False

    # -- Reader

    @overload
    def pull(
        self, tables: Mapping[str, Ids], *, meta: Literal[False] = False, dtype: Any = np.float32
    ) -> dict[str, np.ndarray]: ...
    @overload
    def pull(self, tables: Mapping[str, Ids], *, meta: Literal[True], dtype: Any = np.float32) -> dict[str, Rows]: ...
    def pull(
        self, tables: Mapping[str, Ids], *, meta: bool = False, dtype: Any = np.float32
    ) -> dict[str, np.ndarray] | dict[str, Rows]:
        """See :meth:`embedstore.interface.Reader.pull`."""
        kind: Any = np.float32 if dtype is np.float32 else as_row_dtype(dtype)
        found = [(name, self.table(name), as_ids(ids, f"{name}.ids")) for name, ids in check_tables(tables).items()]
        pulled: dict[str, np.ndarray] | dict[str, Rows]
        if meta:
            pulled = {name: table.pull_rows(ids, dtype=kind) for name, table, ids in found}
        else:
            pulled = {name: table.pull(ids, dtype=kind) for name, table, ids in found}
        for _, table, ids in found:
            self.sample_served(table, ids)
        return pulled

    def sample_served(self, table: Table, ids: np.ndarray) -> None:
        """These have been pulled from this table: now and then, see how old some of them are."""
        if len(ids) and self.freshness.is_due(SERVED_ROW_AGE, table.spec.name):
            self.observe_served(table, ids)

    def observe_served(self, table: Table, ids: np.ndarray) -> None:
        """The same of ids that are due to be looked at."""
        seen = table.last_seen_s(ids[:SAMPLE_IDS_MAX])
        now_ms = self._clock_ms() - LAST_SEEN_ROUNDED_MS
        for seen_s in seen[seen > 0].tolist():  # 0: no push of it has told a time
            self.freshness.observe_ms(SERVED_ROW_AGE, table.spec.name, now_ms - 1000 * seen_s)

    def contains(self, table: str, ids: Ids) -> np.ndarray:
        """See :meth:`embedstore.interface.Reader.contains`."""
        return self.table(table).contains(as_ids(ids, f"{table}.ids"))

    def scan(self, table: str) -> Iterator[tuple[np.ndarray, Rows]]:
        """See :meth:`embedstore.interface.Reader.scan`; a piece is a chunk."""
        return self._scan(self.table(table))

    def _scan(self, table: Table) -> Iterator[tuple[np.ndarray, Rows]]:
        for chunk in table.chunks:
            self.check_open()
            ids, rows = table.scan_chunk(chunk)
            if len(ids):
                yield ids, rows

    def get_dense(self, dense_set: str) -> DenseSet:
        """See :meth:`embedstore.interface.Reader.get_dense`."""
        self.check_open()
        found = self._dense.get(dense_set)
        if found is None:
            raise DenseSetNotFoundError(dense_set)
        return found

    def tables(self) -> dict[str, TableSpec]:
        """See :meth:`embedstore.interface.Reader.tables`."""
        self.check_open()
        return {name: table.spec for name, table in self._tables.items()}

    def stats(self) -> StoreStats:
        """See :meth:`embedstore.interface.Reader.stats`."""
        self.check_open()
        return StoreStats(
            tables={name: table.stats() for name, table in self._tables.items()},
            streams=self.stream_states(),
            last_checkpoint_s=self.last_checkpoint_s(),
            uptime_s=max(self._clock_ms() - self._started_ms, 0) / 1000,
            followers=self._followers,
            leaders=self.leader_states(),
            corrupt_chunks=self.corrupt_chunks(),
            standbys=self.standbys(),
            distributions=self.freshness.read(),
            dense_sets=self._told_dense_sets(),
        )

    def _told_dense_sets(self) -> dict[str, DenseSet]:
        return {name: replace(found, tensors={}) for name, found in sorted(self._dense.items())[:DENSE_TOLD_MAX]}

    def close(self) -> None:
        """Refuse every call from now on."""
        self._closed = True
        self.notify()

    def __enter__(self) -> Self:
        self.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- what the subclasses know

    def stream_states(self) -> dict[str, StreamState]:
        """Where every stream stands; none are known here."""
        return {}

    def open_streams(self) -> dict[str, tuple[int, int]]:
        """First position and generation of every stream that was opened by name; none are known here."""
        return {}

    @property
    def replaced_in(self) -> int:
        """The epoch in which others took over, so that nothing changes here any more; 0: nobody has."""
        return 0

    def standby_applied(self, address: str, watermarks: Mapping[str, int], seen_tick: int) -> None:
        """The standby at ``address`` has applied everything up to these, and knows which tables and streams there were
        at ``seen_tick``; nothing depends on that here."""

    def standbys(self) -> tuple[str, ...]:
        """Addresses of the standbys that what is durable waits for; none here."""
        return ()

    def leader_states(self) -> tuple[LeaderState, ...]:
        """The leaders of a follower; none here."""
        return ()

    def last_checkpoint_s(self) -> float:
        """Unix seconds of the last checkpoint; 0: none."""
        return 0.0

    def corrupt_chunks(self) -> int:
        """Chunks that fell back at the start."""
        return 0

    def as_of_ms(self, now_ms: int) -> int:
        """The moment of a leader's clock of which everything is here; 0: incomplete. A set that takes writes itself is
        as of ``now_ms``."""
        return now_ms

    # -- tables and dense sets

    def check_open(self) -> None:
        """Raise :class:`ClosedError` after :meth:`close`."""
        if self._closed:
            raise ClosedError("the store is closed")

    def table(self, name: str) -> Table:
        """The table, or :class:`TableNotFoundError`."""
        self.check_open()
        found = self._tables.get(name) if isinstance(name, str) else None
        if found is None:
            raise TableNotFoundError(name)
        return found

    def table_map(self) -> Mapping[str, Table]:
        """All tables by name, as of now; the mapping never changes."""
        return self._tables

    def add_table(self, table: Table) -> None:
        """Make a table visible, in place of one of the same name."""
        with self._set_lock:
            self._tables = {**self._tables, table.spec.name: table}
        self.notify()

    def remove_table(self, name: str) -> None:
        """Make a table invisible; calls that have it already finish with it. :class:`TableNotFoundError`."""
        with self._set_lock:
            if name not in self._tables:
                raise TableNotFoundError(name)
            self._tables = {other: table for other, table in self._tables.items() if other != name}
            self.freshness.keep_tables(self._tables)
        self.notify()

    def set_dense(self, name: str, dense_set: DenseSet) -> None:
        """Publish a dense set as it is."""
        with self._set_lock:
            self._dense = {**self._dense, name: dense_set}
        self.notify()

    def dense_sets(self) -> Mapping[str, DenseSet]:
        """All dense sets by name, as of now; the mapping never changes."""
        return self._dense

    def dense_versions(self) -> dict[str, int]:
        """The version of every dense set."""
        return {name: dense_set.version for name, dense_set in self._dense.items()}

    # -- change notification

    def notify(self) -> None:
        """Count a change and wake who waits for one."""
        with self._changed:
            self._tick += 1
            self._changed.notify_all()

    def tick(self) -> int:
        """The number of changes so far: tables, rows, watermarks, dense sets, closing."""
        return self._tick

    def wait_changed(self, tick: int, timeout_s: float) -> int:
        """Wait until the tick is no longer ``tick``, or ``timeout_s`` seconds; returns the present tick."""
        with self._changed:
            self._changed.wait_for(lambda: self._tick != tick, timeout_s)
            return self._tick

    def follower_joined(self) -> None:
        """Count a connected follower."""
        with self._set_lock:
            self._followers += 1

    def follower_left(self) -> None:
        """Count one less."""
        with self._set_lock:
            self._followers -= 1


def check_tables(tables: Any) -> Mapping[str, Any]:
    """Raise :class:`InvalidArgumentError` unless it maps table names, and no more than 1024."""
    if not isinstance(tables, Mapping):
        raise InvalidArgumentError("tables", f"must map table names, not {type(tables).__name__}")
    if len(tables) > TABLES_PER_CALL_MAX:
        raise InvalidArgumentError("tables", f"at most {TABLES_PER_CALL_MAX} a call, not {len(tables)}")
    return tables
