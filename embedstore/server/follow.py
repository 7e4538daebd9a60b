"""A follower: a read-only copy of what leaders hold, kept fresh by their deltas.

One thread a leader (:class:`~embedstore.server.link.LeaderLink`) applies what that leader sends; one more finds the
leaders and watches for silence. Every table holds all chunks, filled from several leaders with disjoint ranges. When
leaders are gone the follower goes on answering with what it has, and ``stats().leaders`` says how old that is.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence

from embedstore.credentials import Credentials
from embedstore.errors import InvalidArgumentError, TableNotFoundError, UnavailableError
from embedstore.interface import LeaderState
from embedstore.peers import CHANNEL_OPTIONS, parse_addresses
from embedstore.placement import chunks_of_shard
from embedstore.server.feed import SYNC_INTERVAL_MS_MAX
from embedstore.server.followers import check_name, own_name
from embedstore.server.intake import Intake
from embedstore.server.link import LeaderLink, Retry
from embedstore.server.members import Leaders, Members
from embedstore.server.replica import Replica
from embedstore.table import Table
from embedstore.table_set import wall_clock_ms
from embedstore.v1 import sync_pb2

SYNC_INTERVAL_MS = 200
TOPOLOGY_INTERVAL_S = 1.0
TOPOLOGY_SEARCH_S = 0.5
_open: weakref.WeakSet[FollowerStore] = weakref.WeakSet()


class FollowerStore(Replica):
    """Implements ``Reader``; every write raises ReadOnlyError. All methods may be called from any thread.

    Returns at once and fills itself in the background; :meth:`wait_synced` waits for the first complete copy.
    ``embeddings_only=False`` keeps optimizer state too (a standby), and ``rows`` are float32 then; else see
    :func:`follow`. ``name``: what it calls itself; "": its leaders see where it comes from. ``clock_ms`` is the wall
    clock that ages are measured with: they are as exact as the clocks of leader and follower agree.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        only_tables: Sequence[str] = (),
        embeddings_only: bool = True,
        rows: str | None = None,
        sync_interval_ms: int = SYNC_INTERVAL_MS,
        retry: Retry | None = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
        monotonic_s: Callable[[], float] = time.monotonic,
        standby: sync_pb2.StandbyPlace | None = None,
        name: str = "",
        credentials: Credentials | None = None,
    ) -> None:
        self._standby_place = standby
        self._credentials = Credentials.from_environment() if credentials is None else credentials
        given = parse_addresses(addresses)
        self._credentials.channel(given[0], CHANNEL_OPTIONS).close()  # tells what is wrong with files
        members = Members(given, self._credentials)
        if isinstance(only_tables, str):
            raise InvalidArgumentError("only_tables", "must be a sequence of table names")
        if isinstance(sync_interval_ms, bool) or not 1 <= sync_interval_ms <= SYNC_INTERVAL_MS_MAX:
            raise InvalidArgumentError("sync_interval_ms", f"must be in [1, {SYNC_INTERVAL_MS_MAX}]")
        if name:
            check_name("name", name)
        self._name = name
        super().__init__(embeddings_only=embeddings_only, rows=rows, clock_ms=clock_ms)
        self._only_tables = tuple(only_tables)
        self._sync_interval_ms = sync_interval_ms
        self._retry = retry or Retry()
        self._monotonic_s = monotonic_s
        self._links: dict[int, LeaderLink] = {}
        self._leaders = Leaders()
        self._complete_before_ms = 0
        self._unknown = ""
        self._stop = threading.Event()
        self._search = threading.Thread(target=self._keep_leaders, args=(members,), name="follow-leaders", daemon=True)
        self._search.start()
        _open.add(self)

    def ask_again(self, leader: int, table: str) -> None:
        """Have the leader's part of a table sent from the beginning."""
        if leader in self._links:
            self._links[leader].ask_again(table)

    def _keep_leaders(self, members: Members) -> None:
        try:
            asked_s = -float("inf")
            while not self._stop.is_set():
                settled = self._leaders.complete and all(link.connected for link in self._links.values())
                if not settled or self._monotonic_s() - asked_s >= TOPOLOGY_INTERVAL_S:
                    self._use(members.refresh())
                    self._unknown = f" ({members.problem})" if members.problem else ""
                    asked_s = self._monotonic_s()
                for link in list(self._links.values()):
                    link.check_silence()
                self._stop.wait(TOPOLOGY_SEARCH_S)
        finally:
            members.close()

    def _use(self, leaders: Leaders) -> None:
        if leaders.num_shards != self._leaders.num_shards:
            self._leave_leaders()
        for shard, address in leaders.addresses.items():
            if not self._follows(shard, address, leaders):
                continue
            if shard in self._links:
                self._links[shard].move(address, leaders.epoch)
            else:
                self._follow(shard, address, leaders.epoch)
        self._leaders = leaders
        self.notify()

    def _follows(self, shard: int, address: str, leaders: Leaders) -> bool:
        """Whether this leader has something that is wanted here."""
        return True

    def _leave_leaders(self) -> None:
        """Others will send everything once more. Until they have, the rows stay, as old as they are."""
        gone = self._current_links()
        for link in gone:
            link.stop()
        if self._standby_place is None:  # which must know what its leaders themselves say, each by its own clock
            self._complete_before_ms = self.as_of_ms(1 << 62)
        with self._catalogue:
            self._links, self._leaders = {}, Leaders()
        self.forget_leaders()

    def _moved_on(self) -> None:
        """A message was applied, or a connection changed."""
        links = self._current_links() if self.inherited and self._leaders.complete else []
        if links and all(link.completed for link in links):
            self.take_stock([link.leader for link in links])
        self.notify()

    def _follow(self, shard: int, address: str, epoch: int, complete_until_ms: int = 0) -> None:
        intake = Intake(
            self,
            shard,
            only_tables=self._only_tables,
            embeddings_only=self._embeddings_only,
            sync_interval_ms=self._sync_interval_ms,
            standby=self._standby_place,
            name=self._name,
            complete_until_ms=complete_until_ms or self._complete_before_ms,
            clock_ms=self._clock_ms,
        )
        link = LeaderLink(
            shard,
            address,
            epoch,
            intake,
            credentials=self._credentials,
            retry=self._retry,
            applied=self._moved_on,
            clock_ms=self._clock_ms,
            monotonic_s=self._monotonic_s,
        )
        with self._catalogue:
            if self._stop.is_set():
                return
            self._links[shard] = link
        link.start()

    def as_of_ms(self, now_ms: int) -> int:
        """Leader's time up to which everything of every leader is here; 0 before the first sync."""
        links = self._current_links()
        if not self._leaders.complete or not links:
            return min(now_ms, self._complete_before_ms)
        return min(now_ms, *(link.complete_until_ms for link in links))

    @property
    def synced(self) -> bool:
        """Whether every leader's tables have been here completely at least once."""
        return self.as_of_ms(1 << 62) > 0

    def table(self, name: str) -> Table:
        """The table; :class:`TableNotFoundError`, or :class:`UnavailableError` while it may be there any moment."""
        try:
            return super().table(name)
        except TableNotFoundError:
            if self.synced:  # which it may have become just now, with this table
                return super().table(name)
            address, problem = self._missing()
            raise UnavailableError(
                address, f"{problem}; the first copy is not complete (wait_synced), and has no table {name!r} yet"
            ) from None

    def wait_synced(self, timeout_s: float) -> None:
        """Wait until every leader has completed an initial sync; UnavailableError names one that has not in time."""
        if not self.wait_until(lambda: self.synced, timeout_s):
            address, problem = self._missing()
            raise UnavailableError(address, f"{problem} after {timeout_s:g} s")

    def _missing(self) -> tuple[str, str]:
        """Who the first copy waits for, and why."""
        missing = [link for link in self._current_links() if not link.complete_until_ms]
        if missing:
            return missing[0].state().address, missing[0].problem or "has not sent everything yet"
        return "leaders", f"not all are known yet{self._unknown}"

    def _chunks_of(self, leader: int, table: Table) -> range:
        num_shards = self._leaders.num_shards
        return chunks_of_shard(leader, num_shards, table.spec.num_chunks) if leader < num_shards else table.chunks

    def wait_for(self, watermarks: Mapping[str, int], timeout_s: float) -> None:
        """Wait until every chunk of every table has absorbed at least these positions; UnavailableError after
        ``timeout_s`` names a table and stream that has not."""
        self.wait_synced(timeout_s)
        if not self.wait_until(lambda: self._behind(watermarks) is None, timeout_s):
            raise UnavailableError("follower", f"{self._behind(watermarks)} after {timeout_s:g} s")

    def _behind(self, watermarks: Mapping[str, int]) -> str | None:
        for name, table in self.table_map().items():
            for positions, chunks in table.watermarks():
                for stream, position in watermarks.items():
                    if chunks and positions.get(stream, -1) < position:
                        return f"table {name!r} stands at {positions.get(stream)} of stream {stream!r}"
        return None

    def wait_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a change after which ``done()`` holds; False when ``timeout_s`` passed first. ``done`` is asked in
        the caller's thread after every message of a leader and every change of a connection."""
        deadline_s = self._monotonic_s() + timeout_s
        while True:
            tick = self.tick()
            if done():
                return True
            left_s = deadline_s - self._monotonic_s()
            if left_s <= 0:
                return False
            self.wait_changed(tick, left_s)

    def _current_links(self) -> list[LeaderLink]:
        with self._catalogue:
            return list(self._links.values())

    def leader_states(self) -> tuple[LeaderState, ...]:
        """How it stands towards each leader."""
        return tuple(link.state() for link in self._current_links())

    def close(self) -> None:
        """Stop following and release everything. Twice is harmless."""
        self._stop.set()
        if self._search is not threading.current_thread():
            self._search.join()
        for link in self._current_links():
            link.stop()
        super().close()
        _open.discard(self)


@atexit.register
def _close_all() -> None:
    """A follower that nobody closed ends its calls while the interpreter can still run their threads."""
    for store in list(_open):
        store.close()


def follow(
    addresses: str | Sequence[str],
    rows: str | None = None,
    only_tables: Sequence[str] | None = None,
    sync_interval_ms: int = SYNC_INTERVAL_MS,
    credentials: Credentials | None = None,
    name: str | None = None,
) -> FollowerStore:
    """A serving follower inside this process: embeddings and metadata of the leaders' tables, read-only.

    ``addresses``: ``"host:port,host:port"`` or a sequence; any one shard that knows all is enough.
    ``rows``: how to keep them: "fp32" (as None), "fp16", "int8" or "int4"; whatever it is, pulls give float32.
    ``only_tables``: leave out all others. ``sync_interval_ms``: in each interval of so long, a chunk comes once at
    most; the leaders' own setting, if it is longer.
    ``credentials``: as for :func:`embedstore.connect`. ``name``: what the leaders call it in their numbers; its
    machine's without one.
    Returns before anything has arrived; see :meth:`FollowerStore.wait_synced`.
    """
    return FollowerStore(
        addresses,
        rows=rows,
        only_tables=only_tables or (),
        sync_interval_ms=sync_interval_ms,
        credentials=credentials,
        name=own_name() if name is None else name,
    )
