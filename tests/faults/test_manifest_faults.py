"""Damaged manifests, and those of another format: refused by name, and left as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import COUNTED, STREAM, counts, crash, expected_counts, push_events, segments

import embedstore as es
from embedstore.manifest import LAST_WRITE_NAME, STORE_KEY, Manifest
from embedstore.snapshot import read_directory
from embedstore.store import LocalStore
from embedstore.v1 import manifest_pb2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store of two checkpoints with the events below 200."""
    with LocalStore(tmp_path / "store", [COUNTED]) as store:
        store.open_stream(STREAM, 0)
        push_events(store, 0, 100)
        store.checkpoint()
        push_events(store, 100, 200)
    return tmp_path / "store"


def manifest_files(path: Path, pattern: str) -> list[Path]:
    return [file for file in (path / "manifest").glob(pattern) if file.stat().st_size]


@pytest.mark.parametrize("pattern", ["MANIFEST-*", "CURRENT", "*.sst"])
def test_a_corrupt_manifest_is_refused_and_nothing_is_deleted(path: Path, pattern: str) -> None:
    files = manifest_files(path, pattern)
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 0x55
        file.write_bytes(bytes(content))
    before = [file.name for file in segments(path)]
    with pytest.raises(es.CorruptCheckpointError):
        LocalStore(path)
    assert [file.name for file in segments(path)] == before


def test_a_manifest_damaged_before_its_last_write_is_refused(path: Path, tmp_path: Path) -> None:
    with LocalStore(path) as store:
        for number in range(5):
            store.open_stream(f"file/{number}/0", 0)
        left = crash(path, tmp_path / "crash")
    (log,) = manifest_files(left, "*.log")
    content = bytearray(log.read_bytes())
    content[len(content) // 3] ^= 0x55
    log.write_bytes(bytes(content))
    with pytest.raises(es.CorruptCheckpointError):
        LocalStore(left)


def test_a_manifest_that_lost_its_last_writes_is_refused_until_somebody_decides(path: Path, tmp_path: Path) -> None:
    """A log that was cut off looks like a write that a kill has cut off; but this one had been answered."""
    with LocalStore(path) as store:
        store.open_stream("file/new/0", 0)
        before_last = crash(path, tmp_path / "before-last")
        generation = store.open_stream(STREAM, 0).generation
        left = crash(path, tmp_path / "crash")
    (log,), (shorter,) = manifest_files(left, "*.log"), manifest_files(before_last, "*.log")
    whole = log.read_bytes()
    log.write_bytes(whole[: shorter.stat().st_size])
    names = [file.name for file in segments(left)]
    for look in (LocalStore, read_directory):
        with pytest.raises(es.CorruptCheckpointError, match="last writes are lost") as caught:
            look(left)
        assert caught.value.path == str(left / "manifest")
    assert [file.name for file in segments(left)] == names
    again = crash(left, tmp_path / "again")
    (again / "manifest" / log.name).write_bytes(whole)
    with LocalStore(again) as store:
        assert store.open_stream(STREAM, 0).generation == generation + 1
    (left / "manifest" / LAST_WRITE_NAME).unlink()
    with LocalStore(left) as store:
        assert store.open_stream(STREAM, 0).generation == generation
        np.testing.assert_array_equal(counts(store), expected_counts(200))


def test_segments_without_a_manifest_are_not_taken_for_an_empty_store(path: Path) -> None:
    for file in (path / "manifest").iterdir():
        file.unlink()
    with pytest.raises(es.CorruptCheckpointError, match="segments"):
        LocalStore(path)
    assert len(segments(path)) == 2


def test_a_directory_of_another_format_is_refused_and_left_as_it_was(path: Path) -> None:
    """What another release wrote must not look like damage, which heals by forgetting: deltas were of format 1 then."""
    manifest = Manifest(path / "manifest")
    store = manifest.read().store
    assert store is not None
    ours, other = store.SerializeToString(), manifest_pb2.StoreManifest()
    other.CopyFrom(store)
    other.format = 1
    manifest.write({STORE_KEY: other})
    manifest.close()
    before = {segment: segment.read_bytes() for segment in segments(path)}
    for _ in range(2):
        with pytest.raises(es.CorruptCheckpointError, match=r"is of format 1 .* release that wrote it") as caught:
            LocalStore(path)
        assert caught.value.path == str(path)
    assert {segment: segment.read_bytes() for segment in segments(path)} == before
    manifest = Manifest(path / "manifest")
    manifest.write({STORE_KEY: ours})
    manifest.close()
    with LocalStore(path) as opened:
        np.testing.assert_array_equal(counts(opened), expected_counts(200))


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(es.InvalidArgumentError) as caught:
            LocalStore(bad)
        assert caught.value.field == "path"
