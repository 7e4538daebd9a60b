"""What the services of one process share: the store once it is there, and which part of the whole it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedstore.errors import ReadOnlyError, StaleEpochError, UnavailableError, WrongShardError
from embedstore.placement import shard_of_dense_set
from embedstore.status import Topology
from embedstore.store import LocalStore

if TYPE_CHECKING:
    from embedstore.server.leader import SyncServicer
    from embedstore.table_set import TableSet


class Serving:
    """The state of a serving process. ``store`` is set once; everything else is fixed. Any thread may read it."""

    def __init__(self, topology: Topology, shard: int, *, follower: bool = False) -> None:
        self.topology = topology
        self.shard = shard
        self.follower = follower
        self.address = ""
        self._store: TableSet | None = None
        self._sync: SyncServicer | None = None

    @property
    def ready(self) -> bool:
        """Whether the store has been recovered."""
        return self._store is not None

    def serve(self, store: TableSet, sync: SyncServicer) -> None:
        """Answer from now on."""
        self._sync, self._store = sync, store

    def store(self) -> TableSet:
        """What can be read; :class:`UnavailableError` while there is nothing yet."""
        if self._store is None:
            raise UnavailableError(self.address, "has not synchronised yet" if self.follower else "still recovers")
        return self._store

    def sync(self) -> SyncServicer:
        """The leader side of Follow; :class:`UnavailableError` while there is nothing yet."""
        self.store()
        assert self._sync is not None
        return self._sync

    def writable(self) -> LocalStore:
        """What can be changed; :class:`ReadOnlyError` on a follower."""
        store = self.store()
        if not isinstance(store, LocalStore):
            raise ReadOnlyError(f"{self.address} is a follower, which only reads; write to its leaders")
        return store

    def check_epoch(self, epoch: int) -> None:
        """Raise :class:`StaleEpochError` unless the sender knows this assignment (0: it knows none yet)."""
        if epoch not in (0, self.topology.epoch):
            raise StaleEpochError(epoch, self.topology.epoch, self.topology)

    def check_dense_owner(self, dense_set: str) -> None:
        """Raise :class:`WrongShardError` unless this shard is the one that holds the set."""
        owner = shard_of_dense_set(dense_set, self.topology.num_shards)
        if owner != self.shard:
            raise WrongShardError(
                f"dense set {dense_set!r} lives on shard {owner}, this is {self.shard}", self.topology
            )
