"""Whatever one byte or one end of a store's files becomes: it is found and named, and no chunk serves it.

A damaged segment takes back the chunks whose blobs it hits, each to its last good blob with the watermark in it, and no
other chunk. A damaged manifest is refused as it is, or says what it said before.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from checkpoints import COUNTED, STREAM, blob_path, blobs, crash, push_events, replay
from delta_reader import read_delta
from hypothesis import example, given, settings
from hypothesis import strategies as st

import embedstore as es
from embedstore.export import export_store
from embedstore.manifest import MANIFEST_NAME
from embedstore.placement import chunks_of_ids
from embedstore.snapshot import read_directory, verify
from embedstore.store import LocalStore

END = 60
NUM_IDS = 20
HEADER_BYTES = 16
CHUNKS = chunks_of_ids(np.arange(NUM_IDS, dtype=np.uint64), COUNTED.num_chunks)

Place = tuple[str, int]


@dataclass(frozen=True)
class Damage:
    """One byte of a file changed, or, where ``flip`` is 0, all from there on lost. ``at``: of the file's length."""

    at: float
    flip: int

    def of(self, content: bytes) -> tuple[bytes, int]:
        """The damaged content, and the first place that is not as it was."""
        place = min(int(self.at * len(content)), len(content) - 1)
        if self.flip:
            return content[:place] + bytes([content[place] ^ self.flip]) + content[place + 1 :], place
        return content[:place], place

    def hits(self, place: int, begin: int, end: int) -> bool:
        """Whether bytes [begin, end) are not what they were."""
        return begin <= place < end if self.flip else place < end


DAMAGES = st.builds(
    Damage,
    at=st.floats(0, 1, exclude_max=True),
    flip=st.one_of(st.just(0), st.sampled_from([1, 0x80]), st.integers(1, 255)),
)


@pytest.fixture(scope="module", params=["closed", "killed"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of several lives: bases and deltas in several segments, two checkpoints kept, streams, dense sets. A kill
    leaves what its manifest was given last in a log."""
    path = tmp_path_factory.mktemp("laws") / "store"
    at = 0
    for life in range(3):
        with LocalStore(path, [COUNTED], keep_checkpoints=2) as store:
            store.open_stream(STREAM, 0)
            store.open_stream(f"file/{life}/0", life)
            store.put_dense("model", {"w": np.full(50, life)}, {STREAM: at})
            for step in (7, 2, 11):
                push_events(store, at, at + step, NUM_IDS)
                at += step
                store.checkpoint()
            killed = crash(path, path.parent / "killed")
    assert at == END
    assert {0, 3, 9} <= {len(refs) for refs in blobs(path).values()}
    return path if request.param == "closed" else killed


@contextmanager
def copy_of(path: Path) -> Iterator[Path]:
    with TemporaryDirectory() as directory:
        yield Path(shutil.copytree(path, Path(directory) / "store"))


def expected_rows(chunk: int, end: int) -> dict[int, int]:
    """What a chunk has that took the events before ``end``."""
    numbers = np.bincount(np.arange(end) % NUM_IDS, minlength=NUM_IDS)
    return {key: int(numbers[key]) for key in np.flatnonzero((chunk == CHUNKS) & (numbers > 0)).tolist()}


def rows_of(store: LocalStore, chunk: int) -> dict[int, int]:
    ids, rows = store.table("items").scan_chunk(chunk)
    return {key: round(-float(row[0])) for key, row in zip(ids.tolist(), rows.embeddings, strict=True)}


def watermarks_of(store: LocalStore) -> dict[int, int]:
    return {chunk: known[STREAM] for known, chunks in store.table("items").watermarks() for chunk in chunks}


def check_rows(store: LocalStore) -> None:
    """Every chunk has exactly the events below its watermark."""
    for chunk, at in watermarks_of(store).items():
        assert rows_of(store, chunk) == expected_rows(chunk, at), (chunk, at)


@settings(max_examples=40, deadline=None)
@given(which=st.integers(0, 1 << 20), damage=DAMAGES)
@example(which=0, damage=Damage(0.0, 0))
@example(which=0, damage=Damage(0.0, 1))
def test_damage_to_a_segment_is_named_and_takes_back_the_chunks_that_it_hits(
    sound: Path, which: int, damage: Damage
) -> None:
    with copy_of(sound) as path:
        files = sorted((path / "segments").iterdir())
        file = files[which % len(files)]
        content, place = damage.of(file.read_bytes())
        file.write_bytes(content)
        bad, stands_at = after(path, file, damage, place)
        found = verify(path).bad
        assert {(each.file, each.offset) for each in found} >= {
            (str(file), ref.offset) for refs in bad.values() for ref in refs
        }
        assert {each.file for each in found} == {str(file)}
        if bad:
            with pytest.raises(es.CorruptCheckpointError) as caught:
                export_store([path], path.parent / "export")
            assert caught.value.path == str(file)
        with LocalStore(path, keep_checkpoints=2) as store:
            assert {each.chunk: each.offset for each in corrupt(store)} == {c: r[0].offset for c, r in bad.items()}
            assert all((each.table, each.file) == ("items", str(file)) for each in corrupt(store))
            assert watermarks_of(store) == stands_at
            check_rows(store)
            replay(store, END, NUM_IDS)
            check_rows(store)
            assert set(watermarks_of(store).values()) == {END}
        with LocalStore(path) as store:
            assert not corrupt(store)
            check_rows(store)
            assert set(watermarks_of(store).values()) == {END}
        assert not verify(path).bad


def after(path: Path, file: Path, damage: Damage, place: int) -> tuple[dict[int, list[Any]], dict[int, int]]:
    """By chunk: the blobs of the last checkpoint that the damage hits, and the watermark before the first of them."""
    bad, stands_at = {}, {}
    for chunk, refs in blobs(path).items():
        hit = [
            ref
            for ref in refs
            if blob_path(path, ref) == file
            and (damage.hits(place, 0, HEADER_BYTES) or damage.hits(place, ref.offset, ref.offset + ref.length))
        ]
        stands_at[chunk] = END
        if hit:
            bad[chunk] = hit
            before = refs[: refs.index(hit[0])]
            stands_at[chunk] = watermark_in(path, before[-1]) if before else 0
    return bad, stands_at


def watermark_in(path: Path, ref: Any) -> int:
    content = blob_path(path, ref).read_bytes()
    return read_delta(content[ref.offset : ref.offset + ref.length]).watermarks[STREAM]


def corrupt(store: LocalStore) -> list[Any]:
    assert store._disk is not None
    return store._disk.corrupt


def everything(path: Path) -> dict[str, Any]:
    """All that a store says of itself, and its rows; AssertionError for a row that nobody pushed."""
    with LocalStore(path, keep_checkpoints=2) as store:
        assert not corrupt(store)
        check_rows(store)
        dense = store.get_dense("model")
        return {
            "chunks": watermarks_of(store),
            "streams": store.open_streams(),
            "dense": (dense.tensors["w"].tolist(), dense.version, dict(dense.position)),
            "checkpoint": store.last_checkpoint_number(),
        }


@pytest.fixture(scope="module")
def expected(sound: Path) -> dict[str, Any]:
    with copy_of(sound) as path:
        return everything(path)


def manifest_file(path: Path, which: int) -> Path:
    """One of the files, more often one that holds anything."""
    files = sorted(file for file in (path / MANIFEST_NAME).iterdir() if file.stat().st_size)
    places = [file for file in files if file.suffix in (".sst", ".log") or file.name.startswith("MANIFEST")] * 4 + files
    return places[which % len(places)]


@settings(max_examples=80, deadline=None)
@given(which=st.integers(0, 1 << 20), damage=DAMAGES)
def test_a_damaged_manifest_is_refused_or_says_what_it_said(
    sound: Path, expected: dict[str, Any], which: int, damage: Damage
) -> None:
    with copy_of(sound) as path:
        file = manifest_file(path, which)
        segments = {each.name: each.read_bytes() for each in (path / "segments").iterdir()}
        file.write_bytes(damage.of(file.read_bytes())[0])
        try:
            assert everything(path) == expected
        except es.CorruptCheckpointError as error:
            assert error.path.startswith(str(path))
            assert {each.name: each.read_bytes() for each in (path / "segments").iterdir()} == segments


@settings(max_examples=40, deadline=None)
@given(which=st.integers(0, 1 << 20), damage=DAMAGES)
def test_who_only_looks_sees_a_damaged_manifest_too(sound: Path, which: int, damage: Damage) -> None:
    with copy_of(sound) as path:
        expected = read_directory(path)
        file = manifest_file(path, which)
        file.write_bytes(damage.of(file.read_bytes())[0])
        try:
            assert read_directory(path) == expected
        except es.CorruptCheckpointError as error:
            assert error.path.startswith(str(path))
