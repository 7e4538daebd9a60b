"""What tests of checkpoints share: crashes, damage, and the state of a store as plain values."""

from __future__ import annotations

import itertools
import resource
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import embedstore as es
from embedstore.interface import Reader
from embedstore.manifest import LAST_WRITE_NAME, MANIFEST_NAME, Manifest
from embedstore.v1 import manifest_pb2

COUNTED = es.TableSpec("items", dim=4, optimizer=es.SGD(lr=1.0), num_chunks=8)
STREAM = "file/0123456789abcdef/0"


def ones(num_rows: int, dim: int = 4) -> np.ndarray:
    return np.ones((num_rows, dim), np.float32)


def push_events(store: Any, begin: int, end: int, num_ids: int = 100) -> es.PushResult:
    """The events [begin, end) of a fixed log, in which event k is of id k % num_ids."""
    ids = np.arange(begin, end, dtype=np.uint64) % np.uint64(num_ids)
    result: es.PushResult = store.push({"items": (ids, ones(end - begin))}, origins=[es.Origin(STREAM, begin, end)])
    return result


def counts(store: Reader, num_ids: int = 100) -> np.ndarray:
    return -store.pull({"items": np.arange(num_ids, dtype=np.uint64)})["items"][:, 0].astype(np.int64)


def expected_counts(end: int, num_ids: int = 100) -> np.ndarray:
    return np.bincount(np.arange(end) % num_ids, minlength=num_ids)


def replay(store: Any, end: int, num_ids: int = 100) -> None:
    """What a trainer does after a start: push on from the lowest watermark, cut at all of them."""
    cuts = sorted({*store.watermarks()[STREAM].watermarks, end})
    for begin, stop in itertools.pairwise(cuts):
        push_events(store, begin, stop, num_ids)


def crash(store_path: Path, copy_path: Path) -> Path:
    """The directory as a kill would leave it at this moment; the store goes on.

    RocksDB may delete what it needs no more while it is copied: then again. The number of its last write is as of the
    beginning, because a copy takes a while and a kill does not.
    """
    for _ in range(10):
        shutil.rmtree(copy_path, ignore_errors=True)
        try:
            last_write = store_path / MANIFEST_NAME / LAST_WRITE_NAME
            noted = last_write.read_bytes() if last_write.exists() else None
            shutil.copytree(store_path, copy_path)
            if noted is not None:
                (copy_path / MANIFEST_NAME / LAST_WRITE_NAME).write_bytes(noted)
            return copy_path
        except shutil.Error as error:
            if not all("No such file" in str(reason) for _, _, reason in error.args[0]):
                raise
    raise AssertionError(f"{store_path} does not hold still")


def state(store: Any) -> dict[str, Any]:
    """Everything that can be read from a store, as values that compare with ``==`` after rounding."""
    tables: dict[str, dict[int, tuple[Any, ...]]] = {}
    for name in store.tables():
        rows: dict[int, tuple[Any, ...]] = {}
        for ids, values in store.scan(name):
            columns = (values.embeddings, values.updates, values.first_seen_s, values.last_seen_s)
            for key, embedding, *numbers in zip(ids.tolist(), *columns, strict=True):
                assert key not in rows
                rows[key] = (tuple(np.round(embedding, 4).tolist()), *(int(number) for number in numbers))
        tables[name] = rows
    return {"specs": store.tables(), "rows": tables, "streams": store.watermarks()}


def segments(path: Path) -> list[Path]:
    return sorted((path / "segments").glob("*.seg"))


def table_manifest(path: Path, table: str = "items") -> manifest_pb2.TableManifest:
    """The manifest entry of a table of a store that is not open."""
    manifest = Manifest(path / "manifest")
    try:
        return next(entry for entry in manifest.read().tables if entry.spec.name == table)
    finally:
        manifest.close()


def blobs(path: Path, table: str = "items") -> Mapping[int, list[manifest_pb2.BlobRef]]:
    return {entry.cursor.chunk: list(entry.blobs) for entry in table_manifest(path, table).chunks}


def blob_path(path: Path, blob: manifest_pb2.BlobRef) -> Path:
    return path / "segments" / f"{blob.segment:016d}.seg"


def damage(path: Path, blob: manifest_pb2.BlobRef, at: int | None = None) -> None:
    """Flip one bit of a blob."""
    offset = blob.offset + (blob.length // 2 if at is None else at)
    with blob_path(path, blob).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Writes past the limit fail with EFBIG, for this process and for real (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def chunks_of(store: Any, num_ids: int = 100) -> Iterator[tuple[int, list[int]]]:
    """The ids below ``num_ids`` that each chunk of the table holds."""
    table = store.table("items")
    for chunk in table.chunks:
        ids, _ = table.scan_chunk(chunk)
        yield chunk, sorted(ids.tolist())
