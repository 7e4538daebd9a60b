"""What the services of one process share: the store once it is there, and which part of the whole it is.

The topology record only ever moves to a higher epoch. A process that has no place in the newer record any more is
*fenced*: its store has applied its last write before anybody learns of it, and every call is refused with the record,
so that callers find those who took over.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from embedstore.credentials import PLAIN, Credentials
from embedstore.discovery import is_complete
from embedstore.errors import InvalidArgumentError, ReadOnlyError, StaleEpochError, UnavailableError, WrongShardError
from embedstore.placement import shard_of_dense_set
from embedstore.status import Topology, topology_from_proto, topology_to_proto
from embedstore.store import LocalStore

if TYPE_CHECKING:
    from embedstore.interface import StoreStats
    from embedstore.server.follow import FollowerStore
    from embedstore.server.leader import SyncServicer
    from embedstore.server.takeover import Takeover
    from embedstore.table_set import TableSet

log = logging.getLogger("embedstore.server")
EPOCH_FIRST = 1
"""Of a cluster that goes by what its members were started with: no record, no address in it, can contradict them."""


class Serving:
    """The state of a serving process. Any thread may call anything. ``advertised``: the address under which the other
    members know it; "" until it has one of its own. ``credentials``: how it reaches them."""

    def __init__(
        self,
        topology: Topology,
        shard: int,
        *,
        follower: bool = False,
        standby: bool = False,
        advertised: str = "",
        credentials: Credentials = PLAIN,
    ) -> None:
        self.credentials = credentials
        self.topology = topology
        self.shard, self.num_shards = shard, topology.num_shards
        self.follower = follower
        self.standby = standby
        self.address = ""
        self.fenced = False
        self.takeover: Takeover | None = None
        self._advertised = advertised
        self._lock = threading.Lock()
        self._store: TableSet | None = None
        self._copy: FollowerStore | None = None
        self._sync: SyncServicer | None = None

    @property
    def advertised(self) -> str:
        """Where others reach this process."""
        return self._advertised or self.address

    @property
    def ready(self) -> bool:
        """Whether the store has been recovered, and may be read."""
        return self._store is not None and not self.standby

    @property
    def synced(self) -> bool | None:
        """Of a follower and a standby whether everything that its leaders have has been here once; None: it is none."""
        return self._copy.synced if self._copy is not None and self.follower else None

    def known_topology(self) -> Topology:
        """The record to tell others: a standby's is that of its leaders."""
        if self.standby and self.takeover is not None:
            return self.takeover.leaders() or self.topology
        return self.topology

    def previous_topology(self) -> Topology | None:
        """Of a fenced process the record that it served under."""
        if not self.fenced:
            return None
        previous = self.writable().membership.previous
        return None if previous is None else topology_from_proto(previous)

    def reinstate(self, topology: Topology | None, *, force: bool) -> Topology:
        """Serve again after having been replaced, by a takeover that came to nothing; ``force`` is needed because what
        others have applied in this process's place is gone then. One that was not replaced keeps its place.

        None: the present record with this process in its old place. :class:`InvalidArgumentError` when it has not been
        replaced, or the record has no place for it.
        """
        store = self.writable()
        if not self.fenced and topology == self.topology:
            return topology
        if not self.fenced and topology is None:
            raise InvalidArgumentError("Activate", f"{self.address} is no standby, and nobody has replaced it")
        current = self.topology
        if topology is None:
            if current.num_shards != store.num_shards:
                raise InvalidArgumentError(
                    "topology", f"is needed: all {store.num_shards} shards must go back together, by shard reshard"
                )
            addresses = list(current.addresses)
            addresses[self.shard] = self.advertised
            topology = Topology(current.epoch + 1, tuple(addresses), current.num_shards)
        if topology.num_shards != store.num_shards or topology.addresses[self.shard : self.shard + 1] != (
            self.advertised,
        ):
            raise InvalidArgumentError("topology", f"must have {self.advertised} as shard {self.shard}")
        if self.fenced and not force:
            raise InvalidArgumentError(
                "force", f"is needed: what {current.addresses} have applied since epoch {current.epoch} would be gone"
            )
        self.adopt(topology)
        return topology

    def receive(self, copy: FollowerStore) -> None:
        """What comes from the leaders: its numbers are told before it may be read."""
        self._copy = copy

    def serve(self, store: TableSet, sync: SyncServicer) -> None:
        """Answer from now on. A store that remembers a newer record goes by it."""
        with self._lock:
            if isinstance(store, LocalStore) and self.topology.epoch > EPOCH_FIRST:
                self._settle(store)
            self._sync, self._store = sync, store

    def become_shard(self, topology: Topology, shard: int) -> None:
        """Before :meth:`serve`: the place that this process has from now on."""
        with self._lock:
            self.topology, self.shard = topology, shard
            self.follower = self.standby = False

    def adopt(self, topology: Topology) -> None:
        """Go by a newer record, durably. The same one again changes nothing.

        :class:`StaleEpochError` for an older one, and for another of the same epoch: somebody else took over first.
        """
        if not is_complete(topology):
            raise InvalidArgumentError("TopologyRecord", "must name an epoch and every shard's address")
        with self._lock:
            current = self.topology
            if topology == current:
                return
            if topology.epoch <= current.epoch:
                raise StaleEpochError(topology.epoch, current.epoch, current)
            if self.follower or self.standby:
                raise ReadOnlyError(f"{self.address} has no place in a topology record: it only follows")
            store = self.writable()
            previous = topology_to_proto(current)
            if self.fenced and store.membership.previous is not None:
                previous = store.membership.previous
            store.membership.adopt(topology_to_proto(topology), previous)
            self.topology = topology
            self._settle(store)

    def _settle(self, store: LocalStore) -> None:
        """Fence the store when the record has no place for it."""
        topology = self.topology
        here = self.shard < topology.num_shards and topology.addresses[self.shard] == self.advertised
        if here and topology.num_shards == store.num_shards:
            store.fence(0, None)
            self.fenced = False
            return
        place = topology.addresses[self.shard] if self.shard < topology.num_shards else "none"
        log.warning(
            "epoch %d has no place for %s: shard %d is %s, and callers are sent there; "
            "to stand by here, start with an empty data directory and --standby",
            topology.epoch,
            self.advertised,
            self.shard,
            place,
        )
        store.fence(topology.epoch, lambda: StaleEpochError(topology.epoch - 1, topology.epoch, topology))
        self.fenced = True

    @property
    def successors(self) -> str:
        """Address of the shard that has this place in the topology record, or where none has it, of all shards."""
        addresses = self.topology.addresses
        return addresses[self.shard] if self.shard < len(addresses) else ",".join(addresses)

    def store(self) -> TableSet:
        """What can be read; :class:`UnavailableError` while there is nothing yet."""
        if self._store is None:
            waits = (
                "is a standby" if self.standby else "has not synchronised yet" if self.follower else "still recovers"
            )
            raise UnavailableError(self.address, waits)
        return self._store

    def sync(self) -> SyncServicer:
        """The leader side of Follow; :class:`UnavailableError` while there is nothing yet."""
        self.store()
        assert self._sync is not None
        return self._sync

    def stats(self) -> StoreStats:
        """Numbers of the store, as far as it is there, and of those who follow it; :class:`UnavailableError` while
        there is none yet."""
        if self._store is None and self._copy is not None:
            # Nothing is visible there before somebody may read it.
            return replace(self._copy.stats(), distributions={})
        stats, sync = self.store().stats(), self.sync()
        return replace(stats, followers=sync.followers, follower_states=sync.follower_states())

    def writable(self) -> LocalStore:
        """What can be changed; :class:`ReadOnlyError` on a follower."""
        store = self.store()
        if not isinstance(store, LocalStore):
            raise ReadOnlyError(f"{self.address} is a follower, which only reads; write to its leaders")
        return store

    def check_epoch(self, epoch: int) -> None:
        """Raise :class:`StaleEpochError` unless the sender knows this assignment (0: it knows none yet)."""
        if self.fenced or epoch not in (0, self.topology.epoch):
            raise StaleEpochError(epoch, self.topology.epoch, self.topology)

    def check_dense_owner(self, dense_set: str) -> None:
        """Raise :class:`WrongShardError` unless this shard is the one that holds the set."""
        owner = shard_of_dense_set(dense_set, self.topology.num_shards)
        if owner != self.shard:
            raise WrongShardError(
                f"dense set {dense_set!r} lives on shard {owner}, this is {self.shard}", self.topology
            )
