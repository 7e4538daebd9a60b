"""Whoever opens calls and leaves them open keeps no others from theirs."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import Authority
from waiting import until

import embedstore as es
from embedstore.credentials import AUTHORIZATION, BEARER, PLAIN, Credentials
from embedstore.errors import UnavailableError
from embedstore.server import shard
from embedstore.server.doors import of_one_host
from embedstore.server.follow_places import ASKED_MAX, FOLLOWERS_MAX, follow_calls_max
from embedstore.server.shard import Shard
from embedstore.server.takeover import activate
from embedstore.v1 import sync_pb2

TABLE = es.TableSpec("t", dim=2, optimizer=es.SGD(1.0), num_chunks=4)
IDS = np.arange(50, dtype=np.uint64)
ONES = np.full((50, 2), -1.0, np.float32)
TIMEOUT_S = 20.0
REQUESTS_MAX = 256
HEALTH = "/grpc.health.v1.Health/"
SERVICE = "/embedstore.v1.EmbeddingService/"
FOLLOW = "/embedstore.v1.SyncService/Follow"


class Silent:
    """Calls whose requests never come, over several connections."""

    def __init__(self, stack: ExitStack, address: str, credentials: Credentials = PLAIN) -> None:
        self._stack = stack
        self._address = address
        self._credentials = credentials
        self._metadata = ((AUTHORIZATION, BEARER + credentials.token()),) if credentials.token_file else ()
        self._over = threading.Event()
        self.calls: list[Any] = []
        stack.callback(self._over.set)

    def _nothing(self) -> Iterator[bytes]:
        self._over.wait()
        yield from ()

    def after(self, request: bytes) -> Iterator[bytes]:
        """One request, and then none."""
        yield request
        self._over.wait()

    def open(self, path: str, count: int) -> None:
        connections = [
            self._stack.enter_context(self._credentials.channel(self._address, [("grpc.use_local_subchannel_pool", 1)]))
            for _ in range(-(-count // 100))
        ]
        for i in range(count):
            silent = connections[i % len(connections)].stream_unary(path, None, None)
            self.calls.append(silent.future(self._nothing(), metadata=self._metadata))

    def wait_ended(self, count: int) -> None:
        until(lambda: sum(call.done() for call in self.calls) >= count)


def healthy(channel: grpc.Channel) -> bool:
    return bool(channel.unary_unary(HEALTH + "Check", None, None)(b"", timeout=TIMEOUT_S) == b"\x08\x01")


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls-and-a-read-token"])
def test_more_silent_calls_than_there_are_places_keep_nobody_out(
    start: Callable[..., Shard], tmp_path: Path, secured: bool
) -> None:
    own, other, options = PLAIN, PLAIN, {}
    if secured:
        authority = Authority(tmp_path / "authority")
        lines = []
        for role in ("read", "train"):
            (tmp_path / role).write_text(role)
            digest = hashlib.sha256(role.encode()).hexdigest()
            lines.append(f'[tokens.{role}]\nrole = "{role}"\nsha256 = "{digest}"\n')
        (tmp_path / "tokens.toml").write_text("".join(lines))
        own = authority.credentials("trainer", token_file=tmp_path / "train")
        other = authority.credentials("reader", token_file=tmp_path / "read")
        options = {"credentials": authority.credentials("server"), "tokens": tmp_path / "tokens.toml"}
    server = start(tables=[TABLE], requests_max=REQUESTS_MAX, **options)
    with ExitStack() as stack:
        silent = Silent(stack, server.address, other)
        silent.open(SERVICE + "Pull", REQUESTS_MAX + 150)
        silent.wait_ended(90)
        with es.connect(server.address, credentials=own, timeout_s=TIMEOUT_S) as store:
            for _ in range(20):
                store.push({"t": (IDS, ONES)})
            np.testing.assert_array_equal(store.pull({"t": IDS})["t"], -20 * ONES)
            assert sum(len(ids) for ids, _ in store.scan("t")) == len(IDS)
        assert healthy(stack.enter_context(own.channel(server.address, ())))
        assert sum(not call.done() for call in silent.calls) > REQUESTS_MAX / 2
    assert server._measured.refused["Pull", "BusyError"]


def test_a_request_that_does_not_come_ends_in_time(start: Callable[..., Shard]) -> None:
    server = start(tables=[TABLE])
    server._door._arrival_s = server._open_door._arrival_s = 0.5
    with ExitStack() as stack:
        silent = Silent(stack, server.address)
        for path in (SERVICE + "Push", HEALTH + "Check"):
            silent.open(path, 1)
        silent.wait_ended(2)
        assert [call.code() for call in silent.calls] == [grpc.StatusCode.CANCELLED] * 2
        assert server._measured.refused["Push", "BusyError"] == server._measured.refused["Check", "BusyError"] == 1


def test_watches_of_the_health_that_nobody_ends_keep_nobody_out(start: Callable[..., Shard]) -> None:
    server = start(tables=[TABLE])
    with ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]))
            for _ in range(2)
        ]
        watches: list[Any] = [
            channel.unary_stream(HEALTH + "Watch", None, None)(b"", timeout=TIMEOUT_S)
            for channel in channels
            for _ in range(60)
        ]
        stack.callback(lambda: [watch.cancel() for watch in watches])
        for watch in watches[:30]:  # the oldest have to go
            with pytest.raises(grpc.RpcError) as caught:
                list(watch)
            assert caught.value.code() == grpc.StatusCode.CANCELLED
        for _ in range(5):
            assert healthy(channels[0])
        latest: Any = channels[0].unary_stream(HEALTH + "Watch", None, None)(b"", timeout=TIMEOUT_S)
        assert next(latest) == b"\x08\x01"
        latest.cancel()


def test_a_client_waits_for_a_place(start: Callable[..., Shard]) -> None:
    """There are fewer places than callers, and none of them is told of it."""
    server = start(tables=[TABLE], requests_max=2)
    with es.connect(server.address, timeout_s=TIMEOUT_S) as store, ThreadPoolExecutor(16) as callers:
        big = np.arange(50_000, dtype=np.uint64)
        pushes = [callers.submit(store.push, {"t": (big, np.ones((50_000, 2), np.float32))}) for _ in range(48)]
        for push in pushes:
            push.result()
        np.testing.assert_array_equal(store.pull({"t": IDS})["t"], 48 * ONES)
    assert server._measured.refused["Push", "BusyError"]


def watching(channel: grpc.Channel) -> Any:
    """A watch of the health that has a place; the server may still count a call whose answer has come already."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        watch: Any = channel.unary_stream(HEALTH + "Watch", None, None)(b"", timeout=TIMEOUT_S)
        try:
            next(watch)
        except grpc.RpcError:
            if time.monotonic() > deadline_s:
                raise
        else:
            return watch


def test_a_client_comes_again_when_the_connection_itself_has_no_room(
    start: Callable[..., Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shard, "QUEUED_MAX", -(1 + follow_calls_max(FOLLOWERS_MAX) + shard.OPEN_CALLS_MAX + shard.SPARE_THREADS) + 1
    )
    server = start(tables=[TABLE], requests_max=1)
    with ExitStack() as stack:
        store = stack.enter_context(es.connect(server.address, timeout_s=TIMEOUT_S))
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        watch = watching(channel)
        with pytest.raises(grpc.RpcError) as caught:
            healthy(channel)
        assert caught.value.details() == "Concurrent RPC limit exceeded!"
        with pytest.raises(UnavailableError), es.connect(server.address, timeout_s=1.0, retry_s=0.5):
            pass
        threading.Timer(0.5, watch.cancel).start()
        store.push({"t": (IDS, ONES)})
        np.testing.assert_array_equal(store.pull({"t": IDS})["t"], -ONES)


def test_a_reader_who_follows_as_often_as_he_can_leaves_a_standby_its_place(
    start: Callable[..., Shard], tmp_path: Path
) -> None:
    leader = start(tables=[TABLE])
    with ExitStack() as stack:
        silent = Silent(stack, leader.address)
        silent.open(FOLLOW, ASKED_MAX + 4)
        silent.wait_ended(4)
        channel = stack.enter_context(grpc.insecure_channel(leader.address))
        wants = sync_pb2.FollowRequest(epoch=1, wants=sync_pb2.FollowWants()).SerializeToString()
        following: list[Any] = []
        for _ in range(of_one_host(FOLLOWERS_MAX)):
            following.append(channel.stream_stream(FOLLOW, None, None)(silent.after(wants), timeout=TIMEOUT_S))
            stack.callback(following[-1].cancel)
            next(following[-1])
        one_more: Any = channel.stream_stream(FOLLOW, None, None)(silent.after(wants), timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as caught:
            next(one_more)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert leader._measured.refused["Follow", "LimitError"] == 1
        assert leader._measured.refused["Follow", "BusyError"] >= 4
        standby = start(follow=[leader.address], standby=True, data=tmp_path / "standby")
        until(lambda: any(state.standby for state in leader._serving.sync().follower_states()))
        with es.connect(leader.address, timeout_s=TIMEOUT_S) as store:
            store.push({"t": (IDS, ONES)})
        [record] = activate([standby.address], None, force=False, timeout_s=TIMEOUT_S)
        assert record.addresses == (standby.address,)
