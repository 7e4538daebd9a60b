"""The shards of one store as a client knows them, wherever they are by now.

A call goes by one *route*: a topology record, split by its number of shards, sent over its connections. What gets no
answer is repeated with growing pauses until the call's patience ends. Before that repetition all known members are
asked whether there is a newer record. A shard that goes by a newer one refuses the call and sends it along. Either way
the record is adopted, by all calls of this client, and the call goes on over the new route: split anew when the number
of shards is another, else only what is unanswered is sent again. A shard that has not learnt of a record yet refuses
too, and is asked again. The epoch of the record never goes down; connections that the new route does not need are
closed when the last call over an old one has ended. Everything may be called from any thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc

from embedstore import discovery
from embedstore.client_streams import ClientStreams
from embedstore.credentials import PLAIN, Credentials
from embedstore.errors import ClosedError, EmbedstoreError, StaleEpochError, UnavailableError, WrongShardError
from embedstore.peers import Deadline, Patience, Peer, parse_addresses
from embedstore.status import SILENT, Topology, from_rpc_error, is_refusal

log = logging.getLogger(__name__)

SEARCH_S = 1.0
"""How long members may take to say which record they go by."""
FORMER_MEMBERS_MAX = 64


@dataclass(frozen=True)
class Call:
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
        *others, last = waiting
        futures = []
        for i in others:
            call = calls[i]
            futures.append((i, self.peers[call.shard].unary(call.method).future(call.request, timeout=timeout_s)))
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


Plan = Callable[[Route], Sequence[Call]]
"""The calls over a route. Over two routes with as many shards it gives the same ones, except for the epoch."""


class _Work:
    """Calls under way. ``outcomes`` is None for those that wait."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.calls: Sequence[Call] = ()
        self.outcomes: list[bytes | Exception | None] = []
        self.refusals: dict[int, Exception] = {}
        self.doubtful: set[int] = set()

    def over(self, route: Route, plan: Plan) -> None:
        """Go on over this route."""
        same = self.route is not None and self.route.streams is route.streams
        self.route, self.calls = route, plan(route)
        if not same:
            self.outcomes = [None] * len(self.calls)
            self.doubtful.clear()

    @property
    def waiting(self) -> list[int]:
        return [i for i, outcome in enumerate(self.outcomes) if outcome is None]

    def note(self, i: int, outcome: bytes | grpc.RpcError) -> None:
        """Settle call ``i``, or let it wait for another attempt."""
        if not isinstance(outcome, grpc.RpcError):
            self.outcomes[i] = outcome
            return
        assert self.route is not None
        address = self.route.address(self.calls[i].shard)
        error = from_rpc_error(outcome, address)
        if isinstance(error, UnavailableError) and error.address != address:
            error = UnavailableError(address, f"{error.address}: {error.problem}")
        silent = outcome.code() in SILENT
        if silent and not is_refusal(outcome):
            self.doubtful.add(i)
        if silent or isinstance(error, StaleEpochError) or _newer(error, self.route):
            self.refusals[i] = error
        else:
            self.outcomes[i] = error

    def replies(self, closed: bool, moved: bool) -> list[Reply]:
        return [self._reply(i, closed, moved) for i in range(len(self.calls))]

    def _reply(self, i: int, closed: bool, moved: bool) -> Reply:
        assert self.route is not None
        address, outcome = self.route.address(self.calls[i].shard), self.outcomes[i]
        waits = outcome is None
        if outcome is None:
            outcome = self.refusals.get(i) or UnavailableError(address, "was not asked")
            if not isinstance(outcome, UnavailableError):
                outcome = UnavailableError(address, str(outcome))
        if closed and isinstance(outcome, UnavailableError):
            outcome = ClosedError("the store is closed")
        return Reply(self.calls[i], address, outcome, waits and moved, i in self.doubtful)


class Cluster:
    """See the module. ``given``: the addresses by which the shards were found."""

    def __init__(
        self,
        topology: Topology,
        given: Iterable[str],
        peers: Iterable[Peer],
        patience: Patience,
        credentials: Credentials = PLAIN,
    ) -> None:
        self.patience = patience
        self._credentials = credentials
        known = {peer.address: peer for peer in peers}
        used = [known.get(address) or Peer(address, credentials) for address in topology.addresses]
        for peer in set(known.values()) - set(used):
            peer.close()
        self._route = Route(topology, used, ClientStreams(topology.num_shards))
        self._routes = [self._route]
        self._given = tuple(given)
        self._former: list[str] = []
        self._lock = threading.Lock()
        self._searching = threading.Lock()
        self._searches = 0
        self._closed = threading.Event()

    @property
    def topology(self) -> Topology:
        """The record that calls go by now."""
        return self._route.topology

    def __len__(self) -> int:
        return len(self._route)

    def address(self, shard: int) -> str:
        """Where shard ``shard`` is now."""
        return self._route.address(shard)

    def close(self) -> None:
        """Cancel what is in flight; every later call is a :class:`ClosedError`. Twice is harmless."""
        self._closed.set()
        with self._lock:
            peers = {peer for route in self._routes for peer in route.peers}
        for peer in peers:
            peer.close()

    def check_open(self) -> None:
        """Raise :class:`ClosedError` once closed."""
        if self._closed.is_set():
            raise ClosedError("the store is closed")

    # -- calls

    def call(self, shard: int, method: str, request: bytes, patience: Patience | None = None) -> bytes:
        """One call to one shard, with its retries."""
        [reply] = self.ask(lambda route: [Call(shard, method, request)], Deadline(patience or self.patience))
        if isinstance(reply.outcome, Exception):
            raise reply.outcome
        return reply.outcome

    def ask(self, plan: Plan, deadline: Deadline | None = None, streams: ClientStreams | None = None) -> list[Reply]:
        """The calls of ``plan`` side by side, each with its retries; returns when the last has its answer or its error.

        With ``streams``, only over routes that have these; replies are ``moved`` when there is none any more, and there
        are no replies when there was none from the beginning.
        """
        self.check_open()
        deadline = deadline or Deadline(self.patience)
        work = _Work()
        while True:
            with self.route() as route:
                if streams is not None and route.streams is not streams:
                    return work.replies(self._closed.is_set(), moved=True)
                work.over(route, plan)
                if self._over(route, work, deadline) or deadline.passed:
                    return work.replies(self._closed.is_set(), moved=False)

    def _over(self, route: Route, work: _Work, deadline: Deadline) -> bool:
        """Attempts over one route; False: go on over another."""
        while waiting := work.waiting:
            for i, outcome in self._attempt(route, work.calls, waiting, deadline.attempt_s()):
                work.note(i, outcome)
            if not (waiting := work.waiting):
                break
            self._learn(route, [work.refusals[i] for i in waiting], deadline)
            if route is not self._route:
                return False
            if not deadline.pause(self._closed, work.refusals[waiting[0]]):
                break
            if route is not self._route:
                return False
        return True

    def _attempt(
        self, route: Route, calls: Sequence[Call], waiting: Sequence[int], timeout_s: float
    ) -> list[tuple[int, Any]]:
        try:
            return route.attempt(calls, waiting, timeout_s)
        except ValueError as error:  # grpc's way to say that the channel was closed
            self.check_open()
            raise EmbedstoreError(str(error)) from error
        except grpc.FutureCancelledError:
            self.check_open()
            raise

    def stream(self, plan: Callable[[Route], Call], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """A server-streaming call: each message with the address it came from. It is repeated, and planned anew, only
        as long as nothing has arrived."""
        deadline = Deadline(self.patience)
        while True:
            self.check_open()
            with self.route() as route:
                work, arrived = _Work(), False
                work.over(route, lambda route: [plan(route)])
                [call] = work.calls
                try:
                    for message in route.peers[call.shard].stream(call.method, call.request, timeout_s):
                        arrived = True
                        yield route.address(call.shard), message
                    return
                except grpc.RpcError as error:
                    work.note(0, error)
                except ValueError as error:  # as in _attempt
                    self.check_open()
                    raise EmbedstoreError(str(error)) from error
                if work.waiting and not arrived:
                    self._learn(route, [work.refusals[0]], deadline)
                    if route is not self._route or deadline.pause(self._closed, work.refusals[0]):
                        continue
                [reply] = work.replies(self._closed.is_set(), moved=False)
                assert isinstance(reply.outcome, Exception)
                raise reply.outcome

    # -- routes

    @contextmanager
    def route(self) -> Iterator[Route]:
        """The route to take now; its connections stay open meanwhile."""
        with self._lock:
            route = self._route
            route.users += 1
        try:
            yield route
        finally:
            with self._lock:
                route.users -= 1
                unused = self._forget_routes() if route is not self._route and not route.users else ()
            for peer in unused:
                peer.close()

    def adopt(self, record: Topology) -> bool:
        """Go by this record from now on, if it is complete and newer than the present one."""
        if not discovery.is_complete(record):
            log.warning("a topology record that cannot be was not adopted: %s", record)
            return False
        with self._lock:
            old = self._route
            if record.epoch <= old.epoch or self._closed.is_set():
                return False
            known = {peer.address: peer for route in self._routes for peer in route.peers}
            peers = [known.get(address) or Peer(address, self._credentials) for address in record.addresses]
            streams = old.streams if len(old) == record.num_shards else ClientStreams(record.num_shards)
            self._route = Route(record, peers, streams)
            self._routes.append(self._route)
            gone = [address for address in old.topology.addresses if address not in record.addresses]
            self._former = list(dict.fromkeys([*self._former, *gone]))[-FORMER_MEMBERS_MAX:]
            unused = self._forget_routes()
        for peer in unused:
            peer.close()
        log.info("epoch %d: the shards are %s", record.epoch, ", ".join(record.addresses))
        return True

    def _forget_routes(self) -> set[Peer]:
        """Old routes that nobody takes any more; returns the connections that belonged to them alone."""
        left = [route for route in self._routes if route.users or route is self._route]
        unused = {peer for route in self._routes for peer in route.peers} - {peer for r in left for peer in r.peers}
        self._routes = left
        return unused

    def _learn(self, route: Route, errors: Iterable[Exception], deadline: Deadline) -> None:
        """Find a newer record than the route's, if there is one: sent along with a refusal, or known to a member."""
        unclear = False
        for error in errors:
            if not isinstance(error, StaleEpochError | WrongShardError):
                unclear = True
            elif _newer(error, route):
                unclear = not self.adopt(error.topology) or unclear
        if unclear and route is self._route:
            self._search(route, deadline.left_s(SEARCH_S))

    def _search(self, route: Route, timeout_s: float) -> None:
        """Ask all known members for their record; one caller does it for all that wait meanwhile."""
        before = self._searches
        with self._searching:
            if before != self._searches or route is not self._route or self._closed.is_set():
                return
            present = {peer.address: peer for peer in route.peers}
            absent = [each for each in dict.fromkeys([*self._given, *self._former]) if each not in present]
            others = {address: Peer(address, self._credentials) for address in absent}
            try:
                for peer in route.peers:
                    peer.renew()
                record = discovery.newest(discovery.ask(present | others, timeout_s).found)
            except ClosedError:
                self.check_open()
                record = None
            finally:
                self._searches += 1
                for peer in others.values():
                    peer.close()
            if record is not None and record.epoch > route.epoch:
                self.adopt(record)


def _newer(error: Exception, route: Route) -> bool:
    """Whether the error says that there is a newer record."""
    if not isinstance(error, StaleEpochError | WrongShardError) or error.topology is None:
        return False
    return bool(error.topology.epoch > route.epoch)


def discover(addresses: str | Iterable[str], patience: Patience, credentials: Credentials) -> Cluster:
    """Ask the given members who the shards are, and connect to all of them; see :func:`discovery.first_record`."""
    asked = {address: Peer(address, credentials) for address in parse_addresses(addresses)}
    try:
        topology = discovery.first_record(asked, patience)
    except BaseException:
        for peer in asked.values():
            peer.close()
        raise
    return Cluster(topology, asked, asked.values(), patience, credentials)
