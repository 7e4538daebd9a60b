"""The leader side of Follow: one call a follower, each with a window of its own.

A call has two threads: the server's, which walks the follower's :class:`~embedstore.server.feed.Feed` and waits for
changes, and a reader, which takes acknowledgements and rewinds. What is in flight is bounded in bytes and in messages;
past the window the feed stands still where it is, so a follower that stops reading costs its window and one delta, and
nobody waits for it: pushes never do, and every other call has its own thread. Each call occupies one thread of the
server's pool: give the pool ``follow_calls_max`` threads more than requests need.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import grpc

from embedstore.errors import EmbedstoreError, InvalidArgumentError, LimitError, StaleEpochError, UnavailableError
from embedstore.interface import FollowerState, check_position
from embedstore.server.doors import BusyError, host_of
from embedstore.server.feed import Feed, Pace
from embedstore.server.follow_places import FOLLOWERS_MAX, FollowPlaces
from embedstore.server.followers import Followers, Named, check_wants, name_of
from embedstore.server.shared_deltas import SharedDeltas
from embedstore.status import to_status
from embedstore.v1 import sync_pb2, sync_pb2_grpc

if TYPE_CHECKING:
    from embedstore.table_set import TableSet

log = logging.getLogger(__name__)

WANTS_TIMEOUT_S = 10.0
ROUND_PAUSE_S = 0.01
WATCH_S = 1.0
REWINDS_MAX = 1 << 16
REWIND_BYTES_MAX = 64 << 20


@dataclass(frozen=True)
class Window:
    """How much of one follower's call may be sent and not yet acknowledged, and how long a follower may leave it full:
    after ``stall_s`` its call ends, and it can come back with its cursors."""

    bytes_max: int = 8 << 20
    messages_max: int = 256
    stall_s: float = 120.0


class _Sent(NamedTuple):
    """A message on its way; ``complete_ms``: what it says is complete, 0: nothing."""

    size: int
    complete_ms: int


class _Call:
    """What the two threads of one call share. ``ended`` is final, whoever sets it."""

    def __init__(
        self,
        peer: str,
        window: Window,
        wake: Callable[[], object],
        applied: Callable[[str, Mapping[str, int], int], object],
    ) -> None:
        self.peer = peer
        self.named: Named | None = None
        self._window = window
        self._applied = applied
        self._wake = wake
        self._condition = threading.Condition()
        self._wants: sync_pb2.FollowRequest | None = None
        self._in_flight: deque[_Sent] = deque()
        self._in_flight_bytes = 0
        self._acknowledged = 0
        self._complete_ms = 0
        self._sent = 0
        self._sent_bytes = 0
        self._rounds: deque[tuple[int, int]] = deque()
        self._seen_tick = 0
        self._rewinds: list[sync_pb2.FollowRewind] = []
        self._rewind_bytes = 0
        self._error: Exception | None = None
        self._sending_since_s: float | None = None
        self.ended = False

    def read(self, requests: Iterator[sync_pb2.FollowRequest]) -> None:
        """The reader's thread: until the follower goes away or sends nonsense."""
        try:
            for request in requests:
                self._take(request)
        except grpc.RpcError:  # cancelled or cut off, which ends the call as a half-close does
            pass
        except Exception as error:
            self._error = error
        finally:
            self.end()

    def _take(self, request: sync_pb2.FollowRequest) -> None:
        kind = request.WhichOneof("kind")
        with self._condition:
            if self._wants is None:
                if kind != "wants":
                    raise InvalidArgumentError("FollowRequest.kind", "the first message must be wants")
                check_wants(request.wants)
                self._wants = request
            elif kind == "ack":
                self._acknowledge(request.ack.sequence)
            elif kind == "rewind":
                if len(self._rewinds) >= REWINDS_MAX:
                    raise LimitError("FollowRequest.rewind", len(self._rewinds) + 1, REWINDS_MAX)
                self._rewind_bytes += request.ByteSize()
                if self._rewind_bytes > REWIND_BYTES_MAX:
                    raise LimitError("FollowRequest.rewind bytes", self._rewind_bytes, REWIND_BYTES_MAX)
                self._rewinds.append(request.rewind)
            else:
                raise InvalidArgumentError("FollowRequest.kind", "must be ack or rewind after the first message")
            self._condition.notify_all()
            standby = self._wants.wants.standby.address
        if kind == "rewind":
            self._wake()
        elif kind == "ack" and standby and request.ack.HasField("applied"):
            applied = {each.stream: each.position for each in request.ack.applied.positions}
            for position in applied.values():
                check_position("FollowAck.applied", position)
            self._applied(standby, applied, self._seen_tick)

    def _acknowledge(self, sequence: int) -> None:
        if sequence > self._sent:
            raise InvalidArgumentError("FollowAck.sequence", f"{sequence} has not been sent yet")
        while self._acknowledged < sequence:
            sent = self._in_flight.popleft()
            self._in_flight_bytes -= sent.size
            self._complete_ms = max(self._complete_ms, sent.complete_ms)
            self._acknowledged += 1
        while self._rounds and self._rounds[0][0] <= sequence:
            self._seen_tick = self._rounds.popleft()[1]

    def end_round(self, tick: int) -> None:
        """What tables, streams and dense sets there were at ``tick`` has been sent."""
        with self._condition:
            if self._rounds and self._rounds[-1][0] == self._sent:
                self._rounds.pop()
            self._rounds.append((self._sent, tick))

    def end(self) -> None:
        """Let both threads go."""
        with self._condition:
            self.ended = True
            self._condition.notify_all()
        self._wake()

    def wants(self, timeout_s: float) -> sync_pb2.FollowRequest | None:
        """The first message; None when the call ended before it."""
        with self._condition:
            self._condition.wait_for(lambda: self._wants is not None or self.ended, timeout_s)
            if self._wants is None and not self.ended:
                raise UnavailableError("follower", f"sent no wants within {timeout_s:g} s")
            return self._wants

    def take_rewinds(self) -> list[sync_pb2.FollowRewind]:
        """What was asked for again since the last time."""
        with self._condition:
            rewinds, self._rewinds = self._rewinds, []
            self._rewind_bytes = 0
            return rewinds

    def number(self, message: sync_pb2.FollowResponse) -> bool:
        """Wait for room in the window and give the message its number; False when the call has ended."""
        size = message.ByteSize()
        with self._condition:
            if not self._condition.wait_for(lambda: self.ended or self._has_room(size), self._window.stall_s):
                raise UnavailableError("follower", f"left its window full for {self._window.stall_s:g} s")
            if self.ended:
                return False
            self._sent += 1
            message.sequence = self._sent
            self._in_flight.append(_Sent(size, message.heartbeat.complete_until_ms))
            self._in_flight_bytes += size
            self._sent_bytes += size
            self._sending_since_s = time.monotonic()
            return True

    def handed_over(self) -> None:
        """The connection has taken the last message."""
        self._sending_since_s = None

    def sending_s(self) -> float:
        """How long the connection has not taken the last message."""
        since_s = self._sending_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def state(self, now_ms: int) -> FollowerState:
        """How this follower stands."""
        with self._condition:
            return FollowerState(
                self.peer,
                self.named is not None and self.named.standby,
                max(now_ms - self._complete_ms, 0) / 1000 if self._complete_ms else float("inf"),
                self._in_flight_bytes,
                self._sent_bytes,
                self._sent,
            )

    def _has_room(self, size: int) -> bool:
        if not self._in_flight:
            return True
        within = self._in_flight_bytes + size <= self._window.bytes_max
        return within and len(self._in_flight) < self._window.messages_max

    def pause(self, seconds: float) -> None:
        """Let changes gather; returns at once when the call ends."""
        with self._condition:
            self._condition.wait_for(lambda: self.ended, seconds)

    def raise_error(self) -> None:
        """Raise what the reader found wrong."""
        if self._error is not None:
            raise self._error


class SyncServicer(sync_pb2_grpc.SyncServiceServicer):
    """Serves ``Follow`` from any set of tables: a shard's, or a follower's own, so that followers can be chained.

    ``epoch``: the assignment that is served. Until ``ready`` says so, and while the tables are an incomplete copy,
    calls are refused as UNAVAILABLE and come back, so that nobody takes an unfinished recovery for a dropped table.
    Without a place (:mod:`embedstore.server.follow_places`) a call is refused as RESOURCE_EXHAUSTED. ``refused`` is
    told of every refusal. Safe to call from any thread.
    """

    def __init__(
        self,
        tables: TableSet,
        *,
        pace: Pace | None = None,
        window: Window | None = None,
        followers_max: int = FOLLOWERS_MAX,
        epoch: Callable[[], int] = lambda: 1,
        ready: Callable[[], bool] = lambda: True,
        refused: Callable[[Exception], object] = lambda _: None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._tables = tables
        self._pace = pace or Pace()
        self._window = window or Window()
        self._epoch = epoch
        self._ready = ready
        self._refused = refused
        self._clock_ms = clock_ms
        self._monotonic_ms = monotonic_ms
        self._lock = threading.Lock()
        self._places: FollowPlaces[_Call] = FollowPlaces(followers_max)
        self._named = Followers(monotonic_ms)
        self._watched = False
        self._stopping = threading.Event()
        self._closed = False
        self.deltas = SharedDeltas(lambda: len(self._places.taken) > 1)

    @property
    def followers(self) -> int:
        """Followers that are connected now."""
        with self._lock:
            return len(self._places.taken)

    def follower_states(self) -> tuple[FollowerState, ...]:
        """Who follows, or did lately, and how far: calls of one name together."""
        now_ms = self._clock_ms()
        with self._lock:
            return self._named.states((call.named, call.state(now_ms)) for call in self._places.taken if call.named)

    def close(self) -> None:
        """End every call and refuse new ones; call it before the server stops. Twice is harmless. A call is ended
        cleanly, unless its follower does not read any more."""
        with self._lock:
            self._closed = True
            calls = self._places.calls
        for call in calls:
            call.end()
        self._stopping.set()
        self._cut_off(WATCH_S)

    def _watch(self) -> None:
        """As long as there are calls: whoever reads nothing for too long is cut off."""
        while not self._stopping.wait(min(WATCH_S, self._window.stall_s / 4)):
            with self._lock:
                if not self._places.taken:
                    self._watched = False
                    return
            self._cut_off(self._window.stall_s)

    def _cut_off(self, stall_s: float) -> None:
        with self._lock:
            stuck = [(call, place) for call, place in self._places.taken.items() if call.sending_s() > stall_s]
        for call, place in stuck:
            place.cut()
            self._forget(call)  # now: what a connection has begun to send may keep the thread until that is closed

    def Follow(  # noqa: N802
        self, request_iterator: Iterator[sync_pb2.FollowRequest], context: grpc.ServicerContext
    ) -> Iterator[sync_pb2.FollowResponse]:
        """See sync.proto."""
        call = _Call(context.peer(), self._window, self._tables.notify, self._tables.standby_applied)
        try:
            self._begin(call, context.cancel)
            try:
                if not context.add_callback(lambda: self._forget(call)):
                    return
                threading.Thread(target=call.read, args=(request_iterator,), name="follow-reader", daemon=True).start()
                yield from self._serve(call)
                call.raise_error()
            finally:
                self._forget(call)
        except Exception as error:
            self._refused(error)
            if not isinstance(error, EmbedstoreError | InvalidArgumentError):
                log.error("a follower's call failed over a bug", exc_info=error)
            context.abort_with_status(to_status(error))

    def _begin(self, call: _Call, cut: Callable[[], object]) -> None:
        with self._lock:
            if self._closed:
                raise UnavailableError("leader", "is stopping")
            if not self._ready() or not self._tables.as_of_ms(self._clock_ms()):
                raise UnavailableError("leader", "is not ready yet")
            cut_oldest = self._places.ask(call, cut)
        if cut_oldest is not None:
            self._refused(BusyError("follower", "had to go before it said what it wants"))
            cut_oldest()

    def _admit(self, call: _Call, wants: sync_pb2.FollowWants) -> bool:
        standby = wants.HasField("standby")
        with self._lock:
            if not self._places.take(call, host_of(call.peer), standby=standby):
                return False
            call.named = self._named.came(name_of(wants, call.peer), standby=standby)
            watched, self._watched = self._watched, True
        if not watched:
            threading.Thread(target=self._watch, name="follow-watch", daemon=True).start()
        self._tables.follower_joined()
        return True

    def _forget(self, call: _Call) -> None:
        call.end()
        with self._lock:
            if not self._places.leave(call):
                return
            if call.named is not None:
                self._named.went(call.named, call.state(self._clock_ms()))
            if len(self._places.taken) < 2:
                self.deltas.forget()
        self._tables.follower_left()
        self._tables.notify()

    def _serve(self, call: _Call) -> Iterator[sync_pb2.FollowResponse]:
        request = call.wants(WANTS_TIMEOUT_S)
        if request is None:
            return
        epoch = self._epoch()
        # A standby may fetch what is left of a leader that has been replaced already.
        if request.epoch not in (0, epoch) and not request.wants.HasField("standby"):
            raise StaleEpochError(request.epoch, epoch)
        if not self._admit(call, request.wants):
            return
        feed = Feed(
            self._tables,
            request.wants,
            self._pace,
            clock_ms=self._clock_ms,
            monotonic_ms=self._monotonic_ms,
            deltas=self.deltas,
        )
        while not call.ended:
            tick = self._tables.tick()
            for rewind in call.take_rewinds():
                feed.rewind(rewind)
            for message in feed.round():
                if not call.number(message):
                    return
                if message.HasField("deltas"):
                    message.deltas.sent_ms = self._clock_ms()  # and not when it began to wait
                yield message
                call.handed_over()
            call.end_round(tick)
            call.pause(ROUND_PAUSE_S)
            idle_s = feed.idle_ms() / 1000
            if not call.ended and idle_s > 0:
                self._tables.wait_changed(tick, idle_s)
