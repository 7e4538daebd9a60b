"""Damaged, missing and unwritable files; two processes in one directory; kills in the middle of a checkpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    COUNTED,
    STREAM,
    blob_path,
    blobs,
    chunks_of,
    counts,
    crash,
    damage,
    expected_counts,
    file_size_limit,
    ones,
    push_events,
    replay,
    segments,
    state,
)

import embedstore as es
from embedstore import segments as segments_module
from embedstore.store import LocalStore

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store: one base a chunk at 100, one delta a chunk at 200, all of STREAM, which began at 0."""
    with LocalStore(tmp_path / "store", [COUNTED]) as store:
        store.open_stream(STREAM, 0)
        push_events(store, 0, 100)
        store.checkpoint()
        push_events(store, 100, 200)
    assert {len(refs) for refs in blobs(tmp_path / "store").values()} == {2}
    return tmp_path / "store"


# -- corrupt blobs


@pytest.mark.parametrize(("which", "stands_at"), [(1, 100), (0, 0)])
def test_a_corrupt_blob_takes_back_its_own_chunk_only(
    path: Path, which: int, stands_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, refs = list(blobs(path).items())[3]
    damage(path, refs[which])
    with LocalStore(path) as store:
        assert store.stats().corrupt_chunks == 1
        assert f"chunk {chunk} falls back" in caplog.text
        assert store.watermarks()[STREAM] == es.StreamState(stands_at, stands_at, (stands_at, 200), 1)
        known = {
            chunk: next(w[STREAM] for w, c in store.table("items").watermarks() if chunk in c)
            for chunk in store.table("items").chunks
        }
        assert known == {other: stands_at if other == chunk else 200 for other in range(8)}
        replay(store, 200)
        np.testing.assert_array_equal(counts(store), expected_counts(200))
        assert store.watermarks()[STREAM].watermarks == (200,)
    with LocalStore(path) as store:
        assert store.stats().corrupt_chunks == 0
        np.testing.assert_array_equal(counts(store), expected_counts(200))


def test_nothing_corrupt_is_ever_served(path: Path) -> None:
    with LocalStore(path) as store:
        ids = dict(chunks_of(store))
    for refs in blobs(path).values():
        damage(path, refs[0])
    with LocalStore(path) as store:
        assert store.stats().corrupt_chunks == 8
        assert store.stats().tables["items"].rows == 0
        assert store.watermarks()[STREAM].watermarks == (0,)
        assert sum(len(keys) for keys in ids.values()) == 100
        replay(store, 200)
        np.testing.assert_array_equal(counts(store), expected_counts(200))


@pytest.mark.parametrize("at", [0, 5, 20, 60, 100, -1])
def test_damage_anywhere_in_a_blob_is_found(path: Path, at: int) -> None:
    refs = blobs(path)[2]
    damage(path, refs[1], at=at % refs[1].length)
    with LocalStore(path) as store:
        assert store.stats().corrupt_chunks == 1
        assert store.watermarks()[STREAM].watermarks == (100, 200)


def test_a_missing_or_torn_segment_takes_back_the_chunks_in_it(path: Path, tmp_path: Path) -> None:
    newest = segments(path)[-1]
    kept = newest.read_bytes()
    newest.unlink()
    torn = crash(path, tmp_path / "torn")
    (torn / "segments" / newest.name).write_bytes(kept[: len(kept) // 2])
    other = crash(path, tmp_path / "other")
    (other / "segments" / newest.name).write_bytes(b"not a segment" + kept[13:])
    for damaged, corrupt in ((path, 8), (torn, None), (other, 8)):
        with LocalStore(damaged) as store:
            assert corrupt in (None, store.stats().corrupt_chunks)
            assert 0 < store.stats().corrupt_chunks <= 8
            assert store.watermarks()[STREAM].applied == 100
            replay(store, 200)
            np.testing.assert_array_equal(counts(store), expected_counts(200))


def test_a_fallen_back_chunk_survives_another_crash(path: Path, tmp_path: Path) -> None:
    damage(path, blobs(path)[1][1])
    with LocalStore(path) as store:
        before = state(store)
        left = crash(path, tmp_path / "crash")
    with LocalStore(left) as store:
        assert state(store)["rows"] == before["rows"]
        replay(store, 200)
        store.checkpoint()
        left = crash(left, tmp_path / "again")
    with LocalStore(left) as store:
        assert store.stats().corrupt_chunks == 0
        np.testing.assert_array_equal(counts(store), expected_counts(200))


def test_a_chunk_falls_back_to_where_its_table_began(tmp_path: Path) -> None:
    late = es.TableSpec("late", dim=4, optimizer=es.SGD(lr=1.0), num_chunks=8)
    with LocalStore(tmp_path / "store", [COUNTED]) as store:
        store.open_stream(STREAM, 0)
        push_events(store, 0, 60)
        store.create_table(late)
        store.open_stream("file/other/0", 7)
        ids = np.arange(100, dtype=np.uint64)
        store.push({"late": (ids, ones(100))}, origins=[es.Origin(STREAM, 60, 160), es.Origin("file/other/0", 7, 9)])
    damage(tmp_path / "store", blobs(tmp_path / "store", "late")[5][0])
    with LocalStore(tmp_path / "store") as store:
        assert store.watermarks()[STREAM].watermarks == (60, 160)
        assert store.watermarks()["file/other/0"].watermarks == (7, 9)


# -- two owners


SECOND_OWNER = """
import embedstore as es
try:
    es.open({path!r})
except es.StoreLockedError:
    print("locked")
"""


def test_a_directory_has_one_owner(path: Path) -> None:
    with LocalStore(path) as store:
        with pytest.raises(es.StoreLockedError):
            LocalStore(path)
        program = SECOND_OWNER.format(path=str(path))
        output = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
        assert output.stdout == "locked\n", output.stderr
        np.testing.assert_array_equal(counts(store), expected_counts(200))
    LocalStore(path).close()


# -- what cannot be written


@pytest.mark.parametrize("part_bytes", [segments_module.PART_BYTES, 10_000])
def test_a_checkpoint_that_does_not_fit_changes_nothing(
    path: Path, tmp_path: Path, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "PART_BYTES", part_bytes)
    with LocalStore(path) as store:
        saved = state(store)
        store.push({"items": (np.arange(100, 20_000, dtype=np.uint64), ones(19_900))})
        push_events(store, 200, 300)
        with file_size_limit(100_000), pytest.raises(es.CheckpointFailedError):
            store.checkpoint()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("segment-writer")]
        np.testing.assert_array_equal(counts(store), expected_counts(300))
        assert store.watermarks()[STREAM].durable == 200
        left = crash(path, tmp_path / "crash")
        push_events(store, 300, 400)
        store.checkpoint()
        assert store.watermarks()[STREAM].durable == 400
        later = crash(path, tmp_path / "later")
    with LocalStore(left) as store:
        assert state(store)["rows"] == saved["rows"]
        assert store.watermarks()[STREAM].applied == 200
    with LocalStore(later) as store:
        np.testing.assert_array_equal(counts(store), expected_counts(400))


def test_a_manifest_that_cannot_be_written_changes_nothing(path: Path, tmp_path: Path) -> None:
    with LocalStore(path) as store:
        store.put_dense("model", {"w": np.ones(1000)}, {STREAM: 100})
        with file_size_limit(1_000_000):
            with pytest.raises(es.CheckpointFailedError):
                store.put_dense("model", {"w": np.zeros(1_000_000)}, {STREAM: 200})
            assert store.get_dense("model").tensors["w"].shape == (1000,)
        assert store.put_dense("model", {"w": np.zeros(1_000_000)}, {STREAM: 200}) == 2
        push_events(store, 200, 300)
        store.checkpoint()
        left = crash(path, tmp_path / "crash")
    with LocalStore(left) as store:
        assert store.get_dense("model").tensors["w"].shape == (1_000_000,)
        np.testing.assert_array_equal(counts(store), expected_counts(300))


def test_no_room_at_all_fails_every_durable_call_and_loses_nothing(path: Path, tmp_path: Path) -> None:
    with LocalStore(path) as store:
        push_events(store, 200, 300)
        with file_size_limit(0):
            for call in (
                store.checkpoint,
                store.close,
                lambda: store.open_stream("file/new/0", 0),
                lambda: store.create_table(es.TableSpec("new", dim=2, num_chunks=2)),
                lambda: store.drop_table("items"),
                lambda: store.alter_table(es.TableSpec("items", dim=4, optimizer=es.SGD(lr=9.0), num_chunks=8)),
            ):
                with pytest.raises(es.CheckpointFailedError):
                    call()
            push_events(store, 300, 400)
        assert set(store.tables()) == {"items"}
        assert store.tables()["items"] == COUNTED
        assert set(store.watermarks()) == {STREAM}
        np.testing.assert_array_equal(counts(store), expected_counts(400))
        store.checkpoint()
        left = crash(path, tmp_path / "crash")
    with LocalStore(left) as store:
        np.testing.assert_array_equal(counts(store), expected_counts(400))
        assert store.tables() == {"items": COUNTED}


def test_a_directory_that_went_away_fails_the_checkpoint_only(path: Path) -> None:
    with LocalStore(path) as store:
        push_events(store, 200, 300)
        (path / "segments").rename(path / "away")
        with pytest.raises(es.CheckpointFailedError) as caught:
            store.checkpoint()
        assert "segments" in caught.value.path
        (path / "away").rename(path / "segments")
        store.checkpoint()
    with LocalStore(path) as store:
        np.testing.assert_array_equal(counts(store), expected_counts(300))


# -- kills

WRITER = """
import sys, threading
sys.path.insert(0, {tests!r})
from checkpoints import COUNTED, STREAM, push_events
from embedstore.store import LocalStore

store = LocalStore({path!r}, [COUNTED])
at = store.open_stream(STREAM, 0).applied

def keep():
    while True:
        store.checkpoint()

from checkpoints import replay
replay(store, {end})
threading.Thread(target=keep, daemon=True).start()
at = {end}
print("ready", flush=True)
while True:
    push_events(store, at, at + 7)
    at += 7
    print(at, flush=True)
"""


def test_kills_in_the_middle_of_checkpoints_lose_nothing_that_was_durable(tmp_path: Path) -> None:
    path, end = tmp_path / "store", 0
    for pushes in (3, 40, 150, 10, 80):
        program = WRITER.format(tests=str(TESTS), path=str(path), end=end)
        writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        for _ in range(pushes):
            end = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split("\n")
        writer.wait(timeout=60)
        end = max([end, *(int(line) for line in rest[:-1])])
    with LocalStore(path) as store:
        assert store.stats().corrupt_chunks == 0
        applied = store.watermarks()[STREAM].watermarks
        assert all(0 <= at <= end + 7 for at in applied)
        replay(store, max(end, *applied))
        np.testing.assert_array_equal(counts(store), expected_counts(max(end, *applied)))


def test_blobs_lie_where_the_format_says(path: Path) -> None:
    for refs in blobs(path).values():
        for ref in refs:
            content = blob_path(path, ref).read_bytes()
            assert content[:8] == b"ESSEGMNT"
            assert content[ref.offset : ref.offset + 4] == b"ESCD"
            assert ref.offset + ref.length <= len(content)
