"""Distributions say what the values were, within their bounds, and add up; probes are not sent twice."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedstore.freshness import BOUNDS_S, PROBES_MAX, Distribution, Freshness, Histogram, Probe, merge

SECONDS = st.lists(st.floats(0, 2 * BOUNDS_S[-1]), max_size=60)


def counted(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    return histogram


@given(SECONDS, st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    found = counted(values).read().quantile(share)
    if not values:
        assert math.isnan(found)
        return
    true = sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
    place = int(np.searchsorted(BOUNDS_S, true))
    low, high = (0.0, *BOUNDS_S)[place], (*BOUNDS_S, math.inf)[place]
    assert low <= found <= high


@given(st.floats(0, 4000), st.floats(-1, 4000), st.integers(1, 500))
def test_values_between_two_are_counted_as_if_each_were_known(low: float, high: float, count: int) -> None:
    histogram = Histogram()
    histogram.observe_between(low, high, count)
    low, high = max(min(low, high), 0.0), max(high, 0.0)
    each = np.linspace(low, high, count) if count > 1 else np.array([high])
    found, expected = histogram.read(), counted(each.tolist()).read()
    assert sum(found.counts) == count
    assert np.abs(np.cumsum(found.counts) - np.cumsum(expected.counts)).max() <= 1, "but for rounding at a bound"
    assert math.isclose(found.total, expected.total, rel_tol=1e-9, abs_tol=BOUNDS_S[0] * count)


@given(SECONDS, SECONDS)
def test_counts_of_two_processes_add_up(a: list[float], b: list[float]) -> None:
    key = ("m", "t")
    merged = merge([{key: counted(a).read()}, {key: counted(b).read()}])[key]
    both = counted(a + b).read()
    assert merged.counts == both.counts
    assert math.isclose(merged.total, both.total, abs_tol=1e-6)


def test_those_over_other_bounds_add_up_over_what_both_have() -> None:
    a = Distribution((1.0, 2.0, 4.0), (1, 2, 3, 4), 30.0)
    b = Distribution((2.0, 3.0, 4.0), (5, 6, 7, 8), 70.0)
    assert a + b == Distribution((2.0, 4.0), (3 + 5, 3 + 6 + 7, 4 + 8), 100.0)


def test_a_clock_that_is_behind_counts_as_no_time() -> None:
    freshness = Freshness()
    freshness.observe_ms("m", "t", -5000, 3)
    [distribution] = freshness.read().values()
    assert (distribution.num_values, distribution.total, distribution.quantile(0.5) <= BOUNDS_S[0]) == (3, 0.0, True)


@given(st.lists(st.integers(1, 2 * PROBES_MAX), max_size=8))
def test_each_probe_is_given_once_and_the_latest_are_kept(sizes: list[int]) -> None:
    freshness = Freshness()
    number, probes = freshness.probes_after(0)
    added = 0
    for size in sizes:
        freshness.add_probes(Probe("t", added + i, 0) for i in range(size))
        number, probes = freshness.probes_after(number)
        expected = range(added + max(0, size - PROBES_MAX), added + size)
        assert [probe.id for probe in probes] == list(expected)
        added += size
    assert freshness.probes_after(number) == (number, [])
