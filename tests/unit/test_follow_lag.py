"""What the histograms say of a follower's lag is what somebody sees who asks for one row after the other.

Feeds and intakes are driven directly. Time is a number, and the poller looks at every step of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import pytest

from embedstore.freshness import (
    BOUNDS_S,
    EVENT_TO_TRAINED,
    EVENT_TO_VISIBLE,
    PUBLISHED_TO_VISIBLE,
    TRAINED_TO_PUBLISHED,
    Distribution,
)
from embedstore.interface import TablePush
from embedstore.placement import chunks_of_ids
from embedstore.server.feed import Feed, Pace
from embedstore.server.intake import Intake
from embedstore.server.replica import Replica
from embedstore.server.sampling import Sampler
from embedstore.spec import SGD, TableSpec
from embedstore.store import LocalStore
from embedstore.table_set import TableSet
from embedstore.v1 import sync_pb2

SPEC = TableSpec("t", dim=1, optimizer=SGD(1.0), num_chunks=16)
NOTHING = Distribution(BOUNDS_S, (0,) * (len(BOUNDS_S) + 1), 0.0)
STEP_MS = 10
PUSH_MS = 50
EVENT_AGE_MS = 40
SETTLED_MS = 8000


class Hop:
    """A follower, the feed that its leader has for it, and the messages between, which take a step of time."""

    def __init__(self, leader: TableSet, interval_ms: int, clock_ms: Callable[[], int]) -> None:
        self.leader = leader
        self.replica = Replica(clock_ms=clock_ms)
        self.intake = Intake(
            self.replica, 0, only_tables=(), embeddings_only=True, sync_interval_ms=interval_ms, clock_ms=clock_ms
        )
        self._interval_ms = interval_ms
        self._clock_ms = clock_ms
        self.connect()

    def connect(self) -> None:
        """From where the follower stands."""
        pace = Pace(self._interval_ms, self._interval_ms)
        wants = self.intake.begin()
        self._feed = Feed(self.leader, wants, pace, clock_ms=self._clock_ms, monotonic_ms=self._clock_ms)
        self._way: list[sync_pb2.FollowResponse] = []
        self._sequence = 0

    def step(self) -> None:
        for message in self._way:
            self.intake.take(message)
        self._way = []
        for message in self._feed.round():
            self._sequence += 1
            message.sequence = self._sequence
            self._way.append(sync_pb2.FollowResponse.FromString(message.SerializeToString()))


class World:
    """A leader, a chain of followers, pushes of one new row each, and a poller at the chain's end."""

    def __init__(self, *intervals_ms: int) -> None:
        self.now_ms = 1_700_000_000_000
        clock = lambda: self.now_ms  # noqa: E731
        self.store = LocalStore(None, [SPEC], clock_ms=clock)
        self.hops: list[Hop] = []
        for interval_ms in intervals_ms:
            self.hops.append(Hop(self.hops[-1].replica if self.hops else self.store, interval_ms, clock))
        self.waiting: dict[int, int] = {}
        self.next_id = 0
        self.waits_s: list[float] = []

    def push(self) -> None:
        """Of an event that was a moment ago."""
        event_ms = self.now_ms - EVENT_AGE_MS
        self.store.push({"t": (np.array([self.next_id], np.uint64), np.ones((1, 1)))}, event_time_ms=event_ms)
        self.waiting[self.next_id] = event_ms
        self.next_id += 1

    def run(self, milliseconds: int, push_ms: int | None = PUSH_MS, *, cut_off: bool = False) -> None:
        for at_ms in range(0, milliseconds, STEP_MS):
            if push_ms is not None and at_ms % push_ms == 0:
                self.push()
            for hop in [] if cut_off else self.hops:
                hop.step()
            self.poll()
            self.now_ms += STEP_MS

    def poll(self) -> None:
        if not self.waiting or not self.hops or "t" not in self.hops[-1].replica.tables():
            return
        ids = np.array(list(self.waiting), np.uint64)
        for id_ in ids[self.hops[-1].replica.contains("t", ids)].tolist():
            self.waits_s.append((self.now_ms - self.waiting.pop(id_)) / 1000)

    def read(self, measure: str, at: TableSet) -> Distribution:
        return at.freshness.read().get((measure, "t"), NOTHING)

    def lag(self) -> Distribution:
        return self.read(EVENT_TO_VISIBLE, self.hops[-1].replica)


def since(before: Distribution, after: Distribution) -> Distribution:
    counts = tuple(new - old for old, new in zip(before.counts, after.counts, strict=True))
    return Distribution(after.bounds, counts, after.total - before.total)


def agree(found: Distribution, waits_s: list[float]) -> None:
    """The median, the mean and the end are in the poller's buckets, or at most one beside them."""
    assert abs(found.total / found.num_values - np.mean(waits_s)) <= 0.1 * np.mean(waits_s) + 0.01
    for share in (0.5, 0.99):
        seen = bisect_left(BOUNDS_S, float(np.percentile(waits_s, 100 * share)))
        assert abs(bisect_left(BOUNDS_S, found.quantile(share)) - seen) <= 1, share


@pytest.mark.parametrize("intervals_ms", [(200,), (3000,), (3000, 200), (200, 3000), (1000, 1000, 1000)])
def test_the_measured_lag_is_what_a_poller_sees_also_at_the_end_of_a_chain(intervals_ms: tuple[int, ...]) -> None:
    world = World(*intervals_ms)
    world.run(SETTLED_MS)
    before, count = world.lag(), len(world.waits_s)
    world.run(30_000)
    found, waits_s = since(before, world.lag()), world.waits_s[count:]
    assert found.num_values == len(waits_s), "each change is counted once"
    agree(found, waits_s)


def test_the_stages_add_up() -> None:
    world = World(3000)
    world.run(SETTLED_MS)
    world.push()
    stages = [
        (TRAINED_TO_PUBLISHED, world.store),
        (PUBLISHED_TO_VISIBLE, world.hops[0].replica),
        (EVENT_TO_VISIBLE, world.hops[0].replica),
    ]
    before = [world.read(*stage) for stage in stages]
    world.run(30_000)
    published, visible, whole = (since(old, world.read(*stage)) for old, stage in zip(before, stages, strict=True))
    mean_s = EVENT_AGE_MS / 1000 + published.total / published.num_values + visible.total / visible.num_values
    assert abs(whole.total / whole.num_values - mean_s) <= 0.05


def test_a_lone_change_is_counted_with_its_own_age_and_events_that_are_older_than_others_too() -> None:
    world = World(200)
    world.run(1000, None)
    world.push()
    world.run(1000, None)
    late_ms = world.now_ms - 5000
    world.store.push({"t": (np.array([0], np.uint64), np.ones((1, 1)))}, event_time_ms=late_ms)
    world.run(1000, None)
    found = world.lag()
    assert found.num_values == 2
    assert abs(found.total - (EVENT_AGE_MS + 5000 + 2 * STEP_MS) / 1000) <= 0.02


@pytest.mark.parametrize("again", [True, False], ids=["cut off", "slow"])
def test_what_came_while_a_follower_could_take_nothing_is_counted_with_all_its_lag(again: bool) -> None:
    world = World(200)
    world.run(2000)
    before, count = world.lag(), len(world.waits_s)
    world.run(10_000, cut_off=True)
    if again:
        world.hops[0].connect()
    world.run(1000, None)
    found, waits_s = since(before, world.lag()), world.waits_s[count:]
    assert max(waits_s) > 9.9
    agree(found, waits_s)


def test_a_first_copy_and_changes_without_events_are_not_counted() -> None:
    world = World()
    world.run(1000)
    world.hops.append(Hop(world.store, 200, lambda: world.now_ms))
    world.run(1000, None)
    assert world.lag().num_values == 0
    ids = np.arange(5, dtype=np.uint64)
    world.store.delete("t", ids)
    world.run(1000, None)
    assert world.lag().num_values == 0
    assert world.read(TRAINED_TO_PUBLISHED, world.store).num_values == len(set(chunks_of_ids(ids, SPEC.num_chunks)))


def test_a_push_of_events_of_many_ages_counts_with_its_oldest() -> None:
    world = World(200)
    world.run(1000, None)
    [id_] = [each for each in range(100) if chunks_of_ids(np.array([each], np.uint64), SPEC.num_chunks)[0] == 0][:1]
    times_ms = world.now_ms - np.array([100, 7000, 30])
    push = TablePush(np.full(3, id_, np.uint64), np.ones((3, 1), np.float32), event_times_ms=times_ms)
    world.store.push({"t": push})
    Sampler(clock_ms=lambda: world.now_ms).trained(world.store, {"t": push}, None, {})
    world.run(1000, None)
    assert world.lag().total == pytest.approx((7000 + STEP_MS) / 1000)
    assert world.read(EVENT_TO_TRAINED, world.store).total == pytest.approx(7.0)
