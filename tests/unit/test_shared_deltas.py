"""Followers who stand at the same cursors are sent the same encoding, within bounds of age and memory."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Sequence

import numpy as np
import pytest

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

    def feed(self, interval_ms: int = 0) -> Feed:
        clock = lambda: self.now_ms  # noqa: E731
        pace = Pace(INTERVAL_MS, INTERVAL_MS)
        wants = sync_pb2.FollowWants(embeddings_only=True, sync_interval_ms=interval_ms)
        return Feed(self.store, wants, pace, clock_ms=clock, monotonic_ms=clock, deltas=self.deltas)

    def push(self, places: Sequence[int] = range(400)) -> None:
        self.store.push({"t": (IDS[list(places)], np.ones((len(places), 4), np.float32))})


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


class Staggered:
    """Followers who joined a while after each other, of a leader that changes all the time; time goes in steps, and who
    comes first in a step is chance."""

    STEP_MS = 5

    def __init__(self, *begin_ms: int, interval_ms: int = INTERVAL_MS) -> None:
        self.leader = Leader()
        self._interval_ms = interval_ms
        self._begins_ms = [self.leader.now_ms + begin for begin in begin_ms]
        self._feeds: list[Feed] = []
        self._chance = random.Random(7)
        self.sent_ms: list[list[int]] = []

    def run(self, steps: int) -> None:
        for _ in range(steps):
            while self._begins_ms and self._begins_ms[0] <= self.leader.now_ms:
                self._begins_ms.pop(0)
                self._feeds.append(self.leader.feed(self._interval_ms))
                self.sent_ms.append([])
            for place in self._chance.sample(range(len(self._feeds)), len(self._feeds)):
                self.leader.push(self._chance.sample(range(400), 20))  # there is always something newer
                if sent(self._feeds[place]):
                    self.sent_ms[place].append(self.leader.now_ms)
            self.leader.now_ms += self.STEP_MS


def test_those_who_joined_at_different_moments_come_to_be_sent_the_same() -> None:
    world = Staggered(0, 37, 81, 130, 222, 391)
    world.run(120)
    made, shared = world.leader.deltas.made, world.leader.deltas.shared
    world.run(200)
    made, shared = world.leader.deltas.made - made, world.leader.deltas.shared - shared
    assert shared / made > 4.5, "one encoding for six followers, but for a few"


def test_one_who_wants_less_is_sent_less_and_one_who_wants_more_than_its_leader_gives_is_not() -> None:
    world = Staggered(0, interval_ms=3 * INTERVAL_MS)
    world.run(240)
    assert len(world.sent_ms[0]) == pytest.approx(240 * world.STEP_MS / (3 * INTERVAL_MS), abs=1)
    world = Staggered(0, interval_ms=1)
    world.run(240)
    assert len(world.sent_ms[0]) == pytest.approx(240 * world.STEP_MS / INTERVAL_MS, abs=1)


def test_a_lone_change_is_sent_at_once_and_a_chunk_at_most_once_an_interval() -> None:
    leader = Leader()
    feed = leader.feed()
    sent(feed)
    for quiet_ms in (INTERVAL_MS, 3 * INTERVAL_MS + 17, 5 * INTERVAL_MS - 1):
        leader.now_ms += quiet_ms
        leader.push([5])
        assert len(sent(feed)) == 1
    begin_ms, deltas, waits_ms = leader.now_ms, 0, []
    waiting: list[int] = []
    for _ in range(3000):
        leader.now_ms += 1
        leader.push([5])
        waiting.append(leader.now_ms)
        if sent(feed):
            deltas += 1
            waits_ms += [leader.now_ms - at_ms for at_ms in waiting]
            waiting.clear()
    assert deltas <= (leader.now_ms - begin_ms) // INTERVAL_MS + 1
    assert max(waits_ms) < INTERVAL_MS
    assert np.mean(waits_ms) <= INTERVAL_MS / 2


def test_what_is_due_later_is_waited_for_no_longer_than_that() -> None:
    leader = Leader()
    feed = leader.feed()
    for _ in range(300):
        leader.push([5])
        sent(feed)
        assert feed.idle_ms() <= INTERVAL_MS
        leader.now_ms += max(feed.idle_ms(), 1)
        assert sent(feed) or feed.idle_ms() > 0, "whoever waits as long as it is told does not wait in vain"


def test_an_encoding_that_repeats_more_than_it_brings_is_for_nobody_else() -> None:
    leader = Leader()
    slow, fast = leader.feed(4 * INTERVAL_MS), leader.feed()
    sizes = []
    for _ in range(40):
        leader.now_ms += INTERVAL_MS
        leader.push()
        sent(slow)
        sizes += [delta_info(delta).num_changes for delta in sent(fast)]
    assert max(sizes[SPEC.num_chunks :]) <= 2
