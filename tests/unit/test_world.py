"""The synthetic world: any position can be reached at once, its truth is what the events show, and it can be learnt."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from embedstore.errors import InvalidArgumentError
from trainer.sources.synthetic import SyntheticSource, open_synthetic
from trainer.sources.world import BLOCK_EVENTS, World, WorldSpec


def test_the_same_position_always_has_the_same_event() -> None:
    whole = World(WorldSpec(seed=3)).events(0, 3 * BLOCK_EVENTS)
    part = World(WorldSpec(seed=3)).events(BLOCK_EVENTS + 100, 2 * BLOCK_EVENTS + 7)
    for one, other in zip(whole, part, strict=True):
        assert np.array_equal(one[BLOCK_EVENTS + 100 : 2 * BLOCK_EVENTS + 7], other)
    other_seed = World(WorldSpec(seed=4)).events(0, BLOCK_EVENTS)
    assert not np.array_equal(whole.items[:BLOCK_EVENTS], other_seed.items)


def test_items_are_born_and_die() -> None:
    world = World(WorldSpec(lifetime_events=20_000, items=200))
    early, late = world.events(0, 4096), world.events(100_000, 104_096)
    assert not set(early.items) & set(late.items)
    births = world.item_births(late.items)
    assert (births <= np.arange(100_000, 104_096)).all()
    assert (births > 100_000 - 1.5 * 20_000 - BLOCK_EVENTS).all()


def test_sessions_follow_their_topic_and_users_drift() -> None:
    world = World(WorldSpec(drift_events=50_000))
    block = world.events(0, 40_960)
    assert (world.item_topics(block.items) == block.topics).mean() > 0.85
    users = np.arange(1000)
    main, _ = world.user_topics(users, 0)
    later, _ = world.user_topics(users, 50_000)
    assert 0.02 < (main == later).mean() < 0.10
    assert np.array_equal(main, world.user_topics(users, 0)[0])


def test_steps_count_within_a_session_and_times_do_not_go_back() -> None:
    world = World(WorldSpec(rate=300.0))
    block = world.events(0, 8192)
    steps: Counter[int] = Counter()
    for session, step in zip(block.sessions.tolist(), block.steps.tolist(), strict=True):
        assert steps[session] == step
        steps[session] += 1
    times_ms = world.event_time_ms(np.arange(8192))
    assert (np.diff(times_ms) >= 0).all()
    assert times_ms[3000] - times_ms[0] == 10_000


def test_popularity_is_far_below_what_can_be_known() -> None:
    world = World(WorldSpec())
    block = world.events(0, 60_000)
    popular = [item for item, _ in Counter(block.items[:30_000].tolist()).most_common(10)]
    by_popularity = np.isin(block.items[30_000:], popular).mean()
    assert by_popularity < 0.10
    assert world.ideal_hit_rate(30_000, 60_000) > 0.5


def test_ideal_ranks_are_the_order_of_the_true_probabilities() -> None:
    world = World(WorldSpec(items=60, topics=3))
    block = world.events(0, 40_960)
    tested = block.ideal_ranks >= 0
    assert np.array_equal(tested, block.steps > 0)
    counts = np.bincount(block.ideal_ranks[tested], minlength=10)[:6]
    assert (np.diff(counts) < 0).all(), counts


def test_a_live_stream_gives_an_event_at_its_time() -> None:
    now_ms = [WorldSpec().start_ms - 20]
    slept: list[float] = []

    def sleep_s(seconds: float) -> None:
        slept.append(seconds)
        now_ms[0] += round(seconds * 1000)

    source = SyntheticSource(WorldSpec(rate=100.0), live=True, clock_ms=lambda: now_ms[0], sleep_s=sleep_s)
    nothing = source.poll(10, 0.0)
    assert nothing is not None
    assert nothing.origins == ()
    first = source.poll(10, 5.0)
    assert first is not None
    assert first.positions.tolist() == [0]
    assert first.event_time_ms[0] <= now_ms[0] < first.event_time_ms[0] + 10
    assert sum(slept) == pytest.approx(0.02)
    now_ms[0] += 1000
    assert source.lag_records() == {next(iter(source.streams())): 100}
    batch = source.poll(1000, 5.0)
    assert batch is not None
    assert len(batch) == 100
    assert batch.event_time_ms[-1] <= now_ms[0]


@pytest.mark.parametrize(
    ("uri", "field"),
    [
        ("synthetic://?users=0", "users"),
        ("synthetic://?rate=-1", "rate"),
        ("synthetic://?rate=x", "rate"),
        ("synthetic://?events=-5", "events"),
        ("synthetic://?colour=red", "events"),
        ("synthetic://host?seed=1", "events"),
        ("synthetic://?session_events=1", "session_events"),
    ],
)
def test_a_wrong_parameter_is_named(uri: str, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        open_synthetic(uri)
    assert caught.value.field == field


def test_the_stream_is_named_by_what_decides_its_events() -> None:
    def name(uri: str) -> str:
        return next(iter(open_synthetic(uri).streams()))

    assert name("synthetic://?seed=1&events=10") == name("synthetic://?seed=1&events=20")
    assert name("synthetic://?seed=1") != name("synthetic://?seed=2")
