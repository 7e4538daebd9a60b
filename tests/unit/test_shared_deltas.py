"""Followers who stand at the same cursors are sent the same encoding, within bounds of age and memory."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from embedstore.server.feed import Feed, Pace
from embedstore.server.shared_deltas import SharedDeltas
from embedstore.spec import SGD, TableSpec
from embedstore.store import LocalStore
from embedstore.table import delta_info
from embedstore.v1 import sync_pb2

SPEC = TableSpec("t", dim=4, optimizer=SGD(1.0), num_chunks=8)
IDS = np.arange(400, dtype=np.uint64)
INTERVAL_MS = 100


class Leader:
    """A store, a clock, and feeds of as many followers as are asked for."""

    def __init__(self, *, alone: bool = False) -> None:
        self.now_ms = 1_700_000_000_000
        self.store = LocalStore(None, [SPEC], clock_ms=lambda: self.now_ms)
        self.deltas = SharedDeltas(lambda: not alone)

    def feed(self) -> Feed:
        clock = lambda: self.now_ms  # noqa: E731
        pace = Pace(INTERVAL_MS, INTERVAL_MS)
        wants = sync_pb2.FollowWants(embeddings_only=True)
        return Feed(self.store, wants, pace, clock_ms=clock, monotonic_ms=clock, deltas=self.deltas)

    def push(self) -> None:
        self.store.push({"t": (IDS, np.ones((400, 4), np.float32))})


def sent(feed: Feed) -> list[bytes]:
    return [part.data for message in feed.round() for part in message.deltas.parts]


def test_what_one_was_sent_is_not_encoded_again_for_another() -> None:
    leader = Leader()
    first, second = leader.feed(), leader.feed()
    for _ in range(3):
        leader.push()
        leader.now_ms += INTERVAL_MS
        made = leader.deltas.made
        assert sent(first) == sent(second)
        assert leader.deltas.made == made + SPEC.num_chunks


def test_another_who_comes_late_is_sent_the_present() -> None:
    leader = Leader()
    first, second = leader.feed(), leader.feed()
    leader.push()
    sent(first)
    leader.now_ms += INTERVAL_MS // 4 + 1
    leader.push()
    late = leader.feed()
    assert sent(second) == sent(late)
    assert leader.deltas.made == 2 * SPEC.num_chunks


def test_a_change_after_the_encoding_is_not_said_to_have_been_sent() -> None:
    """The second follower is sent what was made for the first before the change, and hears of the change later."""
    leader = Leader()
    first, second = leader.feed(), leader.feed()
    leader.push()
    sent(first)
    made_ms = leader.now_ms
    leader.now_ms += INTERVAL_MS // 10
    leader.push()
    leader.now_ms += INTERVAL_MS // 10
    messages = list(second.round())
    complete_ms = max(message.heartbeat.complete_until_ms for message in messages)
    assert complete_ms <= made_ms
    leader.now_ms += INTERVAL_MS
    assert len(sent(second)) == SPEC.num_chunks


def test_a_follower_alone_leaves_nothing_in_memory() -> None:
    leader = Leader(alone=True)
    leader.push()
    sent(leader.feed())
    sent(leader.feed())
    assert (leader.deltas.made, leader.deltas.shared) == (2 * SPEC.num_chunks, 0)


def test_what_is_kept_is_bounded_and_can_be_forgotten() -> None:
    leader = Leader()
    leader.push()
    size = len(sent(leader.feed())[0])
    leader.deltas = SharedDeltas(lambda: True, bytes_max=3 * size)
    sent(leader.feed())
    sent(leader.feed())
    assert 0 < leader.deltas.shared <= 3 or leader.deltas.made > SPEC.num_chunks
    assert leader.deltas.bytes_kept <= 3 * size
    leader.deltas.forget()
    assert leader.deltas.bytes_kept == 0


def test_a_table_that_is_gone_is_not_kept_in_memory() -> None:
    leader = Leader()
    feeds = [leader.feed(), leader.feed()]
    leader.push()
    for feed in feeds:
        sent(feed)
    gone = weakref.ref(leader.store.table("t"))
    assert leader.deltas.bytes_kept
    leader.store.drop_table("t")
    for feed in feeds:
        sent(feed)
    gc.collect()
    assert (gone(), leader.deltas.bytes_kept) == (None, 0)


def test_a_table_that_was_made_anew_is_sent_anew() -> None:
    leader = Leader()
    feeds = [leader.feed(), leader.feed()]
    leader.push()
    old = [sent(feed) for feed in feeds]
    leader.store.drop_table("t")
    leader.store.create_table(SPEC)
    leader.store.push({"t": (IDS[:7], np.ones((7, 4), np.float32))})
    new = [sent(feed) for feed in feeds]
    assert new[0] == new[1]
    assert old[0] == old[1] != new[0]
    assert sum(delta_info(delta).num_rows for delta in new[0]) == 7


def test_what_is_ready_when_the_last_but_one_has_left_is_not_kept() -> None:
    leader = Leader()
    leader.push()
    asked: list[bool] = []

    def wanted() -> bool:
        asked.append(True)
        return len(asked) == 1

    leader.deltas = SharedDeltas(wanted)
    sent(leader.feed())
    assert leader.deltas.bytes_kept == 0
