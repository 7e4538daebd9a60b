"""What a table remembers of its changes is never too young, hardly too old, and bounded."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedstore.changes import SPAN_MS, SPANS_MAX, Changes, Span

STEPS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 500)), min_size=1, max_size=60)


@given(STEPS, st.integers(0, 2500))
def test_few_changes_are_known_to_the_span(steps: list[tuple[int, int]], back_ms: int) -> None:
    changes, now_ms, made = Changes(), 1_000_000, []
    for step_ms, age_ms in steps:
        now_ms += step_ms
        changes.add(now_ms, now_ms - age_ms, now_ms - age_ms // 2)
        made.append((now_ms, now_ms - age_ms, now_ms - age_ms // 2))
    moment_ms = now_ms - back_ms
    since = [change for change in made if change[0] >= moment_ms]
    found = changes.since(moment_ms)
    assert (found is None) == (not since)
    if found is not None:
        around = [change for change in made if change[0] > moment_ms - SPAN_MS]
        assert around[0][0] <= found.first_ms <= since[0][0]
        assert found.last_ms == now_ms
        assert min(old for _, old, _ in around) <= found.oldest_event_ms <= min(old for _, old, _ in since)
        assert found.newest_event_ms >= max(new for _, _, new in since)


@settings(max_examples=20, deadline=None)
@example(60, 60_000)
@given(st.integers(1, 60), st.integers(1, 60_000))
def test_a_long_life_takes_no_more_room_and_stays_known(step_ms: int, count: int) -> None:
    changes, begin_ms = Changes(), 1_000_000
    now_ms = begin_ms
    for _ in range(count):
        now_ms += step_ms
        changes.add(now_ms, now_ms - 7, now_ms - 7)
    assert len(changes._spans) <= SPANS_MAX
    for back_ms in (0, 100, 1000, 30_000, 10**6):
        moment_ms = now_ms - back_ms
        true_ms = max(begin_ms + step_ms, begin_ms + -(-(moment_ms - begin_ms) // step_ms) * step_ms)
        found = changes.since(moment_ms)
        assert found is not None
        assert found.first_ms <= true_ms
        assert true_ms - found.first_ms <= max(SPAN_MS, 0.05 * (now_ms - true_ms))
        assert found.oldest_event_ms == found.first_ms - 7


def test_changes_without_events_hide_no_event() -> None:
    changes = Changes()
    changes.add(1000)
    assert changes.since(1001) is None
    assert changes.since(0) == Span(1000, 1000, 0, 0)
    changes.add(1003, 400, 500)
    changes.add(2000)
    assert changes.since(0) == Span(1000, 2000, 400, 500)
    assert changes.since(1004) == Span(2000, 2000, 0, 0)


def test_a_clock_that_goes_back_loses_nothing_that_comes_later() -> None:
    changes = Changes()
    changes.add(5000, 4000, 4000)
    changes.add(3000, 2000, 2000)
    assert changes.since(3000) == Span(3000, 5000, 2000, 4000)
