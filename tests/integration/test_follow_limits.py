"""What one follower can cost its leader, and what neither side puts up with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from follow_servers import TIMEOUT_S, Leader, Topology, content, ones, refused_because

from embedstore.peers import CHANNEL_OPTIONS
from embedstore.server.follow import FollowerStore
from embedstore.server.leader import WATCH_S, Window
from embedstore.server.link import Retry
from embedstore.server.parts import Cursors
from embedstore.spec import SGD, TableSpec
from embedstore.store import LocalStore
from embedstore.table import delta_info
from embedstore.v1 import admin_pb2_grpc, sync_pb2, sync_pb2_grpc

ITEMS = TableSpec("items", dim=16, optimizer=SGD(1.0), num_chunks=64)
WINDOW = Window(bytes_max=3 << 20, messages_max=8)
RETRY = Retry(first_s=0.01, longest_s=0.1)


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with LocalStore(None, [ITEMS]) as made:
        yield made


@pytest.fixture
def leader(store: LocalStore) -> Iterator[Leader]:
    made = Leader(store, window=WINDOW, followers_max=2)
    yield made
    made.stop()


class Requests:
    """The requests of a hand-made follower: what it was given, then silence until closed."""

    def __init__(self, *requests: sync_pb2.FollowRequest) -> None:
        self._requests = list(requests)
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[sync_pb2.FollowRequest]:
        yield from self._requests
        self._closed.wait()

    def close(self) -> None:
        self._closed.set()


def wants(**values: Any) -> sync_pb2.FollowRequest:
    return sync_pb2.FollowRequest(epoch=1, wants=sync_pb2.FollowWants(**values))


def ack(sequence: int) -> sync_pb2.FollowRequest:
    return sync_pb2.FollowRequest(epoch=1, ack=sync_pb2.FollowAck(sequence=sequence))


def refusal(leader: Leader, *requests: sync_pb2.FollowRequest) -> grpc.RpcError:
    """How the call of a hand-made follower is refused."""
    given = Requests(*requests)
    with grpc.insecure_channel(leader.address, options=CHANNEL_OPTIONS) as channel:
        try:
            for _ in sync_pb2_grpc.SyncServiceStub(channel).Follow(iter(given), timeout=TIMEOUT_S):
                pass
        except grpc.RpcError as error:
            return error
        finally:
            given.close()
    raise AssertionError("the call ended without an error")


class Slow:
    """A hand-made follower that reads everything it gets and acknowledges nothing."""

    def __init__(self, leader: Leader, *requests: sync_pb2.FollowRequest) -> None:
        self._given = Requests(*requests)
        self._channel = grpc.insecure_channel(leader.address, options=CHANNEL_OPTIONS)
        self._call: Any = sync_pb2_grpc.SyncServiceStub(self._channel).Follow(iter(self._given), timeout=TIMEOUT_S)
        self.messages: list[sync_pb2.FollowResponse] = []

    def read_until(self, done: Callable[[list[sync_pb2.FollowResponse]], bool]) -> None:
        while not done(self.messages):
            self.messages.append(next(self._call))

    def read_on_until_cancelled(self, cancelled: threading.Event) -> grpc.RpcError:
        def cancel() -> None:
            cancelled.wait(TIMEOUT_S)
            self._call.cancel()

        threading.Thread(target=cancel).start()
        try:
            self.read_until(lambda _: False)
        except grpc.RpcError as error:
            return error
        raise AssertionError("the call ended without an error")

    def close(self) -> None:
        self._given.close()
        self._call.cancel()
        self._channel.close()


def test_a_follower_that_acknowledges_nothing_costs_its_window_and_stops_nobody(
    store: LocalStore, leader: Leader
) -> None:
    store.push({"items": ones(range(20_000), 16)})
    slow = Slow(leader, wants(embeddings_only=True))
    slow.read_until(lambda messages: len(messages) >= 2)
    others_done = threading.Event()
    errors: list[grpc.RpcError] = []
    reading = threading.Thread(target=lambda: errors.append(slow.read_on_until_cancelled(others_done)))
    reading.start()
    with FollowerStore(leader.address, sync_interval_ms=20, retry=RETRY) as follower:
        follower.wait_synced(TIMEOUT_S)
        for _ in range(20):
            store.push({"items": ones(range(20_000), 16)})
        assert follower.wait_until(lambda: content(follower, "items") == content(store, "items"), TIMEOUT_S)
    others_done.set()
    reading.join()
    slow.close()
    assert [error.code() for error in errors] == [grpc.StatusCode.CANCELLED]
    assert len(slow.messages) <= WINDOW.messages_max
    *within, _ = slow.messages
    assert sum(message.ByteSize() for message in within) <= WINDOW.bytes_max
    wait_for_followers(store, 0)


def test_a_follower_that_leaves_its_window_full_is_cut_off(store: LocalStore) -> None:
    leader = Leader(store, window=Window(messages_max=2, stall_s=0.2))
    error = refusal(leader, wants())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "window full" in str(error.details())
    wait_for_followers(store, 0)
    leader.stop()


def wait_for_followers(store: LocalStore, count: int) -> None:
    while (tick := store.tick()) >= 0 and store.stats().followers != count:
        assert store.wait_changed(tick, TIMEOUT_S) != tick, "not in time"


def test_one_follower_too_many_is_refused_and_comes_in_when_there_is_room(store: LocalStore, leader: Leader) -> None:
    first, second = (FollowerStore(leader.address, retry=RETRY) for _ in range(2))
    for follower in (first, second):
        follower.wait_synced(TIMEOUT_S)
    error = refusal(leader, wants())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "followers" in str(error.details())
    with FollowerStore(leader.address, retry=RETRY) as third:
        refused_because(third, "followers: 3 is over the limit of 2")
        first.close()
        third.wait_synced(TIMEOUT_S)
    second.close()
    assert store.stats().followers <= 2


@pytest.mark.parametrize(
    ("requests", "code", "text"),
    [
        ([ack(0)], grpc.StatusCode.INVALID_ARGUMENT, "must be wants"),
        ([wants(), wants()], grpc.StatusCode.INVALID_ARGUMENT, "ack or rewind"),
        ([wants(), ack(10**6)], grpc.StatusCode.INVALID_ARGUMENT, "FollowAck.sequence"),
        ([wants(sync_interval_ms=2**32 - 1)], grpc.StatusCode.INVALID_ARGUMENT, "sync_interval_ms"),
        (
            [wants(tables=[sync_pb2.TableCursors(table="items", chunks=bytes(4), versions=bytes(8))])],
            grpc.StatusCode.INVALID_ARGUMENT,
            "TableCursors.incarnations",
        ),
        (
            [wants(), sync_pb2.FollowRequest(rewind=sync_pb2.FollowRewind(cursors={"table": "items", "chunks": b"x"}))],
            grpc.StatusCode.INVALID_ARGUMENT,
            "TableCursors.chunks",
        ),
        ([sync_pb2.FollowRequest(epoch=7, wants={})], grpc.StatusCode.FAILED_PRECONDITION, "epoch 7"),
    ],
)
def test_nonsense_is_refused_by_name(leader: Leader, requests: list[Any], code: grpc.StatusCode, text: str) -> None:
    error = refusal(leader, *requests)
    assert error.code() is code
    assert text in str(error.details())


def test_cursors_of_other_shards_and_histories_get_the_whole_chunk(store: LocalStore, leader: Leader) -> None:
    store.push({"items": ones(range(100), 16)})
    cursors = sync_pb2.TableCursors(
        table="items",
        chunks=np.array([0, 63, 64, 2**32 - 1], "<u4").tobytes(),
        incarnations=np.array([1, 2**64 - 1, 1, 1], "<u8").tobytes(),
        versions=np.array([5, 2**64 - 1, 1, 1], "<u8").tobytes(),
    )
    follower = Slow(leader, wants(tables=[cursors], embeddings_only=True))
    follower.read_until(lambda messages: any(message.heartbeat.complete_until_ms for message in messages))
    follower.close()
    sent = [part.chunk for message in follower.messages for part in message.deltas.parts]
    assert sorted(sent) == list(range(64))


def test_a_leader_that_came_back_from_its_checkpoint_sends_only_what_changed(tmp_path: Path) -> None:
    with LocalStore(tmp_path, [ITEMS]) as store:
        store.push({"items": ones(range(20_000), 16)})
        states = store.table("items").chunk_states()
        full = sum(len(store.table("items").delta(chunk, embeddings_only=True)) for chunk in range(64))
        cursors = Cursors(np.arange(64, dtype=np.uint32), states.incarnations, states.versions)
    with LocalStore(tmp_path) as store:
        assert (store.table("items").chunk_states().incarnations != states.incarnations).all()
        store.push({"items": ones(range(5), 16)})
        leader = Leader(store)
        follower = Slow(leader, wants(tables=[cursors.to_proto("items")], embeddings_only=True))
        follower.read_until(lambda messages: any(message.heartbeat.complete_until_ms for message in messages))
        follower.close()
        leader.stop()
    parts = [part for message in follower.messages for part in message.deltas.parts]
    infos = [delta_info(part.data) for part in parts]
    assert sum(info.num_rows for info in infos) == 5
    assert not any(info.full for info in infos)
    assert sum(len(part.data) for part in parts) < full / 50


def test_a_stopping_leader_ends_its_calls_cleanly(store: LocalStore, leader: Leader) -> None:
    given = Requests(wants(embeddings_only=True))
    with grpc.insecure_channel(leader.address) as channel:
        responses: Any = sync_pb2_grpc.SyncServiceStub(channel).Follow(iter(given), timeout=TIMEOUT_S)
        next(responses)
        leader.sync.close()
        for _ in responses:
            pass
        assert responses.code() is grpc.StatusCode.OK
    given.close()
    assert store.stats().followers == 0


class Silent(sync_pb2_grpc.SyncServiceServicer):
    """A leader that says one word and then nothing, and counts its calls."""

    def __init__(self) -> None:
        self.calls = threading.Semaphore(0)
        self.over = threading.Event()

    def Follow(self, request_iterator: Any, context: Any) -> Iterator[sync_pb2.FollowResponse]:  # noqa: N802
        self.calls.release()
        context.add_callback(self.over.set)
        yield sync_pb2.FollowResponse(sequence=1, heartbeat=sync_pb2.Heartbeat())
        self.over.wait()


def test_a_leader_that_falls_silent_is_called_again() -> None:
    servicer = Silent()
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    sync_pb2_grpc.add_SyncServiceServicer_to_server(servicer, server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(Topology(0, 1, False), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    impatient = Retry(first_s=0.01, longest_s=0.1, silence_s=0.3)
    with FollowerStore(f"127.0.0.1:{port}", retry=impatient) as follower:
        for _ in range(3):
            assert servicer.calls.acquire(timeout=TIMEOUT_S)
        assert follower.stats().leaders[0].reconnects >= 1
        assert follower.stats().leaders[0].age_s == float("inf")
    server.stop(0).wait()


def test_a_follower_that_reads_nothing_loses_its_place_and_delays_no_end(store: LocalStore) -> None:
    """What is on its way fills the connection, not the window."""

    def wait_until(found: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not found():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    leader = Leader(store, window=Window(stall_s=0.5), followers_max=2)
    store.push({"items": ones(range(200_000), 16)})
    slow = [Slow(leader, wants(embeddings_only=True)) for _ in range(2)]
    try:
        wait_until(lambda: sum(each.calls for each in leader.sync.follower_states()) == 2)
        wait_until(lambda: leader.sync.followers == 0)
        with FollowerStore(leader.address, retry=RETRY) as follower:
            follower.wait_synced(TIMEOUT_S)
        leader.sync._window = Window()
        slow.append(Slow(leader, wants(embeddings_only=True)))
        wait_until(lambda: any(call.sending_s() > WATCH_S for call in leader.sync._places.calls))
        leader.sync.close()
        wait_until(lambda: leader.sync.followers == 0)
    finally:
        for each in slow:
            each.close()
        leader.stop()
