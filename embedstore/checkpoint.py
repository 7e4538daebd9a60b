"""Checkpoints: deltas of the chunks to disk and back. docs/formats/checkpoint.md describes the files.

What must always hold:

- a segment is synced, name included, before the manifest names it; the manifest moves in one batch. So the manifest on
  disk is always sound, and whatever fails before that batch changes nothing;
- the record of a chunk (cursor, watermarks, clock, blobs) never claims more than its blobs hold: watermarks are read
  before the versions that decide whether the chunk changed. So those of a clean chunk hold for the rows that its blobs
  have, and those of a dirty one are at or below the ones inside its delta, which count when it is read back;
- records change only under ``_mutex`` and only after their manifest is durable; one checkpoint runs at a time.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedstore.errors import (
    CheckpointFailedError,
    CorruptCheckpointError,
    CorruptDeltaError,
    DeltaGapError,
    InvalidArgumentError,
    UnsupportedError,
)
from embedstore.manifest import FORMAT, MANIFEST_NAME, STORE_KEY, Manifest, ManifestContents, table_key
from embedstore.records import (
    ChunkRecord,
    TableRecord,
    Watermarks,
    read_watermarks,
    record_of,
    watermarks_by_chunk,
)
from embedstore.segments import (
    Blob,
    SegmentReader,
    SegmentWriter,
    list_segments,
    remove_segments,
    segment_path,
    sync_directory,
)
from embedstore.spec import TableSpec
from embedstore.table import Table, delta_info
from embedstore.v1 import manifest_pb2

DELTAS_MAX = 64
SMALL_BASE_BYTES = 64 << 10
GARBAGE_BYTES_MIN = 64 << 20
SEGMENTS_MAX = 256
RECOVERY_THREADS_MAX = 8
REPORTS_MAX = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorruptBlob:
    """A blob that could not be read at the start, and whose chunk fell back."""

    table: str
    chunk: int
    problem: str


@dataclass(frozen=True)
class Recovery:
    """How far a recovery is: the table that it reads, chunks over all tables, and rows so far."""

    table: str
    chunks: int
    num_chunks: int
    rows: int


def _no_report(recovery: Recovery) -> None:
    pass


def _needs_base(blobs: Sequence[Blob], sparse: frozenset[int]) -> bool:
    """Whether a chunk's next blob shall be a whole base: there is none, its deltas outgrew it, or it keeps a segment
    alive that is garbage for the most part."""
    if not blobs or len(blobs) > DELTAS_MAX or any(blob.segment in sparse for blob in blobs):
        return True
    return sum(blob.length for blob in blobs[1:]) > max(blobs[0].length, SMALL_BASE_BYTES)


class _Shown:
    """Tells ``progress`` at the beginning and end of each table and some hundred times between."""

    def __init__(self, progress: Callable[[Recovery], None], num_chunks: int) -> None:
        self._progress, self._num_chunks = progress, num_chunks
        self._step = max(num_chunks // REPORTS_MAX, 1)
        self._chunks, self._rows = 0, 0
        self._table: Table | None = None

    def begin(self, table: Table) -> None:
        self._table = table
        self._tell()

    def each(self, results: Iterable[tuple[Blob, ...]]) -> Iterator[tuple[Blob, ...]]:
        for result in results:
            self._chunks += 1
            if self._chunks % self._step == 0:
                self._tell()
            yield result

    def end(self) -> None:
        assert self._table is not None
        self._tell()
        self._rows += len(self._table)

    def _tell(self) -> None:
        assert self._table is not None
        rows = self._rows + len(self._table)
        self._progress(Recovery(self._table.spec.name, self._chunks, self._num_chunks, rows))


class Checkpointer:
    """The directory of one store. Any thread may call anything; see the module for what is kept.

    Raises :class:`StoreLockedError`, :class:`CorruptCheckpointError`, :class:`InvalidArgumentError` (the directory
    belongs to another shard, or cannot be one) when made, and :class:`CheckpointFailedError` for whatever cannot be
    written, after which everything is as before and the call can be repeated.
    """

    def __init__(self, path: Path, shard: int, num_shards: int) -> None:
        self._path = path
        self._segments = path / "segments"
        self._shard, self._num_shards = shard, num_shards
        self._make_directories(path)
        self._manifest = Manifest(path / MANIFEST_NAME)
        try:
            self.contents: ManifestContents = self._manifest.read()
            self._sizes = self._check_directory()
        except BaseException:
            self._manifest.close()
            raise
        self._checkpointing = threading.Lock()
        self._mutex = threading.Lock()
        self._records: dict[str, TableRecord] = {}
        self._written: dict[bytes, bytes] = {}
        self.corrupt: list[CorruptBlob] = []

    def _make_directories(self, path: Path) -> None:
        try:
            self._segments.mkdir(parents=True, exist_ok=True)
            sync_directory(path)
            sync_directory(path.parent)
        except OSError as problem:
            raise InvalidArgumentError("path", str(problem)) from problem

    def _check_directory(self) -> dict[int, int]:
        """Compare what is there with what is asked for; the sizes of all segments."""
        store = self.contents.store
        numbers = list_segments(self._segments)
        if store is None:
            if numbers:
                raise CorruptCheckpointError(str(self._segments), "has segments, but the manifest is empty")
            store = manifest_pb2.StoreManifest(
                format=FORMAT, shard=self._shard, num_shards=self._num_shards, epoch=1, next_segment=1
            )
            self._manifest.write({STORE_KEY: store})
        if (store.shard, store.num_shards) != (self._shard, self._num_shards):
            field = "num_shards" if store.num_shards != self._num_shards else "shard"
            held, asked = f"{store.shard} of {store.num_shards}", f"{self._shard} of {self._num_shards}"
            raise InvalidArgumentError(field, f"the directory holds shard {held}, not {asked}")
        self._store = store
        self._store.next_segment = max(store.next_segment, max(numbers, default=0) + 1)
        return {number: segment_path(self._segments, number).stat().st_size for number in numbers}

    # -- recovery

    def recover(self, owned: Any, progress: Callable[[Recovery], None] = _no_report) -> list[Table]:
        """Every table as of the last checkpoint; ``owned(spec)`` says which chunks are this shard's.

        A chunk with an unreadable blob stands where its last good blob left it; it is in :attr:`corrupt`. ``progress``
        is called in this thread, some hundred times at most; what it raises ends the recovery.
        """
        shown = _Shown(progress, sum(len(message.chunks) for message in self.contents.tables))
        with SegmentReader(self._segments) as reader:
            tables = [self._recover_table(message, owned, reader, shown) for message in self.contents.tables]
        # Also what could not be read is kept until a checkpoint has replaced it.
        named = {b.segment for message in self.contents.tables for chunk in message.chunks for b in chunk.blobs}
        remove_segments(self._segments, self._sizes.keys() - named)
        self._sizes = {number: size for number, size in self._sizes.items() if number in named}
        return tables

    def _recover_table(
        self, message: manifest_pb2.TableManifest, owned: Any, reader: SegmentReader, shown: _Shown
    ) -> Table:
        try:
            spec = TableSpec.from_proto(message.spec)
            table = Table(spec, chunks=owned(spec))
            sets = [read_watermarks(entry) for entry in message.watermark_sets]
            entries = {entry.cursor.chunk: (entry, sets[entry.watermark_set]) for entry in message.chunks}
        except UnsupportedError:
            raise
        except (InvalidArgumentError, IndexError) as problem:
            raise CorruptCheckpointError(f"manifest of table {message.spec.name!r}", str(problem)) from problem
        if list(entries) != list(table.chunks):
            raise CorruptCheckpointError(f"manifest of table {spec.name!r}", "does not list the chunks of this shard")
        reader.open(blob.segment for entry, _ in entries.values() for blob in entry.blobs)
        beginnings = read_watermarks(message.beginnings)

        def recover(chunk: int) -> tuple[Blob, ...]:
            entry, watermarks = entries[chunk]
            return self._recover_chunk(table, entry, watermarks, beginnings, reader)

        with ThreadPoolExecutor(min(os.cpu_count() or 1, RECOVERY_THREADS_MAX)) as pool:
            shown.begin(table)
            try:
                blobs = dict(zip(entries, shown.each(pool.map(recover, entries)), strict=True))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        shown.end()
        table.branch()
        self._records[spec.name] = TableRecord(table, beginnings, record_of(table, blobs))
        return table

    def _recover_chunk(
        self,
        table: Table,
        entry: manifest_pb2.ChunkManifest,
        watermarks: Watermarks,
        beginnings: Watermarks,
        reader: SegmentReader,
    ) -> tuple[Blob, ...]:
        chunk = entry.cursor.chunk
        good: list[Blob] = []
        for ref in entry.blobs:
            blob = Blob(ref.segment, ref.offset, ref.length, ref.crc32c)
            try:
                applied, _, _ = table.apply_buffer(reader.read(blob))
            except (CorruptCheckpointError, CorruptDeltaError, DeltaGapError) as problem:
                self.corrupt.append(CorruptBlob(table.spec.name, chunk, str(problem)))
                _log.error("table %s: chunk %d falls back: %s", table.spec.name, chunk, problem)
                break
            if applied != chunk:
                raise CorruptCheckpointError(
                    str(segment_path(self._segments, blob.segment)),
                    f"the blob at {blob.offset} is of chunk {applied}, not {chunk}",
                )
            good.append(blob)
        if len(good) == len(entry.blobs):
            table.set_watermarks(chunk, watermarks, entry.clock_ms)
        elif not good:
            table.set_watermarks(chunk, beginnings, 0)
        return tuple(good)

    def take_contents(self) -> ManifestContents:
        """What the manifest held at the start, once: it is not kept."""
        contents, self.contents = self.contents, ManifestContents()
        return contents

    # -- what is durable as soon as it is answered

    def add_table(self, table: Table, beginnings: Watermarks) -> None:
        """Record a new, empty table whose chunks stand at ``beginnings``."""
        record = TableRecord(table, beginnings, record_of(table, {}))
        with self._mutex:
            self._write({table_key(table.spec.name): record.to_proto(table.spec)})
            self._records[table.spec.name] = record

    def take_over(self, table: Table) -> None:
        """Hold a table that comes with rows: the next checkpoint records it and them in one write."""
        watermarks = watermarks_by_chunk(table)
        chunks = tuple(ChunkRecord(chunk, 0, 0, 0, watermarks[chunk], ()) for chunk in table.chunks)
        with self._mutex:
            self._records[table.spec.name] = TableRecord(table, {}, chunks)

    def alter_table(self, table: Table, spec: TableSpec) -> None:
        """Record and then make a change of the spec."""
        with self._mutex:
            record = self._records[spec.name]
            self._write({table_key(spec.name): record.to_proto(spec)})
            table.alter(spec)

    def drop_table(self, name: str, entries: Mapping[bytes, Any]) -> None:
        """Forget a table and record ``entries`` in the same write. Its segments go with the next checkpoint."""
        with self._mutex:
            self._write(entries, [table_key(name)])
            del self._records[name]

    def put(self, entries: Mapping[bytes, Any]) -> None:
        """Record streams or dense sets, all in one write."""
        with self._mutex:
            self._write(entries)

    def durable(self) -> dict[str, Watermarks]:
        """Per table the lowest watermarks that a restart would find."""
        with self._mutex:
            return {name: record.durable() for name, record in self._records.items()}

    # -- checkpoints

    def checkpoint(self) -> tuple[int, int]:
        """Make everything that the tables hold durable; returns (chunks, bytes) written."""
        with self._checkpointing:
            with self._mutex:
                records = dict(self._records)
                sparse = self._sparse_segments()
            writer = SegmentWriter(self._segments, self._store.next_segment)
            try:
                passed = {name: self._pass(record, writer, sparse) for name, record in records.items()}
                writer.sync()
            except BaseException:
                writer.discard()
                self._store.next_segment = writer.number + 1
                raise
            num_chunks = self._commit(records, passed, writer)
            return num_chunks, writer.bytes_written

    def _pass(self, record: TableRecord, writer: SegmentWriter, sparse: frozenset[int]) -> tuple[ChunkRecord, ...]:
        table = record.table
        watermarks = watermarks_by_chunk(table)
        incarnations, versions, clocks = (column.tolist() for column in table.chunk_states())
        passed = []
        for old, incarnation, version, clock_ms in zip(record.chunks, incarnations, versions, clocks, strict=True):
            blobs = old.blobs
            clean = (incarnation, version) == (old.incarnation, old.version)
            if not clean or any(blob.segment in sparse for blob in blobs):
                cursor = (0, 0) if _needs_base(blobs, sparse) else (old.incarnation, old.version)
                delta = table.delta(old.chunk, *cursor)
                info = delta_info(delta)
                cursor = (info.incarnation, info.to_version)
                blobs = (writer.append(delta),) if info.full else (*blobs, writer.append(delta))
            else:
                cursor = (incarnation, version)
            passed.append(ChunkRecord(old.chunk, *cursor, clock_ms, watermarks[old.chunk], blobs))
        return tuple(passed)

    def _commit(
        self,
        records: Mapping[str, TableRecord],
        passed: Mapping[str, tuple[ChunkRecord, ...]],
        writer: SegmentWriter,
    ) -> int:
        with self._mutex:
            current = {name: record for name, record in records.items() if self._records.get(name) is record}
            moved = {name: replace(record, chunks=passed[name]) for name, record in current.items()}
            puts: dict[bytes, Any] = {table_key(n): r.to_proto(r.table.spec) for n, r in moved.items()}
            if writer.bytes_written:
                # Counted up even when the write below fails: it may have reached the disk all the same.
                self._store.next_segment = writer.number + 1
                self._sizes[writer.number] = writer.bytes_written
                puts[STORE_KEY] = self._store
            self._write(puts)
            num_chunks = sum(
                new.blobs != old.blobs
                for name, record in current.items()
                for old, new in zip(record.chunks, passed[name], strict=True)
            )
            for name, record in current.items():
                record.chunks = passed[name]
            unused = self._sizes.keys() - self._live_segments().keys()
            self._sizes = {number: size for number, size in self._sizes.items() if number not in unused}
        remove_segments(self._segments, unused)
        return num_chunks

    def _write(self, puts: Mapping[bytes, Any], deletes: Sequence[bytes] = ()) -> None:
        """Write what differs from what is there. ``_mutex`` is held."""
        values = {key: message.SerializeToString(deterministic=True) for key, message in puts.items()}
        changed = {key: value for key, value in values.items() if self._written.get(key) != value}
        if not changed and not deletes:
            return
        try:
            self._manifest.write(changed, deletes)
        except CheckpointFailedError:
            self._written.clear()
            raise
        self._written |= {key: value for key, value in changed.items() if not key.startswith(b"dense/")}
        for key in deletes:
            self._written.pop(key, None)

    def _live_segments(self) -> dict[int, int]:
        """Bytes of blobs in use, by segment."""
        live: dict[int, int] = {}
        for record in self._records.values():
            for chunk in record.chunks:
                for blob in chunk.blobs:
                    live[blob.segment] = live.get(blob.segment, 0) + blob.length
        return live

    def _sparse_segments(self) -> frozenset[int]:
        """The segment to be emptied next, when too many bytes or too many files are kept for too little."""
        live = self._live_segments()
        total = sum(self._sizes.values())
        if not live or (total <= 2 * sum(live.values()) + GARBAGE_BYTES_MIN and len(live) <= SEGMENTS_MAX):
            return frozenset()
        return frozenset([min(live, key=lambda number: live[number] / max(self._sizes.get(number, 0), 1))])

    def close(self) -> None:
        """Give the directory back. Nothing is written."""
        with self._checkpointing, self._mutex:
            self._manifest.close()

    def remove(self) -> None:
        """Give the directory back as empty as it was. OSError."""
        self.close()
        for directory in (self._segments, self._path / MANIFEST_NAME):
            shutil.rmtree(directory)
