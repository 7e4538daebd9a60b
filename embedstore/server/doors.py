"""How many calls may be open at once, and which has to go when there is no place for another.

A call holds a thread from its first byte on, also while its request is not there yet, or while its caller takes no
answers. Such a call waits for its caller, and the one that has waited longest goes when a place is needed; a request
that has come is never cut off for another. One host has at most three quarters of the places. Where nothing
waits, the new call is refused as UNAVAILABLE, before anything of it is read, and may come again. A request that takes
longer than ``ARRIVAL_S`` to arrive ends in any case.

As long as there are few calls, nobody asks where they come from: that takes longer than all the rest of this, and small
pulls would feel it. Usable from any thread.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from embedstore.errors import InvalidArgumentError, UnavailableError
from embedstore.server.metrics import Requests
from embedstore.status import to_status

ARRIVAL_S = 30.0
"""How long a request may take to arrive: the largest, at 18 Mbit/s."""
_IPV6 = "ipv6:"


class BusyError(UnavailableError):
    """There is no place for another call now. Nothing of it was done."""


def of_one_host(places: int) -> int:
    """How many of so many places one host may have."""
    return places - places // 4


def host_of(peer: str) -> str:
    """The host in what gRPC calls a peer, such as ipv4:127.0.0.1:50000. In IPv6 it is the network of the first 64 bits,
    in all of which one host may have addresses."""
    host, _, _ = peer.rpartition(":")
    if not host.startswith(_IPV6):
        return host or peer
    try:
        address = ipaddress.IPv6Address(unquote(host.removeprefix(_IPV6)).strip("[]"))
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return f"ipv4:{address.ipv4_mapped}"
    return f"{_IPV6}{ipaddress.IPv6Address(int(address) >> 64 << 64)}"


class _Host:
    """The calls of one host; ``waiting``: those that may go, who has waited longest first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.waiting: dict[_Call, None] = {}


class _Call:
    """One call. ``waits``: for its caller; ``gone``: its place is free again, and it is being cut off; ``host``: where
    it comes from, once somebody has asked."""

    waits = True
    arrived = False
    gone = False
    seen_s = 0.0
    host: _Host | None = None

    def __init__(self, context: grpc.ServicerContext, method: str) -> None:
        self.context = context
        self.method = method


class Door:
    """Lets calls in, to ``places``; refusals, and calls that had to go, are counted in ``requests``. ``all_may_go``:
    not only those that wait for their caller."""

    def __init__(
        self, places: int, requests: Requests, *, all_may_go: bool = False, arrival_s: float = ARRIVAL_S
    ) -> None:
        self._places = places
        self._of_one_host = of_one_host(places)
        self._calm = places // 4
        self._requests = requests
        self._all_may_go = all_may_go
        self._arrival_s = arrival_s
        self._lock = threading.Lock()
        self._unasked: dict[_Call, None] = {}  # whose host nobody knows; taken from without the lock
        self._hosts: dict[str, _Host] = {}
        self._known = 0

    @property
    def calls(self) -> int:
        """How many are open."""
        return len(self._unasked) + self._known

    def guard(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """The same method behind this door. It is one with a stream of requests, whatever it was: then it is called
        before the request has come."""
        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            stream = self._stream(method, handler.unary_stream)
        else:
            assert handler.stream_stream is not None
            stream = self._conversation(method, handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)

    def end_overdue(self) -> None:
        """End the calls whose request should have come by now; to be called every second or so."""
        now_s = time.monotonic()
        overdue = []
        with self._lock:
            waiting = [call for host in self._hosts.values() for call in host.waiting]
            for call in (*waiting, *list(self._unasked)):
                call.seen_s = call.seen_s or now_s
                if not call.arrived and now_s - call.seen_s >= self._arrival_s and self._remove(call):
                    overdue.append(call)
        for call in overdue:
            self._cut(call)

    # -- handlers

    def _unary(self, method: str, handle: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[[Any, Any], Any]:
        def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            call = self._enter(context, method)
            try:
                return handle(self._request(call, requests), context)
            finally:
                self._leave(call)

        return answer

    def _stream(
        self, method: str, handle: Callable[[Any, grpc.ServicerContext], Iterable[Any]]
    ) -> Callable[[Any, Any], Iterator[Any]]:
        def answers(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            call = self._enter(context, method)
            try:
                for message in handle(self._request(call, requests), context):
                    self._wait(call)
                    yield message
                    self._go_on(call)
            finally:
                self._leave(call)

        return answers

    def _conversation(
        self, method: str, handle: Callable[[Iterator[Any], grpc.ServicerContext], Iterable[Any]]
    ) -> Callable[[Any, Any], Iterator[Any]]:
        def answers(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            call = self._enter(context, method)
            call.arrived = True
            try:
                yield from handle(requests, context)
            finally:
                self._leave(call)

        return answers

    def _request(self, call: _Call, requests: Iterator[Any]) -> Any:
        request = next(requests, None)  # RpcError when the caller goes, or had to
        call.arrived = True
        self._go_on(call)
        if request is None:  # so it looks, too, when the caller has just gone: that is no refusal to be counted
            _end(call.context, InvalidArgumentError("request", "is missing"))
        return request

    # -- places

    def _enter(self, context: grpc.ServicerContext, method: str) -> _Call:
        call = _Call(context, method)
        if len(self._unasked) + self._known < self._calm:
            self._unasked[call] = None
        else:
            self._enter_crowd(call)
        return call

    def _enter_crowd(self, call: _Call) -> None:
        name = host_of(call.context.peer())
        victim = None
        with self._lock:
            for other in list(self._unasked):
                if self._unasked.pop(other, self) is not self:
                    self._settle(other, host_of(other.context.peer()))
            host = self._hosts.get(name)
            crowded = host is not None and host.count >= self._of_one_host
            full = crowded or self._known >= self._places
            if full:
                victim = self._oldest(host if crowded else None)
            if victim is not None:
                self._remove(victim)
            if victim is not None or not full:
                self._settle(call, name)
        if victim is not None:
            self._cut(victim)
        elif full:
            limit = f"{self._of_one_host} of one host" if crowded else f"{self._places}"
            error = BusyError("calls at once", f"the limit of {limit} is reached")
            self._requests.refuse(call.method, error)
            _end(call.context, error)

    def _settle(self, call: _Call, name: str) -> None:
        host = self._hosts.setdefault(name, _Host(name))
        host.count += 1
        self._known += 1
        call.host = host
        if call.waits:  # looked at after its host is known: see _go_on
            host.waiting[call] = None

    def _oldest(self, host: _Host | None) -> _Call | None:
        """Who has to go: of this host, or of the one with most of those that may."""
        if host is None:
            host = max(self._hosts.values(), key=lambda each: len(each.waiting), default=None)
        return None if host is None else next(iter(host.waiting), None)

    def _remove(self, call: _Call) -> bool:
        """Let its place go; False: it has none any more."""
        call.gone = True
        host = call.host
        if host is None:
            return self._unasked.pop(call, self) is not self
        host.waiting.pop(call, None)
        host.count -= 1
        self._known -= 1
        if not host.count:
            del self._hosts[host.name]
        return True

    def _leave(self, call: _Call) -> None:
        if self._unasked.pop(call, self) is self:
            with self._lock:  # somebody has asked for its host, or has removed it
                if not call.gone:
                    self._remove(call)

    def _wait(self, call: _Call) -> None:
        """It waits for its caller."""
        call.waits = True
        if call.host is not None:
            with self._lock:
                if not call.gone:
                    call.host.waiting[call] = None

    def _go_on(self, call: _Call) -> None:
        """It does not any more."""
        call.waits = self._all_may_go
        if call.host is not None and not self._all_may_go:
            with self._lock:
                call.host.waiting.pop(call, None)
        if call.gone:
            _end(call.context, BusyError(call.method, "had to go"))

    def _cut(self, call: _Call) -> None:
        self._requests.refuse(call.method, BusyError(call.method, "had to go"))
        call.context.cancel()


def _end(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    context.abort_with_status(to_status(error))
    raise AssertionError("abort_with_status raises")


class Entrance:
    """A server to which services are added behind a door."""

    def __init__(self, server: grpc.Server, door: Door) -> None:
        self._server = server
        self._door = door

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """See :class:`grpc.Server`."""
        self._server.add_generic_rpc_handlers(tuple(_Guarded(handler, self._door) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """See :class:`grpc.Server`; those that come the other way are enough."""


class _Guarded(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Methods behind a door, each wrapped once."""

    def __init__(self, methods: grpc.GenericRpcHandler[Any, Any], door: Door) -> None:
        self._methods = methods
        self._door = door
        self._known: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See :class:`grpc.GenericRpcHandler`."""
        method = handler_call_details.method
        known = self._known.get(method)
        if known is None:
            handler = self._methods.service(handler_call_details)
            if handler is None:
                return None
            known = self._known[method] = self._door.guard(method.rpartition("/")[2], handler)
        return known
