"""Shards that gave no answer lately, so that not every call waits to find that out again.

While one is remembered a thread asks it, and its first answer ends that. So does it when no call has passed over it for
``SILENCE_S``: whoever comes then waits for it as if nothing had happened. Any thread may call anything.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from embedstore.cluster import Cluster
from embedstore.errors import ClosedError, UnavailableError
from embedstore.peers import Deadline, Patience
from embedstore.routes import Call, Route

SILENCE_S = 1.0
_PROBE = Patience(timeout_s=SILENCE_S, retry_s=SILENCE_S)


class Silences:
    """Of the shards of ``peers``; see the module."""

    def __init__(self, peers: Cluster) -> None:
        self._peers = peers
        self._passed_over: dict[str, bool] = {}
        self._watches: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._passed_over)

    def shards(self) -> Collection[int]:
        """Those that the caller is about to pass over."""
        with self._lock:
            silent = [
                (shard, address)
                for shard, address in enumerate(self._peers.topology.addresses)
                if address in self._passed_over
            ]
            self._passed_over.update((address, True) for _, address in silent)
        return {shard for shard, _ in silent}

    def notice(self, shard: int, address: str) -> None:
        """This shard, which is there, gave no answer."""
        with self._lock:
            if address in self._passed_over:
                return
            watch = threading.Thread(target=self._watch, args=(shard, address), name=f"silent {address}", daemon=True)
            self._passed_over[address] = True
            self._watches.add(watch)
            watch.start()

    def close(self) -> None:
        """Wait for the threads; the cluster has been closed."""
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.join()

    def _watch(self, shard: int, address: str) -> None:
        try:
            while self._is_wanted(address) and not self._answers(shard):
                pass
        finally:
            with self._lock:
                del self._passed_over[address]
                self._watches.discard(threading.current_thread())

    def _is_wanted(self, address: str) -> bool:
        with self._lock:
            wanted = self._passed_over[address]
            self._passed_over[address] = False
        return wanted and address in self._peers.topology.addresses

    def _answers(self, shard: int) -> bool:
        """Whether a pull of nothing gets any answer; looks for a newer record, too, as every call does."""

        def plan(route: Route) -> list[Call]:
            return [Call(shard % len(route), "Pull", b"")]

        try:
            [reply] = self._peers.ask(plan, Deadline(_PROBE))
        except ClosedError:
            return True
        return not isinstance(reply.outcome, UnavailableError)
