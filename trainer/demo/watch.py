"""Asks every process of the demo for its numbers, with nothing but the ordinary gRPC stubs.

A thread of its own does the asking, so that a killed shard or a slow answer never holds up the display.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc

from embedstore.v1 import admin_pb2, admin_pb2_grpc

INTERVAL_S = 0.25
CALL_TIMEOUT_S = 1.0
EPOCH = 1


@dataclass(frozen=True)
class Numbers:
    """The last answers. ``applied``: lowest watermark of each stream over all shards; empty while a shard is away.
    ``rounds``: how often everybody has been asked."""

    applied: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    follower_rows: Mapping[str, int] = field(default_factory=dict)
    follower_age_s: float | None = None
    follower_reconnects: int = 0
    rounds: int = 0


class Watch:
    """Keeps :class:`Numbers` fresh. ``latest`` may be called from any thread."""

    def __init__(self, shards: Sequence[str], follower: str) -> None:
        self._shards = {address: grpc.insecure_channel(address) for address in shards}
        self._follower = grpc.insecure_channel(follower)
        self._numbers = Numbers()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, wait for it, and close the channels."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        for channel in (*self._shards.values(), self._follower):
            channel.close()

    def latest(self) -> Numbers:
        """The last complete round of answers."""
        return self._numbers

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._numbers = self._ask()

    def _ask(self) -> Numbers:
        answers = [answer for channel in self._shards.values() if (answer := _stats(channel)) is not None]
        follower = _stats(self._follower)
        last = self._numbers
        complete = len(answers) == len(self._shards)
        return Numbers(
            applied=_lowest(answers) if complete else {},
            rows=_rows(answers) if complete else last.rows,
            follower_rows=_rows([follower]) if follower else last.follower_rows,
            follower_age_s=max((leader.age_s for leader in follower.leaders), default=None) if follower else None,
            follower_reconnects=sum(leader.reconnects for leader in follower.leaders)
            if follower
            else last.follower_reconnects,
            rounds=last.rounds + 1,
        )


def _stats(channel: grpc.Channel) -> admin_pb2.StatsResponse | None:
    try:
        answer: admin_pb2.StatsResponse = admin_pb2_grpc.AdminServiceStub(channel).Stats(
            admin_pb2.StatsRequest(epoch=EPOCH), timeout=CALL_TIMEOUT_S
        )
    except grpc.RpcError:
        return None
    return answer


def _rows(answers: Sequence[admin_pb2.StatsResponse]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for answer in answers:
        for table in answer.tables:
            rows[table.table] = rows.get(table.table, 0) + table.rows
    return rows


def _lowest(answers: Sequence[admin_pb2.StatsResponse]) -> dict[str, int]:
    lowest: dict[str, int] = {}
    for answer in answers:
        for state in answer.streams:
            if not state.stream.startswith("client/"):
                lowest[state.stream] = min(lowest.get(state.stream, state.applied), state.applied)
    return lowest
