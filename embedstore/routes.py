"""Calls to shards over one route: a topology record and the connections to its shards; and what becomes of them.

A Route never changes and is used from any thread; a Work belongs to the thread that waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc

from embedstore.client_streams import ClientStreams
from embedstore.errors import ClosedError, StaleEpochError, UnavailableError, WrongShardError
from embedstore.peers import Peer
from embedstore.status import SILENT, Topology, is_refusal, may_come_again
from embedstore.wire import check_message


class Call(NamedTuple):
    """A request to shard ``shard`` that waits to be sent."""

    shard: int
    method: str
    request: bytes


class Route:
    """One record and the connections to its shards, in order; it never changes. ``streams`` are the same as long as the
    number of shards is."""

    def __init__(self, topology: Topology, peers: Sequence[Peer], streams: ClientStreams) -> None:
        self.topology = topology
        self.epoch = topology.epoch
        self.peers = tuple(peers)
        self.streams = streams
        self.users = 0

    def __len__(self) -> int:
        return len(self.peers)

    def address(self, shard: int) -> str:
        """Where shard ``shard`` is."""
        return self.peers[shard].address

    def attempt(self, calls: Sequence[Call], waiting: Sequence[int], timeout_s: float) -> list[tuple[int, Any]]:
        """Send the waiting ones of ``calls`` side by side; the answer or error of each, when all have one."""
        futures = []
        for i in waiting[:-1]:
            call = calls[i]
            futures.append((i, self.peers[call.shard].unary(call.method).future(call.request, timeout=timeout_s)))
        last = waiting[-1]
        call = calls[last]
        try:
            outcome = self.peers[call.shard].unary(call.method)(call.request, timeout=timeout_s)
        except grpc.RpcError as error:
            outcome = error
        return [*((i, future.exception() or future.result()) for i, future in futures), (last, outcome)]


class Reply(NamedTuple):
    """What became of a call at ``address``. ``moved``: nothing, because the number of shards is another by now;
    ``doubtful``: an attempt got no answer, so that it may have been carried out."""

    call: Call
    address: str
    outcome: bytes | Exception
    moved: bool
    doubtful: bool


class First(NamedTuple):
    """A first attempt that was made already, of the only call of a plan, at ``began_s`` by the monotonic clock."""

    route: Route
    began_s: float
    outcome: Any

    def answered(self, method: str) -> list[Reply]:
        """The answer to this ``method``, if that is what it brought."""
        call = Call(0, method, b"")
        return [Reply(call, self.route.address(0), self.outcome, False, False)] if type(self.outcome) is bytes else []


Plan = Callable[[Route], Sequence[Call]]
"""The calls over a route. Over two routes with as many shards it gives the same ones, except for the epoch."""


class Work:
    """Calls under way. ``outcomes`` is None for those that wait."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.calls: Sequence[Call] = ()
        self.outcomes: list[bytes | Exception | None] = []
        self.refusals: dict[int, Exception] = {}
        self.doubtful: set[int] = set()

    def over(self, route: Route, plan: Plan) -> None:
        """Go on over this route. :class:`LimitError` when a request is larger than messages may be."""
        same = self.route is not None and self.route.streams is route.streams
        self.route, self.calls = route, plan(route)
        for call in self.calls:
            check_message(f"{call.method}Request", len(call.request))
        if not same:
            self.outcomes = [None] * len(self.calls)
            self.doubtful.clear()

    @property
    def waiting(self) -> list[int]:
        """Those that have neither answer nor error."""
        return [i for i, outcome in enumerate(self.outcomes) if outcome is None]

    def note(self, i: int, outcome: bytes | grpc.RpcError) -> None:
        """Settle call ``i``, or let it wait for another attempt."""
        if not isinstance(outcome, grpc.RpcError):
            self.outcomes[i] = outcome
            return
        assert self.route is not None
        peer = self.route.peers[self.calls[i].shard]
        address, error = peer.address, peer.explain(outcome)
        if isinstance(error, UnavailableError) and error.address != address:
            error = UnavailableError(address, f"{error.address}: {error.problem}")
        if outcome.code() in SILENT and not is_refusal(outcome):
            self.doubtful.add(i)
        if may_come_again(outcome) or isinstance(error, StaleEpochError) or newer(error, self.route):
            self.refusals[i] = error
        else:
            self.outcomes[i] = error

    def replies(self, closed: bool, moved: bool) -> list[Reply]:
        """What became of all calls, those that still wait included."""
        return [self._reply(i, closed, moved) for i in range(len(self.calls))]

    def _reply(self, i: int, closed: bool, moved: bool) -> Reply:
        assert self.route is not None
        address, outcome = self.route.address(self.calls[i].shard), self.outcomes[i]
        if isinstance(outcome, bytes):
            return Reply(self.calls[i], address, outcome, False, i in self.doubtful)
        waits = outcome is None
        if outcome is None:
            outcome = self.refusals.get(i) or UnavailableError(address, "was not asked")
            if not isinstance(outcome, UnavailableError):
                outcome = UnavailableError(address, str(outcome))
        if closed and isinstance(outcome, UnavailableError):
            outcome = ClosedError("the store is closed")
        return Reply(self.calls[i], address, outcome, waits and moved, i in self.doubtful)


def newer(error: Exception, route: Route) -> bool:
    """Whether the error says that there is a newer record."""
    if not isinstance(error, StaleEpochError | WrongShardError) or error.topology is None:
        return False
    return bool(error.topology.epoch > route.epoch)
