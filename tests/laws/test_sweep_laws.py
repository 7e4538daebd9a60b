"""Laws of sweeps in pieces, of any size: what they do together is what one whole sweep does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.interface import SweepResult
from embedstore.spec import SGD, MinCount, TableSpec
from embedstore.table import Table

NOW_MS = 10**12
DAY_MS = 86_400_000


def table(num_rows: int, old: set[int], num_chunks: int) -> Table:
    """``old`` are a day and more older than all others."""
    spec = TableSpec("t", dim=4, optimizer=SGD(1.0), ttl_s=86_400.0, num_chunks=num_chunks)
    made = Table(spec)
    ids = np.arange(num_rows, dtype=np.uint64)
    for chosen, time_ms in ((ids, NOW_MS - 2 * DAY_MS), (np.setdiff1d(ids, np.array(sorted(old))), NOW_MS)):
        made.push(chosen, np.ones((len(chosen), 4), np.float32), now_ms=NOW_MS, event_times_ms=time_ms)
    return made


def round_of(made: Table, step: int) -> tuple[SweepResult, int]:
    total, calls = SweepResult(), 0
    while True:
        result = made.sweep(step)
        total, calls = total + result, calls + 1
        if result.complete:
            return total, calls


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 3000),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    step=st.sampled_from([1, 3, 64, 500, 10_000]),
    num_chunks=st.sampled_from([1, 4, 64]),
    seed=st.integers(0, 99),
)
def test_a_round_in_steps_does_what_a_whole_one_does(
    num_rows: int, share: float, step: int, num_chunks: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    old = set(np.flatnonzero(random.random(num_rows) < share).tolist())
    whole, pieces = (table(num_rows, old, num_chunks) for _ in range(2))
    expected, once = round_of(whole, 1 << 40)
    found, calls = round_of(pieces, max(step, num_rows // 200))
    assert once == 1
    assert calls >= 1
    assert found.rows_expired == expected.rows_expired
    assert expected.rows_expired == (len(old) if len(old) < num_rows else 0), "with nothing newer nothing is old"
    assert len(pieces) == len(whole) == num_rows - expected.rows_expired
    ids = np.arange(num_rows, dtype=np.uint64)
    rows, others = pieces.pull_rows(ids), whole.pull_rows(ids)
    for column in ("found", "embeddings", "updates", "first_seen_s", "last_seen_s"):
        np.testing.assert_array_equal(getattr(rows, column), getattr(others, column), err_msg=column)
    assert round_of(pieces, 1 << 40)[0].rows_expired == 0


def test_a_dry_run_moves_no_cursor_and_no_clock() -> None:
    made = table(1000, set(range(500)), 8)
    made.sweep(10)
    before = made.chunk_states()
    assert made.sweep(1, dry_run=True).complete
    assert made.mid_round
    after = made.chunk_states()
    for name in ("versions", "clocks_ms"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert round_of(made, 1 << 40)[0].rows_expired + 1000 - len(made) >= 500


def test_chunks_that_fell_back_keep_their_own_clock_until_they_are_level() -> None:
    made = table(400, set(range(200)), 2)
    for chunk in (0, 1):
        made.set_watermarks(chunk, {"s": 5 + chunk}, 0)
    late = np.array([next(key for key in range(10_000, 20_000) if _chunk(made, key) == 1)], np.uint64)
    made.push(late, np.ones((1, 4), np.float32), now_ms=NOW_MS + 5 * DAY_MS, event_times_ms=NOW_MS + 5 * DAY_MS)
    round_of(made, 1 << 40)
    assert int(made.chunk_states().clocks_ms[0]) <= NOW_MS, "it may lack events of the stream"
    made.set_watermarks(0, {"s": 6}, 0)
    round_of(made, 1 << 40)
    assert made.chunk_states().clocks_ms.tolist() == [NOW_MS + 5 * DAY_MS] * 2
    assert len(made) == 1


@pytest.mark.parametrize("write", ["sweep", "push", "assign"])
def test_expiry_and_a_much_lower_capacity_in_one_step(write: str) -> None:
    """Few rows expire and many are evicted by the same step: there is room for the tombstones of both."""
    admission = MinCount(2) if write == "push" else None
    spec = TableSpec("t", dim=1, optimizer=SGD(1.0), ttl_s=86_400.0, num_chunks=1, admission=admission)
    made = Table(spec)
    for ids, time_ms in ((np.arange(4), NOW_MS - 2 * DAY_MS), (np.arange(4, 3000), NOW_MS)):
        made.assign(ids.astype(np.uint64), np.ones((len(ids), 1), np.float32), now_ms=NOW_MS, event_time_ms=time_ms)
    made.alter(replace(spec, rows_max=8))
    row = np.ones((1, 1), np.float32)
    if write == "sweep":
        made.sweep(1 << 20)
    elif write == "push":
        made.push([0], row, now_ms=NOW_MS)
    else:
        made.assign([0], row, now_ms=NOW_MS)
    stats = made.stats()
    assert stats.rows == 8
    assert stats.expired_rows + stats.evicted_rows == 2992 + stats.inserted_rows - 3000
    assert stats.expired_rows == {"sweep": 4, "push": 1, "assign": 1}[write]
    for cursor in [(0, 0), (made.chunk_states().incarnations[0], 1)]:
        copy = Table(spec)
        copy.apply(made.delta(0, int(cursor[0]), cursor[1]))
        assert len(copy) == 8


def _chunk(made: Table, key: int) -> int:
    from model_table import chunk_of

    return chunk_of(key, made.spec.num_chunks)
