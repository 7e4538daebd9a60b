"""Servers by address: their channels, how long to wait for them, and how addresses are written.

Messages are bytes here, the caller encodes and decodes. Usable from any thread.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple

import grpc

from embedstore.credentials import Credentials
from embedstore.errors import ClosedError, InvalidArgumentError
from embedstore.placement import NUM_SHARDS_MAX
from embedstore.status import METADATA_BYTES_MAX
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
ADDRESS_CHARS_MAX = 255
WORD_INTERVAL_S = 5.0
"""Whoever waits for a peer says so about as often."""
log = logging.getLogger(__name__)
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
        "Reassign",
        "Activate",
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


class Deadline:
    """The end of one call's patience, shared by all its attempts. Belongs to the thread that makes them. ``began_s``:
    when it began, by the monotonic clock; now, if not given."""

    def __init__(self, patience: Patience, began_s: float | None = None) -> None:
        self._patience = patience
        began_s = time.monotonic() if began_s is None else began_s
        self._ends_s = began_s + patience.retry_s
        self._word_s = began_s + WORD_INTERVAL_S
        self._pauses = 0

    @property
    def passed(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() >= self._ends_s

    def left_s(self, longest_s: float) -> float:
        """How long something may take that should take at most ``longest_s``; never nothing at all."""
        return min(longest_s, max(self._ends_s - time.monotonic(), 0.001))

    def attempt_s(self) -> float:
        """How long the next attempt may take."""
        return self.left_s(self._patience.timeout_s)

    def pause(self, closed: threading.Event, problem: Exception) -> bool:
        """Wait before another attempt after ``problem``; False: there is no time for one, or everything was closed."""
        delay_s = self._patience.delay_s(self._pauses, random.random())
        self._pauses += 1
        now_s = time.monotonic()
        if now_s + delay_s >= self._ends_s:
            return False
        if now_s >= self._word_s:
            self._word_s = now_s + WORD_INTERVAL_S
            log.warning("%s; trying on for %.0f s", problem, self._ends_s - now_s)
        return not closed.wait(delay_s)


def method_path(method: str) -> str:
    """The gRPC path of a method of EmbeddingService or AdminService."""
    return (_ADMIN if method in _ADMIN_METHODS else _EMBEDDING) + method


class _Line(NamedTuple):
    """A channel and the callables of its methods."""

    channel: grpc.Channel
    methods: dict[str, Any]


class Peer:
    """One server and its channel."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        self.address = address
        self._credentials = credentials
        self._stamp = credentials.stamp()
        self._line = _Line(credentials.channel(address, CHANNEL_OPTIONS), {})
        self._former: _Line | None = None

    def renew(self) -> None:
        """Open another channel if certificates have been renewed, for one thread at a time. Calls that are in flight
        over the present one may end there: it is closed when there is another again."""
        stamp = self._credentials.stamp()
        if stamp == self._stamp:
            return
        former, new = self._former, _Line(self._credentials.channel(self.address, CHANNEL_OPTIONS), {})
        self._former, self._line, self._stamp = self._line, new, stamp
        if former is not None:
            former.channel.close()

    def unary(self, method: str) -> Any:
        """The callable of a unary method, bytes in and out."""
        line = self._line
        known = line.methods.get(method)
        if known is None:
            known = line.methods[method] = line.channel.unary_unary(method_path(method), None, None)
        return known

    def stream(self, method: str, request: bytes, timeout_s: float) -> Iterator[bytes]:
        """The answers of a server-streaming method."""
        call: Any = self._line.channel.unary_stream(method_path(method), None, None)(request, timeout=timeout_s)
        return iter(call)

    def explain(self, error: Exception) -> Exception:
        """What a call that failed with ``error`` raises."""
        return self._credentials.explain(error, self.address) if isinstance(error, grpc.RpcError) else error

    def close(self) -> None:
        """Cancel what is in flight and let the connections go."""
        for line in (self._line, self._former):
            if line is not None:
                line.channel.close()


class Answer(NamedTuple):
    """What came of a question: bytes, or why there are none, a :class:`grpc.RpcError` if the call failed."""

    peer: Peer
    method: str
    outcome: bytes | Exception


class Questions:
    """Unary calls to many peers, side by side; all have ended after ``timeout_s``. ``waiting``: how many have not yet.
    Belongs to one thread."""

    def __init__(self, timeout_s: float) -> None:
        self._ends_s = time.monotonic() + timeout_s
        self._answered: SimpleQueue[tuple[Peer, str, Any]] = SimpleQueue()
        self.waiting = 0

    @property
    def left_s(self) -> float:
        """How much of the time is left."""
        return max(self._ends_s - time.monotonic(), 0.0)

    def ask(self, peer: Peer, method: str, request: bytes, timeout_s: float = float("inf")) -> None:
        """Ask one more, also while answers are being read. :class:`ClosedError` for a peer that was closed."""
        try:
            call = peer.unary(method).future(request, timeout=min(timeout_s, self.left_s))
        except ValueError as error:  # grpc's way to say that the channel was closed
            raise ClosedError(str(error)) from error
        self.waiting += 1
        call.add_done_callback(lambda done: self._answered.put((peer, method, done)))

    def answers(self) -> Iterator[Answer]:
        """As they come, until everyone that was asked has answered or cannot any more. :class:`ClosedError` when a
        peer was closed meanwhile."""
        while self.waiting:
            peer, method, done = self._answered.get()
            self.waiting -= 1
            try:
                outcome = done.exception() or done.result()
            except grpc.FutureCancelledError as error:
                raise ClosedError(str(error)) from error
            yield Answer(peer, method, outcome)


def is_address(address: str) -> bool:
    """Whether it is host:port, as far as can be seen."""
    if len(address) > ADDRESS_CHARS_MAX or not address.isprintable() or " " in address or "," in address:
        return False
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 1 << 16


def is_nowhere(address: str) -> bool:
    """Whether its host stands for every address of a machine, such as 0.0.0.0."""
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_unspecified
    except ValueError:  # a name
        return False


def check_address(field: str, address: str) -> None:
    """Raise unless this is one ``host:port`` at which others can reach somebody."""
    try:
        parsed = parse_addresses((address,))
    except InvalidArgumentError as error:
        raise InvalidArgumentError(field, error.problem) from None
    if parsed != (address,):
        raise InvalidArgumentError(field, f"must be host:port, not {address!r}")
    if is_nowhere(address):
        raise InvalidArgumentError(field, f"must be an address at which others reach it, not {address!r}")


def parse_addresses(addresses: str | Iterable[str]) -> tuple[str, ...]:
    """``"host:port,host:port"`` or a sequence of them."""
    parts = addresses.split(",") if isinstance(addresses, str) else list(addresses)
    cleaned = tuple(part.strip() for part in parts)
    if not cleaned or len(cleaned) > NUM_SHARDS_MAX:
        raise InvalidArgumentError("addresses", f"must name 1 to {NUM_SHARDS_MAX} servers")
    for address in cleaned:
        if not is_address(address):
            raise InvalidArgumentError("addresses", f"must be host:port, not {address[:ADDRESS_CHARS_MAX]!r}")
    if len(set(cleaned)) != len(cleaned):
        raise InvalidArgumentError("addresses", "an address comes twice")
    return cleaned
