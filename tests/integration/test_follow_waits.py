"""A message's wait for its follower's acknowledgements is counted once, on the leader's side."""

from __future__ import annotations

import queue
import time
from contextlib import ExitStack

import grpc
from follow_servers import TIMEOUT_S, Leader, ones

from embedstore.freshness import TRAINED_TO_PUBLISHED
from embedstore.peers import CHANNEL_OPTIONS
from embedstore.server.leader import Window
from embedstore.spec import SGD, TableSpec
from embedstore.store import LocalStore
from embedstore.table_set import wall_clock_ms
from embedstore.v1 import sync_pb2, sync_pb2_grpc

SPEC = TableSpec("items", dim=4, optimizer=SGD(1.0), num_chunks=1)
WAIT_S = 0.4


def test_a_delta_leaves_when_its_follower_has_room_for_it() -> None:
    requests: queue.SimpleQueue[sync_pb2.FollowRequest | None] = queue.SimpleQueue()
    with LocalStore(None, [SPEC]) as store, ExitStack() as stack:
        leader = Leader(store, window=Window(messages_max=1))
        stack.callback(leader.stop)
        changed_ms = wall_clock_ms()
        store.push({"items": ones(range(10), 4)}, event_time_ms=changed_ms)
        requests.put(sync_pb2.FollowRequest(wants=sync_pb2.FollowWants(complete_until_ms=changed_ms)))
        with grpc.insecure_channel(leader.address, options=CHANNEL_OPTIONS) as channel:
            call = sync_pb2_grpc.SyncServiceStub(channel).Follow(iter(requests.get, None), timeout=TIMEOUT_S)
            assert next(call).WhichOneof("kind") == "table"
            time.sleep(WAIT_S)
            acknowledged_ms = wall_clock_ms()
            requests.put(sync_pb2.FollowRequest(ack=sync_pb2.FollowAck(sequence=1)))
            message = next(call)
            arrived_ms = wall_clock_ms()
            assert acknowledged_ms <= message.deltas.sent_ms <= arrived_ms
            requests.put(sync_pb2.FollowRequest(ack=sync_pb2.FollowAck(sequence=2)))
            assert next(call).WhichOneof("kind") == "heartbeat"
            requests.put(None)
        published = store.freshness.read()[TRAINED_TO_PUBLISHED, "items"]
        assert published.num_values == 1
        assert abs(published.total - (message.deltas.sent_ms - changed_ms) / 1000) <= 0.05
