"""A directory holds a store: what is found after a stop, after a crash, and what the files cost."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    COUNTED,
    STREAM,
    blobs,
    counts,
    crash,
    expected_counts,
    ones,
    push_events,
    replay,
    segments,
    state,
    table_manifest,
)

import embedstore as es
from embedstore import checkpoint as checkpoint_module
from embedstore.manifest import Manifest
from embedstore.recovery import Recovery
from embedstore.segments import Blob
from embedstore.store import LocalStore
from embedstore.table import delta_info

NOW_MS = 1_700_000_000_000


def open_store(path: Path, *tables: es.TableSpec, **options: Any) -> LocalStore:
    return LocalStore(path, tables or [COUNTED], clock_ms=lambda: NOW_MS, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_a_restart_finds_everything_again(path: Path) -> None:
    specs = [
        es.TableSpec("sgd", dim=3, optimizer=es.SGD(lr=0.1), num_chunks=4),
        es.TableSpec("adagrad", dim=5, optimizer=es.Adagrad(lr=0.1), init=es.Uniform(0.1, seed=3), on_miss="init"),
        es.TableSpec("adam", dim=2, optimizer=es.Adam(lr=0.1), num_chunks=1),
    ]
    rng = np.random.default_rng(11)
    with open_store(path, *specs) as store:
        store.open_stream(STREAM, 7)
        for step in range(5):
            tables = {
                spec.name: (rng.integers(0, 2**64, 200, np.uint64), rng.normal(size=(200, spec.dim))) for spec in specs
            }
            store.push(tables, origins=[es.Origin(STREAM, 7 + step, 8 + step)], event_time_ms=NOW_MS - 1000 * step)
        store.delete("sgd", next(store.scan("sgd"))[0][:3])
        store.put_dense("model", {"w": rng.normal(size=(3, 4)), "n": np.array(5)}, {STREAM: 12})
        before = state(store)
        dense = store.get_dense("model")
    with open_store(path) as store:
        assert state(store) == {
            **before,
            "specs": {**before["specs"], "items": COUNTED},
            "rows": {**before["rows"], "items": {}},
            "streams": {STREAM: es.StreamState(12, 12, (12,), 1)},
        }
        again = store.get_dense("model")
        assert (again.position, again.version) == (dense.position, dense.version)
        np.testing.assert_array_equal(again.tensors["w"], dense.tensors["w"])
        assert store.stats().corrupt_chunks == 0


def test_a_crash_leaves_the_last_checkpoint_and_a_replay_brings_it_level(path: Path, tmp_path: Path) -> None:
    with open_store(path) as store:
        store.open_stream(STREAM, 0)
        push_events(store, 0, 150)
        store.checkpoint()
        saved = state(store)
        push_events(store, 150, 400)
        left = crash(path, tmp_path / "crash")
    with open_store(left) as store:
        assert state(store) == saved
        with pytest.raises(es.GapError) as caught:
            push_events(store, 400, 401)
        assert caught.value.watermarks == {STREAM: [150]}
        replay(store, 400)
        np.testing.assert_array_equal(counts(store), expected_counts(400))


def test_a_recovery_tells_how_far_it_is_and_can_be_ended(path: Path) -> None:
    with open_store(path) as store:
        store.open_stream(STREAM, 0)
        push_events(store, 0, 200)
        saved = state(store)
    told: list[Recovery] = []

    def end(recovery: Recovery) -> None:
        told.append(recovery)
        if recovery.chunks == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        open_store(path, progress=end)
    assert [recovery.chunks for recovery in told] == [0, 1, 2, 3]
    told.clear()
    with open_store(path, progress=told.append) as store:
        assert state(store)["rows"] == saved["rows"]
    assert told[-1] == Recovery("items", 8, 8, 100)
    assert told[0] == Recovery("items", 0, 8, 0)


def test_streams_tables_and_dense_sets_are_durable_when_answered(path: Path, tmp_path: Path) -> None:
    with open_store(path) as store:
        store.open_stream(STREAM, 3)
        store.open_stream(STREAM, 9)
        store.create_table(es.TableSpec("late", dim=2, optimizer=es.SGD(lr=1.0), num_chunks=2))
        store.create_table(es.TableSpec("gone", dim=2, num_chunks=2))
        store.drop_table("gone")
        store.alter_table(es.TableSpec("late", dim=2, optimizer=es.SGD(lr=0.5), num_chunks=2))
        store.put_dense("model", {"w": np.ones(3)}, {STREAM: 3})
        store.put_dense("model", {"w": np.zeros(3)}, {STREAM: 4})
        left = crash(path, tmp_path / "crash")
    with LocalStore(left) as store:
        assert store.watermarks() == {STREAM: es.StreamState(3, 3, (3,), 2)}
        assert set(store.tables()) == {"items", "late"}
        assert store.tables()["late"].optimizer == es.SGD(lr=0.5)
        assert store.get_dense("model").version == 2
        assert not store.get_dense("model").tensors["w"].any()
        with pytest.raises(es.StaleDenseSetError):
            store.put_dense("model", {"w": np.ones(3)}, {STREAM: 3})


def test_a_table_made_in_mid_stream_starts_there_after_a_crash_too(path: Path, tmp_path: Path) -> None:
    with open_store(path) as store:
        store.open_stream(STREAM, 0)
        push_events(store, 0, 50)
        store.checkpoint()
        push_events(store, 50, 80)
        store.create_table(es.TableSpec("late", dim=4, optimizer=es.SGD(lr=1.0), num_chunks=8))
        left = crash(path, tmp_path / "crash")
    with open_store(left) as store:
        assert store.watermarks()[STREAM].watermarks == (50, 80)
        ids = np.arange(50, 80, dtype=np.uint64)
        store.push({"items": (ids, ones(30)), "late": (ids, ones(30))}, origins=[es.Origin(STREAM, 50, 80)])
        assert store.stats().tables["late"].rows == 0
        np.testing.assert_array_equal(counts(store), expected_counts(80))


def test_a_checkpoint_writes_one_blob_for_each_dirty_chunk(path: Path) -> None:
    with open_store(path) as store:
        store.push({"items": (np.arange(100, dtype=np.uint64), ones(100))})
        assert store.checkpoint().chunks_written == 8
        assert store.checkpoint().chunks_written == 0
        store.push({"items": ([5, 5], ones(2))})
        result = store.checkpoint()
        assert (result.chunks_written, len(segments(path))) == (1, 2)
        assert 0 < result.bytes_written < 1000
    lengths = sorted(len(refs) for refs in blobs(path).values())
    assert lengths == [1] * 7 + [2]


def test_an_idle_chunk_holds_no_stream_back(path: Path, tmp_path: Path) -> None:
    with open_store(path) as store:
        store.open_stream(STREAM, 0)
        store.push({"items": ([5], ones(1))}, origins=[es.Origin(STREAM, 0, 10)])
        store.checkpoint()
        store.push({"items": ([5], ones(1))}, origins=[es.Origin(STREAM, 10, 20)])
        store.push({}, origins=[es.Origin(STREAM, 20, 30)])
        assert store.checkpoint().chunks_written == 1
        assert store.watermarks()[STREAM].durable == 30
        left = crash(path, tmp_path / "crash")
    with open_store(left) as store:
        assert store.watermarks()[STREAM] == es.StreamState(30, 30, (30,), 1)


def test_the_clock_of_an_idle_chunk_comes_back(path: Path) -> None:
    with open_store(path) as store:
        store.push({"items": (np.arange(100, dtype=np.uint64), ones(100))}, event_time_ms=NOW_MS - 5000)
        before = store.table("items").chunk_states().clocks_ms
    with open_store(path) as store:
        np.testing.assert_array_equal(store.table("items").chunk_states().clocks_ms, before)
        assert (before == NOW_MS - 5000).all()


def test_deleted_rows_stay_deleted(path: Path) -> None:
    with open_store(path) as store:
        store.push({"items": (np.arange(100, dtype=np.uint64), ones(100))})
        store.checkpoint()
        assert store.delete("items", np.arange(0, 100, 2)) == 50
    with open_store(path) as store:
        assert store.contains("items", np.arange(100)).tolist() == [False, True] * 50


def test_deltas_are_folded_before_they_outgrow_their_base(path: Path) -> None:
    with open_store(path) as store:
        store.open_stream(STREAM, 0)
        store.push({"items": (np.arange(20_000, dtype=np.uint64), ones(20_000))})
        store.checkpoint()
        base = sum(file.stat().st_size for file in segments(path))
        for step in range(80):
            store.push(
                {"items": (np.arange(500, dtype=np.uint64), ones(500))}, origins=[es.Origin(STREAM, step, step + 1)]
            )
            store.checkpoint()
        # Bases and no more deltas than a base is long, or than 64 KiB in each of the 8 chunks.
        assert sum(file.stat().st_size for file in segments(path)) < 3 * base + 8 * (64 << 10)
    assert max(len(refs) for refs in blobs(path).values()) <= checkpoint_module.DELTAS_MAX + 1
    with open_store(path) as store:
        assert (counts(store, 500) == 81).all()
        assert store.watermarks()[STREAM].durable == 80


def test_segments_that_hold_little_are_emptied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "GARBAGE_BYTES_MIN", 0)
    monkeypatch.setattr(checkpoint_module, "SMALL_BASE_BYTES", 0)
    with open_store(path) as store:
        for step in range(30):
            # Every checkpoint rewrites one chunk's worth of ids, so that old segments keep only a part of their blobs.
            ids = np.arange(1000, dtype=np.uint64) + np.uint64(1000 * (step % 3))
            store.push({"items": (ids, ones(1000))})
            store.checkpoint()
        live = sum(blob.length for refs in store_blobs(store).values() for blob in refs)
        assert sum(file.stat().st_size for file in segments(path)) <= 4 * live
    with open_store(path) as store:
        assert (counts(store, 3000) == 10).all()


def store_blobs(store: LocalStore) -> dict[int, tuple[Blob, ...]]:
    assert store._disk is not None
    return {record.chunk: record.blobs for record in store._disk._records["items"].chunks}


def test_segments_nobody_needs_are_deleted(path: Path) -> None:
    with open_store(path) as store:
        push_all = {"items": (np.arange(100, dtype=np.uint64), ones(100))}
        store.push(push_all)
        store.checkpoint()
        store.drop_table("items")
        store.create_table(COUNTED)
        store.push(push_all)
        store.checkpoint()
        assert len(segments(path)) == 1
    orphan = path / "segments" / f"{999:016d}.seg"
    orphan.write_bytes(b"left by a checkpoint that did not finish")
    with open_store(path) as store:
        assert not orphan.exists()
        assert (counts(store) == 1).all()
        store.push(push_all)
    with open_store(path) as store:
        assert (counts(store) == 2).all()


def test_checkpoints_run_beside_pushes_and_each_other(path: Path, tmp_path: Path) -> None:
    num_events, failures = 3000, []
    store = open_store(path)
    store.open_stream(STREAM, 0)
    done = threading.Event()

    def keep_checkpointing() -> None:
        try:
            while not done.is_set():
                store.checkpoint()
        except Exception as problem:
            failures.append(problem)

    threads = [threading.Thread(target=keep_checkpointing) for _ in range(2)]
    for thread in threads:
        thread.start()
    for begin in range(0, num_events, 10):
        push_events(store, begin, begin + 10)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    left = crash(path, tmp_path / "crash")
    store.close()
    with open_store(left) as store:
        replay(store, num_events)
        np.testing.assert_array_equal(counts(store), expected_counts(num_events))


def test_a_store_without_tables_keeps_its_streams(path: Path) -> None:
    with LocalStore(path) as store:
        store.open_stream(STREAM, 5)
        store.push({}, origins=[es.Origin(STREAM, 5, 25)])
    with LocalStore(path) as store:
        assert store.watermarks() == {STREAM: es.StreamState(25, 25, (25,), 1)}
        store.create_table(COUNTED)
        store.push({"items": ([1], ones(1))}, origins=[es.Origin(STREAM, 25, 26)])
        store.drop_table("items")
    with LocalStore(path) as store:
        assert store.watermarks()[STREAM].applied == 26


def test_the_learning_rate_may_differ_at_open_and_nothing_else(path: Path) -> None:
    open_store(path).close()
    faster = es.TableSpec("items", dim=4, optimizer=es.SGD(lr=2.0), num_chunks=8)
    with open_store(path, faster) as store:
        assert store.tables() == {"items": faster}
    with LocalStore(path) as store:
        assert store.tables() == {"items": faster}
    with pytest.raises(es.TableExistsError) as caught:
        open_store(path, es.TableSpec("items", dim=8, optimizer=es.SGD(lr=2.0), num_chunks=8))
    assert str(caught.value) == "table 'items' exists with dim 4, not 8"
    open_store(path).close()


def test_what_is_no_table_spec_is_refused(path: Path) -> None:
    bad: Any
    for bad in ([5], COUNTED, ["items"], iter([COUNTED])):
        with pytest.raises(es.InvalidArgumentError) as caught:
            LocalStore(path, bad)
        assert caught.value.field == "tables"
    with LocalStore(path) as store:
        for call in (store.create_table, store.alter_table):
            with pytest.raises(es.InvalidArgumentError) as caught:
                call("items")  # type: ignore[arg-type]
            assert caught.value.field == "spec"
        with pytest.raises(es.InvalidArgumentError, match="bytes_max"):
            store.create_table(es.TableSpec("items", dim=4, bytes_max=3000))
        assert not store.tables()


def test_new_histories_name_their_parents(path: Path) -> None:
    with open_store(path) as store:
        store.push({"items": (np.arange(100, dtype=np.uint64), ones(100))})
        store.checkpoint()
        first = store.table("items").chunk_states()
    with open_store(path) as store:
        table = store.table("items")
        second = table.chunk_states()
        assert not set(first.incarnations.tolist()) & set(second.incarnations.tolist())
        np.testing.assert_array_equal(first.versions, second.versions)
        store.push({"items": (np.arange(100, dtype=np.uint64), ones(100))})
        for chunk, incarnation, version in zip(table.chunks, first.incarnations, first.versions, strict=True):
            info = delta_info(table.delta(chunk, int(incarnation), int(version)))
            assert (info.parent_incarnation, info.full) == (int(incarnation), False)


def test_the_manifest_says_which_shard_it_is(path: Path) -> None:
    open_store(path, shard=1, num_shards=2).close()
    assert [entry.cursor.chunk for entry in table_manifest(path).chunks] == [4, 5, 6, 7]
    for shard, num_shards, field in ((0, 2, "shard"), (0, 1, "num_shards"), (1, 3, "num_shards")):
        with pytest.raises(es.InvalidArgumentError) as caught:
            LocalStore(path, shard=shard, num_shards=num_shards)
        assert caught.value.field == field
    for shard, num_shards in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(es.InvalidArgumentError):
            LocalStore(None, shard=shard, num_shards=num_shards)
    with open_store(path, shard=1, num_shards=2) as store, pytest.raises(es.InvalidArgumentError) as caught:
        store.create_table(es.TableSpec("small", dim=2, num_chunks=1))
    assert caught.value.field == "TableSpec.num_chunks"


def test_a_shard_refuses_ids_of_another(tmp_path: Path) -> None:
    shards = [open_store(tmp_path / f"{i}", shard=i, num_shards=2) for i in range(2)]
    ids = np.arange(200, dtype=np.uint64)
    owners = np.zeros(200, np.int64)
    for key in ids:
        for number, store in enumerate(shards):
            try:
                store.push({"items": ([key], ones(1))})
            except es.WrongShardError:
                continue
            owners[key] += 1 + number
    assert set(owners.tolist()) == {1, 2}
    for store in shards:
        store.close()


def test_files_are_synced_before_the_manifest_names_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    real_sync, order = os.fsync, []

    def sync(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        real_sync(handle)

    with open_store(path) as store:
        push = {"items": (np.arange(100, dtype=np.uint64), ones(100))}
        store.push(push)
        assert store._disk is not None
        manifest = store._disk._manifest
        real_write = manifest.write

        def write(*arguments: Any) -> None:
            order.append({file.stat().st_ino for file in segments(path)} <= synced)
            order.append((path / "segments").stat().st_ino in synced)
            real_write(*arguments)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(manifest, "write", write)
        store.checkpoint()
        assert order == [True, True]


@pytest.mark.parametrize("path", ["", "\0", 5])
def test_a_path_that_names_no_directory_is_refused(path: Any) -> None:
    with pytest.raises(es.InvalidArgumentError) as caught:
        es.open(path)
    assert caught.value.field == "path"


def kept_numbers(path: Path) -> list[int]:
    manifest = Manifest(path / "manifest")
    try:
        return [kept.number for kept in manifest.read().kept]
    finally:
        manifest.close()


def test_the_last_checkpoints_stay_and_so_do_their_segments(path: Path, tmp_path: Path) -> None:
    everything = {"items": (np.arange(100, dtype=np.uint64), ones(100))}
    with open_store(path, keep_checkpoints=3) as store:
        for _ in range(6):
            # Each is a whole base, so that a segment is garbage as soon as no checkpoint needs it.
            store.drop_table("items")
            store.create_table(COUNTED)
            store.push(everything)
            store.checkpoint()
        store.checkpoint()
        assert len(segments(path)) == 3
        left = crash(path, tmp_path / "crash")
    assert kept_numbers(left) == [4, 5, 6]
    with open_store(left) as store:
        assert len(segments(left)) == 3
        store.push(everything)
        store.checkpoint()
        assert len(segments(left)) == 2
    assert kept_numbers(left) == []


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, 1 << 20])
def test_what_cannot_be_kept_is_refused(path: Path, keep: Any) -> None:
    with pytest.raises(es.InvalidArgumentError) as caught:
        open_store(path, keep_checkpoints=keep)
    assert caught.value.field == "keep_checkpoints"


def test_with_sync_durability_an_update_without_origin_is_durable_when_answered(path: Path, tmp_path: Path) -> None:
    ids = np.arange(100, dtype=np.uint64)
    with open_store(path, durability="sync") as store:
        calls: list[tuple[Callable[[], object], int]] = [
            (lambda: store.push({"items": (ids, ones(100))}), 100),
            (lambda: store.assign("items", ids + np.uint64(1000), ones(100)), 200),
            (lambda: store.delete("items", ids[:30]), 170),
            (lambda: store.push({"items": (ids[:30], ones(30))}, origins=[es.Origin("client/1", 0, 1)]), 200),
        ]
        for number, (call, expected) in enumerate(calls):
            call()
            with LocalStore(crash(path, tmp_path / f"{number}")) as left:
                assert left.stats().tables["items"].rows == expected
                assert left.watermarks() == {}
        store.open_stream(STREAM, 0)
        before = store.last_checkpoint_number()
        push_events(store, 0, 10)
        assert store.last_checkpoint_number() == before


def test_one_checkpoint_serves_all_who_wait(path: Path) -> None:
    ids = np.arange(100, dtype=np.uint64)
    num_threads, num_pushes = 8, 10
    with open_store(path, durability="sync") as store:

        def work(_: int) -> None:
            for _ in range(num_pushes):
                store.push({"items": (ids, ones(100))})

        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(work, range(num_threads)))
        assert store.last_checkpoint_number() < num_threads * num_pushes
        assert (counts(store) == num_threads * num_pushes).all()


def test_sync_durability_needs_a_directory_and_its_name_is_checked(path: Path) -> None:
    for directory, durability in ((None, "sync"), (path, "always"), (path, None)):
        with pytest.raises(es.InvalidArgumentError) as caught:
            LocalStore(directory, durability=durability)  # type: ignore[arg-type]
        assert caught.value.field == "durability"


def test_changes_since_the_last_checkpoint_are_counted(path: Path) -> None:
    ids = np.arange(100, dtype=np.uint64)
    with open_store(path) as store:
        assert store.changed_bytes() == 0
        store.push({"items": (ids, ones(100))})
        store.assign("items", ids, ones(100))
        assert store.changed_bytes() == 200 * (28 + 4 * 4)
        store.checkpoint()
        assert store.changed_bytes() == 0
