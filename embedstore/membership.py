"""What a store remembers of the cluster around it: the assignment it goes by, and who else may know a newer one.

Both are in the manifest before anybody acts on them, so that a restarted shard knows at least what it knew before. All
methods may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embedstore.manifest import ACQUAINTANCES_KEY, PREVIOUS_TOPOLOGY_KEY, TOPOLOGY_KEY
from embedstore.v1 import admin_pb2, manifest_pb2

ACQUAINTANCES_MAX = 64


class Membership:
    """``put`` writes manifest entries durably, and raises when it cannot; None: nothing is kept on disk."""

    def __init__(
        self,
        put: Callable[[Mapping[bytes, Any]], None] | None = None,
        topology: admin_pb2.TopologyRecord | None = None,
        previous: admin_pb2.TopologyRecord | None = None,
        acquaintances: Sequence[str] = (),
    ) -> None:
        self._put = put
        self._lock = threading.Lock()
        self._topology = topology
        self._previous = previous
        self._acquaintances = list(acquaintances)

    @property
    def topology(self) -> admin_pb2.TopologyRecord | None:
        """The last record that was adopted; None: never any."""
        return self._topology

    @property
    def previous(self) -> admin_pb2.TopologyRecord | None:
        """The record that held before it; None: that of the first epoch."""
        return self._previous

    @property
    def acquaintances(self) -> tuple[str, ...]:
        """Addresses of standbys that have followed this store, the one met last at the end."""
        return tuple(self._acquaintances)

    def adopt(self, topology: admin_pb2.TopologyRecord, previous: admin_pb2.TopologyRecord) -> None:
        """Remember a record, and the one that held until now; :class:`CheckpointFailedError` leaves those that are
        there."""
        with self._lock:
            if self._put is not None:
                self._put({TOPOLOGY_KEY: topology, PREVIOUS_TOPOLOGY_KEY: previous})
            self._topology, self._previous = topology, previous

    def meet(self, address: str) -> None:
        """Remember the address of a standby; past 64 the one that was met first is forgotten. One that is known costs
        nothing: standbys are met with each of their acknowledgements."""
        with self._lock:
            if address in self._acquaintances:
                return
            known = [*self._acquaintances, address][-ACQUAINTANCES_MAX:]
            if self._put is not None:
                self._put({ACQUAINTANCES_KEY: manifest_pb2.Acquaintances(addresses=known)})
            self._acquaintances = known
