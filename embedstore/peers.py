"""Calls to shard servers: channels, deadlines, retries, and who serves what.

Every call has a deadline. One that gets no answer (UNAVAILABLE, DEADLINE_EXCEEDED, or cut off) is repeated with
exponential backoff and jitter until ``retry_s`` have passed since the first attempt; then :class:`UnavailableError`
names the address. Messages are bytes here, the caller encodes and decodes. Usable from any thread.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from embedstore.errors import ClosedError, EmbedstoreError, InvalidArgumentError, UnavailableError
from embedstore.placement import NUM_SHARDS_MAX
from embedstore.status import METADATA_BYTES_MAX, SILENT, Topology, from_rpc_error, topology_from_proto
from embedstore.v1 import admin_pb2
from embedstore.wire import MESSAGE_BYTES_MAX

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    # A shard that comes back on its port is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A peer whose machine went away without a word is noticed.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
_EMBEDDING = "/embedstore.v1.EmbeddingService/"
_ADMIN = "/embedstore.v1.AdminService/"
_ADMIN_METHODS = frozenset(
    [
        "CreateTable",
        "AlterTable",
        "DropTable",
        "DescribeTable",
        "ListTables",
        "Sweep",
        "Checkpoint",
        "Topology",
        "Stats",
    ]
)


@dataclass(frozen=True)
class Patience:
    """How long to wait: ``timeout_s`` for one attempt, ``retry_s`` for all attempts of a call together."""

    timeout_s: float = 10.0
    retry_s: float = 30.0
    backoff_s: float = 0.05
    backoff_max_s: float = 0.5

    def __post_init__(self) -> None:
        for name in ("timeout_s", "retry_s", "backoff_s", "backoff_max_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InvalidArgumentError(name, f"must be a positive number of seconds, not {value!r}")

    def delay_s(self, attempt: int, jitter: float) -> float:
        """Wait before attempt ``attempt`` + 1; ``jitter`` in [0, 1) takes away up to half."""
        return float(min(self.backoff_s * 2.0 ** min(attempt, 32), self.backoff_max_s)) * (1.0 - jitter / 2)


def method_path(method: str) -> str:
    """The gRPC path of a method of EmbeddingService or AdminService."""
    return (_ADMIN if method in _ADMIN_METHODS else _EMBEDDING) + method


class Peer:
    """One server and its channel."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._methods: dict[str, Any] = {}

    def unary(self, method: str) -> Any:
        """The callable of a unary method, bytes in and out."""
        known = self._methods.get(method)
        if known is None:
            known = self._methods[method] = self._channel.unary_unary(method_path(method), None, None)
        return known

    def stream(self, method: str, request: bytes, timeout_s: float) -> Iterator[bytes]:
        """The answers of a server-streaming method."""
        call: Any = self._channel.unary_stream(method_path(method), None, None)(request, timeout=timeout_s)
        return iter(call)

    def close(self) -> None:
        """Cancel what is in flight and let the connection go."""
        self._channel.close()


@dataclass(frozen=True)
class Call:
    """A request to shard ``shard`` that waits to be sent."""

    shard: int
    method: str
    request: bytes


class Peers:
    """The shards of one store, in order. ``topology`` is the record this client goes by."""

    def __init__(self, topology: Topology, peers: Sequence[Peer], patience: Patience) -> None:
        self.topology = topology
        self.patience = patience
        self._peers = list(peers)
        self._closed = threading.Event()

    def __len__(self) -> int:
        return len(self._peers)

    def address(self, shard: int) -> str:
        """Where shard ``shard`` is."""
        return self._peers[shard].address

    def close(self) -> None:
        """Cancel what is in flight; every later call is a :class:`ClosedError`. Twice is harmless."""
        self._closed.set()
        for peer in self._peers:
            peer.close()

    def check_open(self) -> None:
        """Raise :class:`ClosedError` once closed."""
        if self._closed.is_set():
            raise ClosedError("the store is closed")

    def call(self, shard: int, method: str, request: bytes, patience: Patience | None = None) -> bytes:
        """One call, with its retries."""
        [outcome] = self.call_all([Call(shard, method, request)], patience)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def call_all(self, calls: Sequence[Call], patience: Patience | None = None) -> list[bytes | Exception]:
        """All calls side by side, each with its retries; returns when the last has its answer or its error."""
        self.check_open()
        patience = patience or self.patience
        if not calls:
            return []
        outcomes: list[bytes | Exception] = [b""] * len(calls)
        waiting = list(range(len(calls)))
        deadline = time.monotonic() + patience.retry_s
        attempt = 0
        while True:
            left_s = deadline - time.monotonic()
            self._attempt(calls, waiting, outcomes, min(patience.timeout_s, max(left_s, 0.001)))
            waiting = [i for i in waiting if _is_retried(outcomes[i])]
            if not waiting:
                break
            delay_s = patience.delay_s(attempt, random.random())
            if time.monotonic() + delay_s >= deadline or self._closed.wait(delay_s):
                break
            attempt += 1
        return [self._error(calls[i], outcome) for i, outcome in enumerate(outcomes)]

    def _attempt(
        self, calls: Sequence[Call], waiting: list[int], outcomes: list[bytes | Exception], timeout_s: float
    ) -> None:
        *others, last = waiting
        futures: list[tuple[int, Any]] = []
        try:
            for i in others:
                call = calls[i]
                futures.append((i, self._peers[call.shard].unary(call.method).future(call.request, timeout=timeout_s)))
            call = calls[last]
            try:
                outcomes[last] = self._peers[call.shard].unary(call.method)(call.request, timeout=timeout_s)
            except grpc.RpcError as error:
                outcomes[last] = error
            for i, future in futures:
                failure = future.exception()
                outcomes[i] = future.result() if failure is None else failure
        except ValueError as error:  # grpc's way to say that the channel was closed
            self.check_open()
            raise EmbedstoreError(str(error)) from error
        except grpc.FutureCancelledError:
            self.check_open()
            raise

    def _error(self, call: Call, outcome: bytes | Exception) -> bytes | Exception:
        if not isinstance(outcome, grpc.RpcError):
            return outcome
        if self._closed.is_set():
            return ClosedError("the store is closed")
        error = from_rpc_error(outcome, self.address(call.shard))
        if isinstance(error, UnavailableError) and error.address != self.address(call.shard):
            return UnavailableError(self.address(call.shard), f"{error.address}: {error.problem}")
        return error

    def stream(self, shard: int, method: str, request: bytes, timeout_s: float) -> Iterator[bytes]:
        """A server-streaming call; repeated only as long as nothing has arrived."""
        deadline = time.monotonic() + self.patience.retry_s
        attempt = 0
        while True:
            self.check_open()
            arrived = False
            try:
                for message in self._peers[shard].stream(method, request, timeout_s):
                    arrived = True
                    yield message
                return
            except grpc.RpcError as error:
                delay_s = self.patience.delay_s(attempt, random.random())
                late = time.monotonic() + delay_s >= deadline
                if arrived or late or not _is_retried(error) or self._closed.wait(delay_s):
                    raise self._as_exception(Call(shard, method, request), error) from None
                attempt += 1
            except ValueError as error:  # as in _attempt
                self.check_open()
                raise EmbedstoreError(str(error)) from error

    def _as_exception(self, call: Call, error: Exception) -> Exception:
        outcome = self._error(call, error)
        assert isinstance(outcome, Exception)
        return outcome


def _is_retried(outcome: bytes | Exception) -> bool:
    return isinstance(outcome, grpc.RpcError) and outcome.code() in SILENT


def parse_addresses(addresses: str | Iterable[str]) -> tuple[str, ...]:
    """``"host:port,host:port"`` or a sequence of them."""
    parts = addresses.split(",") if isinstance(addresses, str) else list(addresses)
    cleaned = tuple(part.strip() for part in parts)
    if not cleaned or len(cleaned) > NUM_SHARDS_MAX:
        raise InvalidArgumentError("addresses", f"must name 1 to {NUM_SHARDS_MAX} servers")
    for address in cleaned:
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise InvalidArgumentError("addresses", f"must be host:port, not {address!r}")
    if len(set(cleaned)) != len(cleaned):
        raise InvalidArgumentError("addresses", "an address comes twice")
    return cleaned


def discover(addresses: str | Iterable[str], patience: Patience) -> Peers:
    """Ask the given members who the shards are, and connect to all of them.

    Any one member that knows every address is enough. When none does (shards started without peers), the given
    addresses must be all shards, in any order: each is asked which shard it is.
    """
    given = parse_addresses(addresses)
    asked = {address: Peer(address) for address in given}
    try:
        topology, by_shard = _ask(asked, patience)
        peers = [asked.get(address) or Peer(address) for address in by_shard]
    except BaseException:
        for peer in asked.values():
            peer.close()
        raise
    for address, peer in asked.items():
        if address not in by_shard:
            peer.close()
    return Peers(topology._replace(addresses=by_shard), peers, patience)


def _ask(asked: dict[str, Peer], patience: Patience) -> tuple[Topology, tuple[str, ...]]:
    """The record to go by and the shards' addresses in order."""
    answers: dict[str, admin_pb2.TopologyResponse] = {}
    deadline = time.monotonic() + patience.retry_s
    attempt = 0
    while True:
        silent = _ask_once(asked, answers, patience.timeout_s)
        known = [topology_from_proto(answer.topology) for answer in answers.values()]
        complete = [record for record in known if record.num_shards == len(record.addresses) > 0]
        if complete:
            newest = max(complete, key=lambda record: record.epoch)
            return newest, newest.addresses
        if not silent:
            return _assemble(answers)
        delay_s = patience.delay_s(attempt, random.random())
        if time.monotonic() + delay_s >= deadline:
            raise next(iter(silent.values()))
        threading.Event().wait(delay_s)
        attempt += 1


def _ask_once(
    asked: dict[str, Peer], answers: dict[str, admin_pb2.TopologyResponse], timeout_s: float
) -> dict[str, Exception]:
    request = admin_pb2.TopologyRequest().SerializeToString()
    silent: dict[str, Exception] = {}
    futures = [
        (address, peer.unary("Topology").future(request, timeout=timeout_s))
        for address, peer in asked.items()
        if address not in answers
    ]
    for address, future in futures:
        error = future.exception()
        if error is None:
            answers[address] = admin_pb2.TopologyResponse.FromString(future.result())
        elif _is_retried(error):
            silent[address] = from_rpc_error(error, address)
        else:
            raise from_rpc_error(error, address)
    return silent


def _assemble(answers: dict[str, admin_pb2.TopologyResponse]) -> tuple[Topology, tuple[str, ...]]:
    num_shards = next(iter(answers.values())).topology.num_shards
    by_shard = {answer.shard: address for address, answer in answers.items()}
    for address, answer in answers.items():
        if answer.topology.num_shards != num_shards:
            raise InvalidArgumentError("addresses", f"{address} is one of {answer.topology.num_shards} shards")
    for address, answer in answers.items():
        if by_shard[answer.shard] != address:
            raise InvalidArgumentError("addresses", f"{address} and {by_shard[answer.shard]} are both {answer.shard}")
    missing = sorted(set(range(num_shards)) - set(by_shard))
    if missing:
        raise InvalidArgumentError("addresses", f"shard {missing[0]} of {num_shards} is not among {list(answers)}")
    epoch = max(answer.topology.epoch for answer in answers.values())
    addresses = tuple(by_shard[shard] for shard in range(num_shards))
    return Topology(epoch, addresses, num_shards), addresses
