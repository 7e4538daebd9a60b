"""One thread that follows one leader, over and over: connect, say where the tables stand, apply, acknowledge.

Whatever ends a call (the leader stops, restarts, moves, falls silent, or sends what it should not), the link waits a
bounded, growing, randomised time and connects again with the cursors that its tables have then. The tables stay as they
are in between.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc

from embedstore.credentials import Credentials
from embedstore.errors import InvalidArgumentError
from embedstore.interface import LeaderState
from embedstore.peers import CHANNEL_OPTIONS
from embedstore.server.parts import Cursors
from embedstore.v1 import sync_pb2, sync_pb2_grpc

if TYPE_CHECKING:
    from embedstore.server.intake import Intake

log = logging.getLogger(__name__)

LEAVE_S = 2.0


@dataclass(frozen=True)
class Retry:
    """How patient a link is. Waits between calls grow from ``first_s`` to ``longest_s``; a leader that sends nothing,
    not even a heartbeat, for ``silence_s`` is given up and called again."""

    first_s: float = 0.05
    longest_s: float = 2.0
    silence_s: float = 10.0


class _Requests:
    """The follower's side of one call: wants first, then rewinds and the latest acknowledgement, until closed."""

    def __init__(self, epoch: int, wants: sync_pb2.FollowWants) -> None:
        self._epoch = epoch
        self._condition = threading.Condition()
        self._queue = [sync_pb2.FollowRequest(epoch=epoch, wants=wants)]
        self._acknowledge = 0
        self._acknowledged = 0
        self._applied: sync_pb2.WatermarkSet | None = None
        self._closed = False
        self._reader: threading.Thread | None = None

    def __iter__(self) -> Iterator[sync_pb2.FollowRequest]:
        return self

    def __next__(self) -> sync_pb2.FollowRequest:
        self._reader = threading.current_thread()
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._queue or self._acknowledge > self._acknowledged)
            if self._closed:
                raise StopIteration
            if self._queue:
                return self._queue.pop(0)
            self._acknowledged = self._acknowledge
            ack = sync_pb2.FollowAck(sequence=self._acknowledged, applied=self._applied)
            return sync_pb2.FollowRequest(epoch=self._epoch, ack=ack)

    def rewind(self, message: sync_pb2.FollowRewind) -> None:
        with self._condition:
            self._queue.append(sync_pb2.FollowRequest(epoch=self._epoch, rewind=message))
            self._condition.notify_all()

    def acknowledge(self, sequence: int, applied: sync_pb2.WatermarkSet | None) -> None:
        with self._condition:
            self._acknowledge, self._applied = sequence, applied
            self._condition.notify_all()

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait until gRPC's thread has left the call, which is over."""
        if self._reader is not None:
            self._reader.join(timeout_s)


class LeaderLink:
    """Follows the leader with number ``leader``. Start it once; every method may be called from any thread.

    ``applied`` is called after each message that was applied and whenever the state changes.
    """

    def __init__(
        self,
        leader: int,
        address: str,
        epoch: int,
        intake: Intake,
        *,
        credentials: Credentials,
        retry: Retry,
        applied: Callable[[], object],
        clock_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self.leader = leader
        self._address = address
        self._epoch = epoch
        self._intake = intake
        self._credentials = credentials
        self._retry = retry
        self._applied = applied
        self._clock_ms = clock_ms
        self._monotonic_s = monotonic_s
        self._condition = threading.Condition()
        self._random = random.Random()
        self._requests: _Requests | None = None
        self._ask_with_call: set[str] = set()
        self._call: grpc.Call | None = None
        self._waiting_since_s: float | None = None
        self._followed = ""
        self._connections = 0
        self._connected = False
        self._stopped = False
        self.problem = ""
        self._thread = threading.Thread(target=self._run, name=f"follow-{leader}", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End the call and the thread; returns when the last message has been applied."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._hang_up()
        if self._thread.is_alive():
            self._thread.join()

    def move(self, address: str, epoch: int) -> None:
        """The leader is somewhere else now."""
        with self._condition:
            if (address, epoch) == (self._address, self._epoch):
                return
            self._address, self._epoch = address, epoch
            self._condition.notify_all()
        self._hang_up()

    def check_silence(self) -> None:
        """Give up a call on which nothing has come for too long."""
        with self._condition:
            since_s = self._waiting_since_s
        if since_s is not None and self._monotonic_s() - since_s > self._retry.silence_s:
            self._hang_up()

    def ask_again(self, table: str) -> None:
        """Have the whole table sent from the beginning."""
        self._intake.begin_afresh(table)
        with self._condition:
            if self._requests is None:
                self._ask_with_call.add(table)
            else:
                self._requests.rewind(_from_zero(table))

    @property
    def complete_until_ms(self) -> int:
        """Leader's time up to which everything has been applied; 0 before the first sync."""
        return self._intake.complete_until_ms

    @property
    def completed(self) -> bool:
        """Whether the leader, where it is now, has sent everything at least once."""
        with self._condition:
            return self._intake.completed and self._followed == self._address

    @property
    def replaced_in(self) -> int:
        """Not 0: the epoch in which the leader, where it is now, was replaced; what it did until then is here."""
        with self._condition:
            return self._intake.replaced_in if self._followed == self._address else 0

    @property
    def connected(self) -> bool:
        """Whether a call is open and the leader has answered on it."""
        return self._connected

    def state(self) -> LeaderState:
        """How it stands now."""
        until_ms = self._intake.complete_until_ms
        age_s = max(0.0, (self._clock_ms() - until_ms) / 1000) if until_ms else float("inf")
        return LeaderState(
            address=self._address,
            connected=self._connected,
            age_s=age_s,
            deltas=self._intake.deltas,
            reconnects=max(0, self._connections - 1),
        )

    def _hang_up(self) -> None:
        with self._condition:
            call = self._call
        if call is not None:
            call.cancel()

    def _run(self) -> None:
        wait_s = self._retry.first_s
        while True:
            with self._condition:
                if self._stopped:
                    return
                address, epoch = self._address, self._epoch
            before_ms = self._intake.complete_until_ms
            self._follow(address, epoch)
            self._applied()
            progress = self._intake.complete_until_ms != before_ms
            wait_s = self._retry.first_s if progress else min(wait_s * 2, self._retry.longest_s)
            with self._condition:
                pause_s = wait_s * self._random.uniform(0.5, 1.0)
                if self._condition.wait_for(partial(self._is_called_away, address, epoch), pause_s):
                    wait_s = self._retry.first_s

    def _is_called_away(self, address: str, epoch: int) -> bool:
        return self._stopped or (self._address, self._epoch) != (address, epoch)

    def _follow(self, address: str, epoch: int) -> None:
        """One call, to its end."""
        with self._condition:
            self._ask_with_call.clear()
            if self._followed != address:
                self._followed, self._intake.completed, self._intake.replaced_in = address, False, 0
        try:
            channel = self._credentials.channel(address, CHANNEL_OPTIONS)
        except InvalidArgumentError as error:  # what it names may be put right
            self._note(f"{address}: {error}")
            return
        requests = _Requests(epoch, self._intake.begin())
        try:
            responses = sync_pb2_grpc.SyncServiceStub(channel).Follow(requests)
            with self._condition:
                self._requests, self._call = requests, responses
                for table in self._ask_with_call:
                    requests.rewind(_from_zero(table))
                called_away = self._is_called_away(address, epoch)
            if not called_away:
                self._take_all(responses, requests)
        except grpc.RpcError as error:
            self._note(str(self._credentials.explain(error, address)))
            # The error is the call, and its traceback holds it in a cycle. A call that is still there when the
            # interpreter ends waits in its destructor for a lock that a thread of gRPC may have died with.
            error.__traceback__ = None
        except InvalidArgumentError as error:
            self._note(f"{address} does not keep to the protocol: {error}")
            log.exception("following %s", address)
        except Exception as error:
            self._note(f"{address}: {error}")
            log.exception("following %s", address)
        finally:
            with self._condition:
                self._connected = False
                self._requests = self._call = self._waiting_since_s = None
            requests.close()
            channel.close()
            requests.join(LEAVE_S)

    def _take_all(self, responses: Iterator[sync_pb2.FollowResponse], requests: _Requests) -> None:
        while True:
            with self._condition:
                self._waiting_since_s = self._monotonic_s()
            message = next(responses, None)
            with self._condition:
                self._waiting_since_s = None
                if message is not None and not self._connected:
                    self._connected = True
                    self._connections += 1
                    self.problem = ""
            if message is None:
                return
            for rewind in self._intake.take(message):
                requests.rewind(rewind)
            requests.acknowledge(message.sequence, self._intake.applied())
            self._applied()

    def _note(self, problem: str) -> None:
        with self._condition:
            if problem != self.problem and not self._stopped:
                log.warning("leader %d: %s", self.leader, problem)
            self.problem = problem


def _from_zero(table: str) -> sync_pb2.FollowRewind:
    return sync_pb2.FollowRewind(cursors=Cursors.at_zero([]).to_proto(table), whole_table=True)
