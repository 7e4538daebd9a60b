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
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from embedstore import discovery
from embedstore.client_streams import ClientStreams
from embedstore.credentials import PLAIN, Credentials
from embedstore.errors import ClosedError, EmbedstoreError, StaleEpochError, WrongShardError
from embedstore.peers import Deadline, Patience, Peer, parse_addresses
from embedstore.routes import Call, First, Plan, Reply, Route, Work, newer
from embedstore.status import Topology

log = logging.getLogger(__name__)

SEARCH_S = 1.0
"""How long members may take to say which record they go by."""
FORMER_MEMBERS_MAX = 64


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

    def attempt_first(self, shard: int, method: str, request: Callable[[Route], bytes | None]) -> First | None:
        """A call's first attempt, for :meth:`ask` to go on with should it not have brought the answer; None: there is
        no request for this route. Less work than all of :meth:`ask`, which is what small calls consist of."""
        began_s = time.monotonic()
        route = self._take()
        try:
            data = request(route)
            if data is None:
                return None
            timeout_s = min(self.patience.timeout_s, self.patience.retry_s)
            [(_, outcome)] = self._attempt(route, (Call(shard, method, data),), (0,), timeout_s)
            return First(route, began_s, outcome)
        finally:
            self._leave(route)

    def ask(
        self,
        plan: Plan,
        deadline: Deadline | None = None,
        streams: ClientStreams | None = None,
        first: First | None = None,
    ) -> list[Reply]:
        """The calls of ``plan`` side by side, each with its retries; returns when the last has its answer or its error.

        With ``streams``, only over routes that have these; replies are ``moved`` when there is none any more, and there
        are no replies when there was none from the beginning.
        """
        self.check_open()
        deadline = deadline or Deadline(self.patience, first.began_s if first else None)
        work = Work()
        while True:
            route = self._take()
            try:
                if streams is not None and route.streams is not streams:
                    return work.replies(self._closed.is_set(), moved=True)
                work.over(route, plan)
                if first is not None and first.route is route:
                    done = self._over(route, work, deadline, [(0, first.outcome)])
                else:
                    done = self._over(route, work, deadline)
                if done or deadline.passed:
                    return work.replies(self._closed.is_set(), moved=False)
            finally:
                self._leave(route)

    def _over(
        self, route: Route, work: Work, deadline: Deadline, outcomes: list[tuple[int, Any]] | None = None
    ) -> bool:
        """Attempts over one route, of which the first may have been made; False: go on over another."""
        waiting: Sequence[int] = work.waiting
        while waiting:
            for i, outcome in outcomes or self._attempt(route, work.calls, waiting, deadline.attempt_s()):
                work.note(i, outcome)
            outcomes = None
            waiting = work.waiting
            if not waiting:
                break
            self._learn(route, [work.refusals[i] for i in waiting], deadline)
            if route is not self._route:
                return False
            if not deadline.pause(self._closed, work.refusals[waiting[0]]):
                break
            if route is not self._route:
                return False
            waiting = work.waiting
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
                work, arrived = Work(), False
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
        route = self._take()
        try:
            yield route
        finally:
            self._leave(route)

    def _take(self) -> Route:
        with self._lock:
            route = self._route
            route.users += 1
        return route

    def _leave(self, route: Route) -> None:
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
            elif newer(error, route):
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
