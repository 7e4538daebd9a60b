"""A standby: everything that one shard has, optimizer state, counts and watermarks included, in a process that can take
its place.

It follows the chunks of the shard that it waits to become, from whichever leaders own them now: one leader when the
number of shards stays, all of them when it changes. It answers no reads, because it may never become what it waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from embedstore.credentials import Credentials
from embedstore.errors import UnavailableError
from embedstore.interface import DenseSet
from embedstore.placement import check_shard, chunks_of_shard, shard_of_dense_set
from embedstore.server.follow import SYNC_INTERVAL_MS, FollowerStore
from embedstore.server.followers import own_name
from embedstore.server.link import Retry
from embedstore.server.members import Leaders
from embedstore.spec import TableSpec
from embedstore.status import Topology
from embedstore.table import Table
from embedstore.table_set import wall_clock_ms
from embedstore.v1 import manifest_pb2, sync_pb2


class Standby(FollowerStore):
    """Waits to become shard ``shard`` of ``num_shards``; ``address``: where others reach it. Any thread may call
    anything."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        shard: int,
        num_shards: int,
        address: str,
        *,
        sync_interval_ms: int = SYNC_INTERVAL_MS,
        retry: Retry | None = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
        credentials: Credentials | None = None,
    ) -> None:
        check_shard(shard, num_shards)
        self.shard, self.num_shards, self.address = shard, num_shards, address
        self._still = False
        self._moving = threading.Lock()
        super().__init__(
            addresses,
            embeddings_only=False,
            sync_interval_ms=sync_interval_ms,
            retry=retry,
            clock_ms=clock_ms,
            name=own_name(address),
            credentials=credentials,
            standby=sync_pb2.StandbyPlace(shard=shard, num_shards=num_shards, address=address),
        )

    def _fresh(self, spec: TableSpec) -> Table:
        return Table(spec, chunks=chunks_of_shard(self.shard, self.num_shards, spec.num_chunks))

    def _use(self, leaders: Leaders) -> None:
        with self._moving:
            if not self._still:
                self._use_those(leaders)

    def _use_those(self, leaders: Leaders) -> None:
        # A record in which this process has its place already speaks of a takeover that has begun: those who are being
        # replaced still have what it lacks.
        if leaders.num_shards == self.num_shards and leaders.addresses.get(self.shard) == self.address:
            replaced = leaders.replaced
            if replaced is None or (self._leaders.complete and replaced.epoch <= self._leaders.epoch):
                return
            leaders = replaced
        super()._use(leaders)

    def _follows(self, shard: int, address: str, leaders: Leaders) -> bool:
        return address != self.address and (leaders.num_shards != self.num_shards or shard == self.shard)

    @property
    def leaders(self) -> Leaders:
        """Who the leaders are, as far as they are known."""
        return self._leaders

    def followed(self) -> dict[int, str]:
        """The addresses of the leaders that have something for this standby, by shard."""
        return {link.leader: link.state().address for link in self._current_links()}

    def hold_still(self, still: bool) -> None:
        """Keep to the present leaders, whatever others say: while these are being replaced by this process."""
        with self._moving:
            self._still = still

    def wait_level(self, leaders: Collection[int], epoch: int, timeout_s: float) -> None:
        """Wait until everything is here that these leaders (by shard) did until they were replaced in ``epoch``, which
        they have been told. :class:`UnavailableError` names a leader that has not sent it in time."""

        def missing() -> list[str]:
            links = {link.leader: link for link in self._current_links()}
            return [links[leader].state().address for leader in leaders if links[leader].replaced_in != epoch]

        if not self.wait_until(lambda: not missing(), timeout_s):
            raise UnavailableError(missing()[0], f"has not sent everything after {timeout_s:g} s")

    def stop_following(self) -> None:
        """End all calls; returns when the last message has been applied."""
        self.hold_still(True)
        for link in self._current_links():
            link.stop()

    def follow_on(self) -> None:
        """After :meth:`stop_following`: take the calls up again, with what is here."""
        for link in self._current_links():
            self._follow(link.leader, link.state().address, self._leaders.epoch, link.complete_until_ms)
        self.hold_still(False)

    def opened_streams(self) -> list[manifest_pb2.StreamManifest]:
        """The streams that the leaders have open."""
        return [
            manifest_pb2.StreamManifest(stream=name, begin=begin, generation=generation)
            for name, (begin, generation) in self.open_streams().items()
        ]

    def own_dense_sets(self, topology: Topology) -> dict[str, DenseSet]:
        """The dense sets that live on this shard under ``topology``."""
        return {
            name: dense_set
            for name, dense_set in self.dense_sets().items()
            if shard_of_dense_set(name, topology.num_shards) == self.shard
        }
