"""A reader's cache never serves a row that is older than it may be, and asks only for what it lacks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from half_rows import as_halves, bits, check_halves, rounded_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import embedstore as es
from embedstore.row_cache import RowCache
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard

SPEC = es.TableSpec("t", dim=2, optimizer=es.SGD(1.0), init=es.Uniform(0.5, seed=2), on_miss="init", num_chunks=8)
IDS = np.array([3, 1, 3, 9, 2**63], np.uint64)


class Time:
    def __init__(self) -> None:
        self.at_ms = 0.0

    def __call__(self) -> float:
        return self.at_ms


@pytest.fixture
def shards() -> Iterator[list[Shard]]:
    opened = [Shard(ShardOptions("127.0.0.1:0", i, 2, tables=[SPEC])) for i in range(2)]
    for shard in opened:
        shard.start()
    yield opened
    for shard in opened:
        shard.stop()


def connect(shards: list[Shard], **options: Any) -> Any:
    return es.connect([shard.address for shard in shards], **options)


def pulled_rows(shards: list[Shard]) -> int:
    return sum(shard._serving.store().stats().tables["t"].pulled_rows for shard in shards)


def test_rows_are_asked_for_once_and_again_when_they_are_too_old(shards: list[Shard]) -> None:
    time = Time()
    with connect(shards) as writer, connect(shards, max_age_ms=1000) as reader:
        reader._cache = RowCache(1000, monotonic_ms=time)
        writer.push({"t": (IDS[:3], -np.ones((3, 2), np.float32))})
        first = writer.pull({"t": IDS})["t"]
        before = pulled_rows(shards)
        np.testing.assert_array_equal(reader.pull({"t": IDS})["t"], first)
        assert pulled_rows(shards) == before + 4
        for time.at_ms in (100.0, 400.0, 900.0):
            np.testing.assert_array_equal(reader.pull({"t": IDS[::-1]})["t"], first[::-1])
        assert pulled_rows(shards) == before + 4
        writer.push({"t": (IDS[:3], -np.ones((3, 2), np.float32))})
        time.at_ms = 1000.0
        assert (reader.pull({"t": IDS})["t"] == writer.pull({"t": IDS})["t"]).all()


def test_only_what_is_missing_is_asked_for(shards: list[Shard]) -> None:
    with connect(shards, max_age_ms=600_000) as reader, connect(shards) as other:
        reader.pull({"t": IDS[:2]})
        before = pulled_rows(shards)
        np.testing.assert_array_equal(reader.pull({"t": IDS})["t"], other.pull({"t": IDS})["t"])
        assert pulled_rows(shards) == before + 2 + 4
        assert reader.pull({"t": np.empty(0, np.uint64)})["t"].shape == (0, 2)
        assert reader.pull({"t": IDS}, meta=True)["t"].found.tolist() == [False] * 5


def test_halves_are_kept_too_and_never_served_as_float32(shards: list[Shard]) -> None:
    with connect(shards) as writer, connect(shards, max_age_ms=600_000) as reader:
        writer.push({"t": (IDS[:3], np.full((3, 2), 1 / 3, np.float32))})
        full = writer.pull({"t": IDS})["t"]
        assert (full != as_halves(full)).any()
        before = pulled_rows(shards)
        for dtype, asked in ((np.float16, 4), (np.float16, 4), (np.float32, 8), (np.float16, 8), (np.float32, 8)):
            expected = full if dtype is np.float32 else as_halves(full)
            assert bits(reader.pull({"t": IDS}, dtype=dtype)["t"]) == bits(expected)
            assert bits(reader.pull({"t": IDS[:2]}, dtype=np.dtype(dtype))["t"]) == bits(expected[:2])
            assert pulled_rows(shards) == before + asked
        check_halves(reader, {"t": IDS})


def test_rounded_rows_come_out_of_the_cache_as_they_went_in(shards: list[Shard]) -> None:
    rows, halves = rounded_rows(2)
    ids = np.arange(len(rows), dtype=np.uint64)
    with connect(shards) as writer, connect(shards, max_age_ms=600_000) as reader:
        writer.assign("t", ids, rows)
        before = pulled_rows(shards)
        for _ in range(2):
            assert bits(reader.pull({"t": ids}, dtype=np.float16)["t"]) == bits(halves)
        beyond = np.count_nonzero(np.isinf(halves).any(axis=1))
        assert pulled_rows(shards) == before + len(ids) + beyond, "what has overflowed is asked for each time"
        check_halves(reader, {"t": ids})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_a_shard_that_is_away_did_not_answer_is_not_kept(shards: list[Shard], dtype: Any) -> None:
    ids = np.arange(40, dtype=np.uint64)
    options = {"max_age_ms": 600_000, "timeout_s": 1.0, "retry_s": 0.2, "on_unavailable": "default"}
    with es.open(None, [SPEC]) as empty:
        initial = empty.pull({"t": ids}, dtype=dtype)["t"]
    with connect(shards, **options) as reader, connect(shards) as writer:
        writer.push({"t": (ids, np.ones((40, 2), np.float32))})
        some = reader.pull({"t": ids[:20]}, dtype=dtype)["t"]
        shards[1].stop()
        part = reader.pull({"t": ids}, dtype=dtype)
        lost = part.unavailable["t"]
        assert not lost[:20].any()
        assert lost[20:].any()
        assert bits(part["t"][:20]) == bits(some)
        assert bits(part["t"][lost]) == bits(initial[lost])
        again = reader.pull({"t": np.repeat(ids, 2)}, dtype=dtype)
        np.testing.assert_array_equal(again.unavailable["t"], np.repeat(lost, 2))
        assert bits(again["t"]) == bits(np.repeat(part["t"], 2, axis=0))


def test_such_a_store_only_reads_and_bad_bounds_are_refused(shards: list[Shard]) -> None:
    with connect(shards, max_age_ms=50) as reader:
        writes = {name for name in vars(es.Store) if not name.startswith("_")} - {*vars(es.Reader), "watermarks"}
        assert len(writes) == 10
        for name in writes:
            with pytest.raises(es.ReadOnlyError, match="max_age_ms"):
                getattr(reader, name)("t", IDS)
        assert set(reader.tables()) == {"t"}
        assert reader.watermarks() == {}
    with pytest.raises(es.ClosedError):
        reader.checkpoint()
    for bad in ({"max_age_ms": 0}, {"max_age_ms": True}, {"max_age_ms": 1.5}, {"max_age_ms": 5, "cache_rows_max": 1}):
        with pytest.raises(es.InvalidArgumentError, match=r"max_age_ms|cache_rows_max"):
            connect(shards, **bad)


def test_a_small_table_and_rows_that_have_overflowed_are_served_as_they_are() -> None:
    small = es.TableSpec("small", dim=2, optimizer=es.SGD(1.0), num_chunks=4, rows_max=40, ttl_s=3600)
    shard = Shard(ShardOptions("127.0.0.1:0", tables=[small]))
    shard.start()
    try:
        with connect([shard]) as writer, connect([shard], max_age_ms=600_000) as reader:
            ids = np.array([0, 5, 2**64 - 1], np.uint64)
            for grads in (np.array([[1, 2], [3e38, 1], [5, 6]]), np.array([[1, 2], [3e38, 1], [5, 6]])):
                writer.push({"small": (ids, grads.astype(np.float32))})
            first = writer.pull({"small": ids})["small"]
            assert np.isinf(first[1, 0])
            np.testing.assert_array_equal(reader.pull({"small": ids})["small"], first)
            writer.push({"small": (ids, np.ones((3, 2), np.float32))})
            again = reader.pull({"small": ids})["small"]
            np.testing.assert_array_equal(again[[0, 2]], first[[0, 2]])
            assert again[1, 1] == first[1, 1] - 1
    finally:
        shard.stop()


def test_threads_together_keep_no_more_than_there_is_room_for() -> None:
    cache, spec = RowCache(600_000, 2000), es.TableSpec("t", dim=1, num_chunks=4)
    cache.found(spec, IDS[:1])
    start = threading.Barrier(4)

    def keep(first: int) -> None:
        ids = np.arange(first, first + 1000, dtype=np.uint64)
        start.wait()
        cache.keep(spec, cache.now_ms(), ids, np.ones((1000, 1), np.float32))

    threads = [threading.Thread(target=keep, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache._of(spec)._young) <= 1000


def test_tables_that_nobody_reads_any_more_are_let_go() -> None:
    time = Time()
    cache = RowCache(1000, monotonic_ms=time)
    for i in range(20):
        cache.found(es.TableSpec(f"t{i}", dim=1), IDS[:1])
        time.at_ms += 500
    assert len(cache._tables) <= 3


@given(
    st.lists(st.tuples(st.floats(0, 700), st.floats(0, 700), st.lists(st.integers(0, 9), max_size=6)), max_size=25),
    st.integers(2, 12),
    st.sampled_from([np.dtype(np.float32), np.dtype(np.float16)]),
)
@settings(deadline=None)
def test_nothing_is_served_that_came_too_long_ago(
    steps: list[tuple[float, float, list[int]]], rows_max: int, dtype: np.dtype[Any]
) -> None:
    """Each answer carries the time of its question; what the cache serves was asked for at most max_age_ms ago."""
    time = Time()
    cache = RowCache(1000, rows_max, monotonic_ms=time)
    spec = es.TableSpec("t", dim=1, num_chunks=4)
    for pause, took, chosen in steps:
        time.at_ms += pause
        asked_ms, ids = cache.now_ms(), np.unique(np.array(chosen, np.uint64))
        rows, found = cache.found(spec, ids, dtype)
        assert rows.dtype == dtype
        assert (rows[found, 0] >= dtype.type(time.at_ms - 1000.0)).all()
        time.at_ms += took
        new = ids[~found]
        cache.keep(spec, asked_ms, new, np.full((len(new), 1), asked_ms, dtype))
        kept = cache._of(spec, dtype)
        assert len(kept._young) + len(kept._old) <= rows_max
