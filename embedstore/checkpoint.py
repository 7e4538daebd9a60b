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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedstore.errors import CheckpointFailedError, CorruptCheckpointError, InvalidArgumentError
from embedstore.manifest import FORMAT, MANIFEST_NAME, STORE_KEY, Manifest, ManifestContents, kept_key, table_key
from embedstore.records import ChunkRecord, TableRecord, Watermarks, record_of, segments_of, watermarks_by_chunk
from embedstore.recovery import CorruptBlob, Recovery, SavedTable, Shown, no_report
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
KEEP_MAX = 1 << 12
SEGMENTS_NAME = "segments"
_log = logging.getLogger(__name__)


def _needs_base(blobs: Sequence[Blob], sparse: frozenset[int]) -> bool:
    """Whether a chunk's next blob shall be a whole base: there is none, its deltas outgrew it, or it keeps a segment
    alive that is garbage for the most part."""
    if not blobs or len(blobs) > DELTAS_MAX or any(blob.segment in sparse for blob in blobs):
        return True
    return sum(blob.length for blob in blobs[1:]) > max(blobs[0].length, SMALL_BASE_BYTES)


class Checkpointer:
    """The directory of one store. Any thread may call anything; see the module for what is kept.

    Raises :class:`StoreLockedError`, :class:`CorruptCheckpointError`, :class:`InvalidArgumentError` (the directory
    belongs to another shard, or cannot be one) when made, and :class:`CheckpointFailedError` for whatever cannot be
    written, after which everything is as before and the call can be repeated. The last ``keep`` checkpoints stay
    readable.
    """

    def __init__(self, path: Path, shard: int, num_shards: int, *, keep: int = 1) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= KEEP_MAX:
            raise InvalidArgumentError("keep_checkpoints", f"must be an integer in [1, {KEEP_MAX}], not {keep!r}")
        self._keep = keep
        self._kept: dict[int, frozenset[int]] = {}
        self._path = path
        self._segments = path / SEGMENTS_NAME
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

    def recover(self, owned: Any, progress: Callable[[Recovery], None] = no_report) -> list[Table]:
        """Every table as of the last checkpoint; ``owned(spec)`` says which chunks are this shard's.

        A chunk with an unreadable blob stands where its last good blob left it; it is in :attr:`corrupt`. ``progress``
        is called in this thread, some hundred times at most; what it raises ends the recovery.
        """
        contents = self.contents
        shown = Shown(progress, sum(len(message.chunks) for message in contents.tables))
        self._kept = {kept.number: segments_of(kept.tables) for kept in contents.kept}
        # Also what could not be read is kept until a checkpoint has replaced it.
        named = segments_of(contents.tables).union(*self._kept.values())
        with SegmentReader(self._segments) as reader:
            tables = [self._recover_table(message, owned, reader, shown) for message in contents.tables]
        remove_segments(self._segments, self._sizes.keys() - named)
        self._sizes = {number: size for number, size in self._sizes.items() if number in named}
        return tables

    def _recover_table(
        self, message: manifest_pb2.TableManifest, owned: Any, reader: SegmentReader, shown: Shown
    ) -> Table:
        saved = SavedTable.read(message)
        try:
            table = Table(saved.spec, chunks=owned(saved.spec))
        except InvalidArgumentError as problem:
            raise CorruptCheckpointError(f"manifest of table {saved.spec.name!r}", str(problem)) from problem
        if list(saved.chunks) != list(table.chunks):
            raise CorruptCheckpointError(
                f"manifest of table {saved.spec.name!r}", "does not list the chunks of this shard"
            )
        reader.open(saved.segments())

        def restore(chunk: int) -> tuple[Blob, ...]:
            good, bad = saved.restore(chunk, table, reader)
            if bad is not None:
                self.corrupt.append(bad)
                _log.error("table %s: chunk %d falls back: %s", bad.table, chunk, bad.problem)
            return good

        with ThreadPoolExecutor(min(os.cpu_count() or 1, RECOVERY_THREADS_MAX)) as pool:
            shown.begin(table)
            try:
                blobs = dict(zip(saved.chunks, shown.each(table, pool.map(restore, saved.chunks)), strict=True))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        shown.end(table)
        table.branch()
        self._records[saved.spec.name] = TableRecord(table, saved.beginnings, record_of(table, blobs))
        return table

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

    @property
    def last_checkpoint(self) -> int:
        """The number of the last checkpoint; they count from 1."""
        return self._store.checkpoint

    def durable(self) -> dict[str, Watermarks]:
        """Per table the lowest watermarks that a restart would find."""
        with self._mutex:
            return {name: record.durable() for name, record in self._records.items()}

    # -- checkpoints

    def checkpoint(self, now_ms: int) -> tuple[int, int]:
        """Make everything that the tables hold durable, as a checkpoint taken at ``now_ms``; returns (chunks, bytes)
        written."""
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
            num_chunks = self._commit(records, passed, writer, now_ms)
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
        now_ms: int,
    ) -> int:
        with self._mutex:
            current = {name: record for name, record in records.items() if self._records.get(name) is record}
            moved = {name: replace(record, chunks=passed[name]) for name, record in current.items()}
            puts: dict[bytes, Any] = {table_key(n): _serialized(r.to_proto(r.table.spec)) for n, r in moved.items()}
            if writer.bytes_written:
                # Counted up even when the write below fails: it may have reached the disk all the same.
                self._store.next_segment = writer.number + 1
                self._sizes[writer.number] = writer.bytes_written
            kept = self._write_checkpoint({**self._records, **moved}, puts, now_ms)
            num_chunks = sum(
                new.blobs != old.blobs
                for name, record in current.items()
                for old, new in zip(record.chunks, passed[name], strict=True)
            )
            for name, record in current.items():
                record.chunks = passed[name]
            self._kept = kept
            unused = self._sizes.keys() - self._live_segments().keys() - frozenset().union(*kept.values())
            self._sizes = {number: size for number, size in self._sizes.items() if number not in unused}
        remove_segments(self._segments, unused)
        return num_chunks

    def _write_checkpoint(
        self, records: Mapping[str, TableRecord], puts: dict[bytes, Any], now_ms: int
    ) -> dict[int, frozenset[int]]:
        """Write a checkpoint's entries, if any differs; returns the segments of the checkpoints that are kept then."""
        if not self._changed(puts):
            return self._kept
        # This number, too, is used up even when the write fails.
        self._store.checkpoint += 1
        self._store.checkpoint_ms = now_ms
        puts = {**puts, STORE_KEY: self._store}
        number = self._store.checkpoint
        kept = {old: segments for old, segments in self._kept.items() if old > number - self._keep}
        if self._keep > 1:
            message = manifest_pb2.CheckpointManifest(number=number, taken_ms=now_ms)
            for name in sorted(records):
                message.tables.append(records[name].to_proto(records[name].table.spec))
            puts[kept_key(number)] = message
            kept[number] = segments_of(message.tables)
        self._write(puts, [kept_key(old) for old in self._kept.keys() - kept.keys()])
        return kept

    def _changed(self, puts: Mapping[bytes, Any]) -> bool:
        return any(self._written.get(key) != value for key, value in puts.items())

    def _write(self, puts: Mapping[bytes, Any], deletes: Sequence[bytes] = ()) -> None:
        """Write what differs from what is there. ``_mutex`` is held."""
        values = {key: _serialized(message) for key, message in puts.items()}
        changed = {key: value for key, value in values.items() if self._written.get(key) != value}
        if not changed and not deletes:
            return
        try:
            self._manifest.write(changed, deletes)
        except CheckpointFailedError:
            self._written.clear()
            raise
        self._written |= {key: value for key, value in changed.items() if not key.startswith((b"dense/", b"kept/"))}
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
        """The segment to be emptied next, when too many bytes or too many files are kept for too little. What older
        checkpoints need stays anyway."""
        older = frozenset[int]().union(*(s for number, s in self._kept.items() if number != self._store.checkpoint))
        live = {number: length for number, length in self._live_segments().items() if number not in older}
        total = sum(size for number, size in self._sizes.items() if number not in older)
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
        remove_store(self._path)


def remove_store(path: Path) -> None:
    """Remove what a store has in its directory, as far as it came. Nobody may have it open. OSError."""
    for directory in (path / SEGMENTS_NAME, path / MANIFEST_NAME):
        if directory.exists():
            shutil.rmtree(directory)


def _serialized(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString(deterministic=True))
