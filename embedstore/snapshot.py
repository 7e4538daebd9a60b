"""A store's directory, read by somebody who does not own it: the process that does may go on writing.

The manifest is opened without its lock, as it is at one moment, and the segments that it names are opened at once. A
checkpoint in between may have deleted one: then all of it is read again. What was opened stays readable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from embedstore.errors import CorruptCheckpointError, InvalidArgumentError
from embedstore.manifest import MANIFEST_NAME, ManifestContents, read_manifest
from embedstore.recovery import CorruptBlob, SavedTable
from embedstore.segments import SegmentReader
from embedstore.v1 import manifest_pb2

ATTEMPTS_MAX = 20


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint of a directory, open to be read."""

    path: Path
    store: manifest_pb2.StoreManifest
    contents: ManifestContents
    tables: Sequence[SavedTable]
    reader: SegmentReader


@dataclass(frozen=True)
class Verified:
    """What a directory's blobs are worth: how many there are, their bytes, and those that are bad."""

    blobs: int
    bytes: int
    bad: Sequence[CorruptBlob]


def read_directory(path: Path) -> tuple[manifest_pb2.StoreManifest, ManifestContents]:
    """What the manifest of a store's directory says; :class:`CorruptCheckpointError` when it says nothing."""
    contents = read_manifest(path / MANIFEST_NAME)
    if contents.store is None:
        raise CorruptCheckpointError(str(path), "holds no store")
    return contents.store, contents


@contextmanager
def opened(path: Path, number: int | None = None) -> Iterator[Snapshot]:
    """The present checkpoint of a directory, or the kept one of that number.

    :class:`InvalidArgumentError` when there is none, :class:`CorruptCheckpointError` for a manifest that cannot be
    read.
    """
    for attempt in range(ATTEMPTS_MAX):
        store, contents = read_directory(path)
        tables = [SavedTable.read(message) for message in _tables(store, contents, number)]
        with SegmentReader(path / "segments") as reader:
            for table in tables:
                reader.open(table.segments())
            if reader.missing() and attempt + 1 < ATTEMPTS_MAX and read_directory(path) != (store, contents):
                continue
            yield Snapshot(path, store, contents, tables, reader)
            return


def verify(path: Path) -> Verified:
    """Read every blob of every checkpoint that is kept and put every chunk together from them."""
    _, contents = read_directory(path)
    found: dict[tuple[str, int, tuple[object, ...]], list[CorruptBlob]] = {}
    blobs: dict[object, int] = {}
    for number in (None, *(kept.number for kept in contents.kept)):
        try:
            with opened(path, number) as snapshot:
                _verify_one(snapshot, found, blobs)
        except InvalidArgumentError:
            # The owner has made another checkpoint meanwhile, which pushed this one out.
            continue
    bad = {(each.file, each.offset): each for several in found.values() for each in several}
    return Verified(len(blobs), sum(blobs.values()), [bad[key] for key in sorted(bad)])


def _verify_one(
    snapshot: Snapshot, found: dict[tuple[str, int, tuple[object, ...]], list[CorruptBlob]], blobs: dict[object, int]
) -> None:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for saved in snapshot.tables:
            lists = {chunk: saved.blobs(chunk) for chunk in saved.chunks}
            new = [chunk for chunk, refs in lists.items() if (saved.spec.name, chunk, refs) not in found]
            checked = pool.map(lambda chunk, saved=saved: _bad_blobs(snapshot, saved, chunk), new)
            for chunk, bad in zip(new, checked, strict=True):
                found[saved.spec.name, chunk, lists[chunk]] = bad
            blobs |= {blob: blob.length for refs in lists.values() for blob in refs}


def _bad_blobs(snapshot: Snapshot, saved: SavedTable, chunk: int) -> list[CorruptBlob]:
    good, first = saved.restore(chunk, saved.room(chunk), snapshot.reader)
    if first is None:
        return []
    bad = [first]
    for blob in saved.blobs(chunk)[len(good) + 1 :]:
        try:
            snapshot.reader.read(blob)
        except CorruptCheckpointError as error:
            file = str(snapshot.reader.path(blob.segment))
            bad.append(CorruptBlob(saved.spec.name, chunk, file, blob.offset, error.problem))
    return bad


def _tables(
    store: manifest_pb2.StoreManifest, contents: ManifestContents, number: int | None
) -> Sequence[manifest_pb2.TableManifest]:
    if number is None:
        return contents.tables
    for kept in contents.kept:
        if kept.number == number:
            return list(kept.tables)
    if number == store.checkpoint:
        return contents.tables
    present = sorted({store.checkpoint, *(kept.number for kept in contents.kept)})
    raise InvalidArgumentError("checkpoint", f"{number} is not kept; there are {', '.join(map(str, present))}")
