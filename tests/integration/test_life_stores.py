"""Admission, expiry and capacity over restarts, over followers, and with many threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import crash, state
from follow_servers import TIMEOUT_S, Leader
from model_table import chunk_of

import embedstore as es
from embedstore.server.follow import FollowerStore
from embedstore.store import LocalStore

DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000
CHUNKS = 8
BRIEF = es.TableSpec("items", dim=2, optimizer=es.SGD(lr=1.0), ttl_s=86_400.0, num_chunks=CHUNKS)
PICKY = replace(BRIEF, admission=es.MinCount(3))
SMALL = replace(BRIEF, ttl_s=None, rows_max=25 * CHUNKS)
IDS = np.arange(200, dtype=np.uint64)


def push(store: LocalStore, ids: np.ndarray, time_ms: int = NOW_MS, origins: tuple[es.Origin, ...] = ()) -> None:
    grads = np.ones((len(ids), 2), np.float32)
    store.push({"items": (ids, grads)}, event_time_ms=time_ms, origins=origins)


def opened(path: Path | None, *tables: es.TableSpec) -> LocalStore:
    return LocalStore(path, tables, clock_ms=lambda: NOW_MS)


# -- over restarts


def test_altered_limits_are_durable_when_the_call_returns(tmp_path: Path) -> None:
    with opened(tmp_path / "a", BRIEF) as store:
        push(store, IDS)
        store.checkpoint()
        altered = replace(BRIEF, ttl_s=None, rows_max=900, optimizer=es.SGD(lr=0.5))
        store.alter_table(altered)
        crash(tmp_path / "a", tmp_path / "b")
    with opened(tmp_path / "b") as store:
        assert store.tables() == {"items": altered}
        push(store, IDS[:1], NOW_MS + 2 * DAY_MS)
        assert store.contains("items", IDS).all()
        push(store, np.arange(2000, dtype=np.uint64))
        assert store.stats().tables["items"].rows <= 900


def test_a_restart_remembers_counts_clocks_and_what_is_gone(tmp_path: Path) -> None:
    with opened(tmp_path / "a", PICKY) as store:
        push(store, np.repeat(IDS[:100], 3), NOW_MS - 2 * DAY_MS)
        assert store.contains("items", IDS[:100]).all()
        push(store, np.repeat(IDS[100:], 2), NOW_MS)
        store.checkpoint()
        push(store, IDS)
        assert store.contains("items", IDS).tolist() == (IDS >= 100).tolist()
        crash(tmp_path / "a", tmp_path / "b")
    with opened(tmp_path / "b") as store:
        assert not store.contains("items", IDS).any(), "old rows expired, new ones lack the push after the checkpoint"
        push(store, IDS)
        assert store.contains("items", IDS).tolist() == (IDS >= 100).tolist(), "the third occurrence of these alone"


def test_a_kill_between_sweeps_loses_nothing(tmp_path: Path) -> None:
    """Any moment's directory, replayed, ends in the rows of a store that never stopped."""
    steps = 24
    calm = opened(None, PICKY)
    hurt = opened(tmp_path / "0", PICKY)
    random = np.random.default_rng(3)
    batches = [random.integers(0, 300, 40).astype(np.uint64) for _ in range(steps)]

    def play(store: LocalStore, step: int) -> None:
        origin = es.Origin("s", step, step + 1)
        push(store, batches[step], NOW_MS - DAY_MS * (steps - step) // 6, (origin,))

    for store in (calm, hurt):
        store.open_stream("s", 0)
    for step in range(steps):
        play(calm, step)
    for step in range(steps):
        play(hurt, step)
        if step % 5 == 1:
            hurt.checkpoint()
        if step % 7 == 3:
            crash(tmp_path / str(step // 7), tmp_path / str(step // 7 + 1))
            hurt.sweep()
            hurt.close()
            hurt = opened(tmp_path / str(step // 7 + 1))
            [at] = hurt.watermarks()["s"].watermarks
            for lost in range(at, step + 1):
                play(hurt, lost)
    for store in (calm, hurt):
        store.sweep()
    assert state(hurt)["rows"] == state(calm)["rows"]
    assert hurt.stats().tables["items"].rows == calm.stats().tables["items"].rows
    calm.close()
    hurt.close()


# -- over followers


@contextmanager
def followed(*tables: es.TableSpec, embeddings_only: bool = True) -> Iterator[tuple[LocalStore, FollowerStore]]:
    with opened(None, *tables) as store:
        leader = Leader(store)
        follower = FollowerStore([leader.address], sync_interval_ms=20, embeddings_only=embeddings_only)
        try:
            follower.wait_synced(TIMEOUT_S)
            yield store, follower
        finally:
            follower.close()
            leader.stop()


@pytest.mark.parametrize("embeddings_only", [True, False])
def test_a_follower_loses_what_expired_and_what_was_evicted(embeddings_only: bool) -> None:
    with followed(BRIEF, replace(SMALL, name="small"), embeddings_only=embeddings_only) as (store, follower):
        push(store, IDS, NOW_MS - 2 * DAY_MS)
        store.push({"small": (np.arange(1000), np.ones((1000, 2), np.float32))}, event_time_ms=NOW_MS)
        assert follower.wait_until(lambda: follower.stats().tables["items"].rows == 200, TIMEOUT_S)
        push(store, IDS[:20], NOW_MS)
        store.sweep()

        def same() -> bool:
            return all(len(follower.table(name)) == len(store.table(name)) for name in ("items", "small"))

        assert follower.wait_until(same, TIMEOUT_S)
        for name, ids in (("items", IDS), ("small", np.arange(1000))):
            np.testing.assert_array_equal(follower.contains(name, ids), store.contains(name, ids))
        assert len(store.table("items")) == 20
        assert len(store.table("small")) == 24 * CHUNKS, "an eviction leaves room for some more"


def test_a_follower_misses_an_expired_row_before_any_sweep() -> None:
    old, new = [key for key in range(100) if chunk_of(key, CHUNKS) == 0][:2]
    with followed(replace(BRIEF, ttl_s=None)) as (store, follower):
        push(store, np.array([old]), NOW_MS - 2 * DAY_MS)
        push(store, np.array([new]), NOW_MS)
        assert follower.wait_until(lambda: bool(follower.contains("items", [old, new]).all()), TIMEOUT_S)
        store.alter_table(BRIEF)
        assert follower.wait_until(lambda: follower.tables()["items"] == BRIEF, TIMEOUT_S)
        assert follower.contains("items", [old, new]).tolist() == [False, True]
        assert len(follower.table("items")) == 2, "nobody has swept"


# -- with many threads


def test_a_capacity_is_kept_while_many_threads_push() -> None:
    with opened(None, SMALL) as store:
        stop = threading.Event()
        largest = 0

        def write(seed: int) -> None:
            random = np.random.default_rng(seed)
            for step in range(60):
                push(store, random.integers(0, 1 << 40, 500).astype(np.uint64), NOW_MS + step)

        def watch() -> None:
            nonlocal largest
            while not stop.is_set():
                largest = max(largest, store.stats().tables["items"].rows)
                store.sweep(budget_ms=1.0)

        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
        watcher = threading.Thread(target=watch)
        for thread in (*writers, watcher):
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        watcher.join()
        stats = store.stats().tables["items"]
        assert 0 < largest <= 25 * CHUNKS
        assert stats.inserted_rows - stats.evicted_rows == stats.rows <= 25 * CHUNKS
