"""What the demo knows beforehand agrees with what its source then hands out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.demo.feeds import SyntheticFeed
from trainer.demo.script import K, make_script, popularity_hits
from trainer.sources import open_source
from trainer.sources.world import WorldSpec

SPEC = WorldSpec(seed=3, events=6000, rate=1000.0, start_ms=1_000_000, users=200, items=50, lifetime_events=3000)


def test_first_positions_are_those_of_the_events_that_the_uri_names() -> None:
    script = make_script(SPEC)
    source = open_source(SyntheticFeed(script).uri)
    items, times_ms = [], []
    while (batch := source.poll(1000, 0.0)) is not None:
        items.append(batch.item_ids)
        times_ms.append(batch.event_time_ms)
    all_items, all_times_ms = np.concatenate(items), np.concatenate(times_ms)
    ids, first = np.unique(all_items, return_index=True)
    assert script.events == all_items.size == 6000
    assert np.array_equal(script.first_ids, ids) and np.array_equal(script.first_positions, first)
    assert np.array_equal(script.world.event_time_ms(script.first_positions), all_times_ms[first])


def test_sent_follows_the_clock_and_stops_at_the_end() -> None:
    feed = SyntheticFeed(make_script(SPEC))
    assert feed.start_s == 1000.0
    assert [feed.sent(1000.0 + elapsed) for elapsed in (-5.0, 0.0, 2.5, 6.0, 99.0)] == [0, 0, 2500, 6000, 6000]


def test_the_references_are_ordered_as_knowledge_is() -> None:
    script = make_script(WorldSpec(seed=1, events=20_000))
    popularity = script.hit_rate(script.popularity_hits, 0, script.events)
    ideal = script.hit_rate(script.ideal_hits, 0, script.events)
    assert popularity is not None and ideal is not None and 0.0 < popularity < ideal < 1.0
    assert ideal == script.world.ideal_hit_rate(0, script.events)


def test_hit_rate_of_a_span_without_tests_is_nothing() -> None:
    script = make_script(SPEC)
    assert script.hit_rate(script.ideal_hits, 5, 5) is None


@settings(max_examples=50)
@given(st.lists(st.integers(0, 30), max_size=400))
def test_popularity_never_knows_an_item_before_its_first_event(values: list[int]) -> None:
    items = np.array(values, dtype=np.int64)
    hits = popularity_hits(items)
    first = np.unique(items, return_index=True)[1]
    assert hits.shape == items.shape and not hits[first].any()


def test_popularity_of_few_items_is_always_right_once_they_are_known() -> None:
    items = np.tile(np.arange(K), 100)
    assert popularity_hits(items)[64:].all()
