"""The catalog's numbers, counts and mirrored rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import InvalidArgumentError
from trainer.candidates import draw, locate, same_user_pairs
from trainer.catalog import Catalog
from trainer.events import BATCH_DTYPES, EventBatch
from trainer.history import Window

HALF_LIVES_S = (10.0, 1000.0)


def uint64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@given(
    events=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5_000_000)), min_size=1, max_size=60),
    split=st.integers(1, 60),
)
@settings(max_examples=60, deadline=None)
def test_counts_decay_with_event_time_in_any_order(events: list[tuple[int, int]], split: int) -> None:
    catalog = Catalog(4, HALF_LIVES_S)
    for part in (events[:split], events[split:]):
        if part:
            numbers = catalog.locate(uint64(*(item for item, _ in part)))
            catalog.note(numbers, np.array([1_000_000 + time for _, time in part]))
    now = max(time for _, time in events)
    for number, item in enumerate(catalog.ids.tolist()):
        ages_s = [(now - time) / 1000 for other, time in events if other == item]
        expected = [sum(0.5 ** (age / half_life) for age in ages_s) for half_life in HALF_LIVES_S]
        np.testing.assert_allclose(catalog.counts()[number], expected, rtol=1e-6, atol=1e-12)
        assert catalog.last_event_ms[number] == 1_000_000 + max(time for other, time in events if other == item)


def test_unknown_items_get_numbers_in_order_of_appearance() -> None:
    catalog = Catalog(4, HALF_LIVES_S)
    assert catalog.locate(uint64(9, 3, 9, 2**64 - 1)).tolist() == [0, 1, 0, 2]
    assert catalog.locate(uint64(3, 7)).tolist() == [1, 3]
    assert catalog.ids.tolist() == [9, 3, 2**64 - 1, 7]


def test_at_its_limit_it_forgets_the_least_met_items_and_keeps_the_others_whole() -> None:
    catalog = Catalog(2, HALF_LIVES_S, items_max=1024)
    numbers = catalog.locate(np.arange(1024, dtype=np.uint64))
    catalog.note(np.repeat(numbers, np.arange(1, 1025)), np.full(1024 * 1025 // 2, 1000))
    catalog.store_rows(numbers, np.stack([numbers, -numbers], axis=1).astype(np.float32))
    catalog.make_room(5)
    assert len(catalog) == 1024 - 128
    assert catalog.ids.min() == 128
    assert catalog.locate(uint64(128, 1023)).tolist() == [0, 895]
    assert catalog.rows[0].tolist() == [128.0, -128.0]
    assert catalog.counts()[0, 1] == pytest.approx(129)


def test_rows_are_pulled_when_new_or_stale_and_the_others_in_turn() -> None:
    catalog = Catalog(2, HALF_LIVES_S)
    numbers = catalog.locate(np.arange(10, dtype=np.uint64))
    assert catalog.to_pull(0).tolist() == list(range(10))
    catalog.store_rows(numbers, np.ones((10, 2), np.float32))
    assert catalog.to_pull(0).tolist() == []
    assert catalog.to_pull(4).tolist() == [0, 1, 2, 3]
    catalog.mark_stale(np.array([9]))
    assert catalog.to_pull(4).tolist() == [4, 5, 6, 7, 9]
    catalog.mark_stale()
    assert len(catalog.to_pull(0)) == 10


def test_a_restored_catalog_counts_on_as_if_nothing_had_happened() -> None:
    catalog = Catalog(2, HALF_LIVES_S)
    catalog.note(catalog.locate(uint64(4, 5, 4)), np.array([1000, 2000, 9000]))
    copy = Catalog(2, HALF_LIVES_S)
    copy.load_state(catalog.state())
    for one in (catalog, copy):
        one.note(one.locate(uint64(6, 5)), np.array([50_000, 50_001]))
    np.testing.assert_array_equal(copy.ids, catalog.ids)
    np.testing.assert_array_equal(copy.counts(), catalog.counts())
    assert len(copy.to_pull(0)) == 3
    with pytest.raises(InvalidArgumentError, match="half"):
        Catalog(2, (1.0,)).load_state(catalog.state())


def a_batch(items: list[int], histories: list[list[int]], users: list[int] | None = None) -> tuple[EventBatch, Window]:
    n, length = len(items), 3
    columns: dict[str, Any] = {name: np.zeros(n, dtype) for name, dtype in BATCH_DTYPES.items()}
    columns["item_ids"] = np.array(items, np.uint64)
    columns["user_ids"] = np.array(users or range(n), np.uint64)
    past = np.zeros((n, length), np.uint64)
    for row, history in enumerate(histories):
        past[row, : len(history)] = history
    lengths = np.array([len(history) for history in histories])
    zeros = np.zeros((n, length), np.uint64)
    return EventBatch(**columns, origins=()), Window(past, zeros, zeros, zeros.view(np.int64), lengths, lengths > 0)


def met(*items: int) -> Catalog:
    catalog = Catalog(2, HALF_LIVES_S)
    catalog.note(catalog.locate(uint64(*items)), np.full(len(items), 1000))
    return catalog


def test_an_item_first_met_in_the_batch_is_known_to_later_events_alone() -> None:
    catalog = met(1, 2)
    for _ in range(2):  # a batch that is refused and read again is no different
        located = locate(catalog, *a_batch([1, 50, 50, 60, 2], [[], [], [50], [77], []]))
        assert located.target_known().tolist() == [True, False, True, False, True]
        assert dict(zip(catalog.ids[located.new_M].tolist(), located.first_M.tolist(), strict=True)) == {50: 1, 60: 3}


def test_history_places_know_the_latest_event_and_the_last_of_equal_items() -> None:
    located = locate(Catalog(2, HALF_LIVES_S), *a_batch([1, 2], [[8, 9, 8], [9]]))
    assert located.latest_BL.tolist() == [[False, False, True], [True, False, False]]
    assert located.distinct_BL.tolist() == [[False, True, True], [True, False, False]]
    assert located.history_BL[1].tolist()[1:] == [-1, -1]


def test_candidates_are_the_targets_the_head_and_a_sample_of_the_rest_each_once() -> None:
    catalog = met(*range(100))
    located = locate(catalog, *a_batch([7, 7, 500], [[], [], []]))
    weight = np.arange(101, dtype=np.float64)
    drawn = draw(located, weight, 10, 20, np.random.default_rng(0))
    numbers = drawn.numbers_C.tolist()
    assert len(numbers) == len(set(numbers))
    assert {7, 100, *range(90, 100)} <= set(numbers)
    assert 30 <= len(numbers) <= 32
    chance = dict(zip(numbers, drawn.drawn_C.tolist(), strict=True))
    assert chance[95] == 1.0
    assert chance[7] == pytest.approx(20 / 90)
    assert chance[100] == 0.0
    assert [drawn.column_N[number] for number in numbers] == list(range(len(numbers)))


def test_same_user_pairs_are_all_ordered_pairs() -> None:
    first, second = same_user_pairs(uint64(5, 6, 5, 5))
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [
        (0, 2), (0, 3), (2, 0), (2, 3), (3, 0), (3, 2)
    ]  # fmt: skip
