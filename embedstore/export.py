"""A whole store as one plain directory, and back into directories of any number of shards.

docs/formats/checkpoint.md has the bytes. Both ways the result is made under another name beside its place, read back,
synced, and renamed when it is complete: what has its name is whole.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c
from google.protobuf.message import DecodeError

from embedstore import dense
from embedstore.errors import CheckpointFailedError, CorruptCheckpointError, InvalidArgumentError
from embedstore.manifest import (
    FORMAT,
    MANIFEST_NAME,
    STORE_KEY,
    Manifest,
    dense_key,
    stream_key,
    table_key,
)
from embedstore.placement import check_shard, chunks_of_shard, shard_of_dense_set
from embedstore.records import ChunkRecord, Watermarks, record_of, table_message
from embedstore.recovery import SavedTable
from embedstore.segments import Blob, SegmentReader, SegmentWriter, sync_directory
from embedstore.snapshot import Snapshot, opened
from embedstore.spec import TableSpec
from embedstore.v1 import manifest_pb2, store_pb2

MAGIC = b"ESEXPORT"
EXPORT_FORMAT = 1
EXPORT_NAME = "export"
SEGMENT_BYTES = 1 << 30
_FRONT = struct.Struct("<8sIQ")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class Moved:
    """What was exported or imported."""

    tables: int
    chunks: int
    rows: int
    streams: int
    dense_sets: int
    bytes: int


def export_store(directories: Sequence[Path], target: Path, numbers: Sequence[int | None] = ()) -> Moved:
    """Write the checkpoints of all shards' directories, in any order, to the directory ``target``, which is new.

    ``numbers``: of the checkpoint of each directory; without, the present ones. Dense sets are the present ones.
    :class:`InvalidArgumentError` names a shard that is missing or does not fit, :class:`CorruptCheckpointError` what is
    damaged, :class:`CheckpointFailedError` what cannot be written.
    """
    if numbers and len(numbers) != len(directories):
        raise InvalidArgumentError("checkpoint", f"needs a number for each of {len(directories)} directories")
    with ExitStack() as stack:
        chosen = zip(directories, numbers or [None] * len(directories), strict=True)
        snapshots = _in_order([stack.enter_context(opened(path, number)) for path, number in chosen])
        partial = stack.enter_context(_appearing(target))
        with _Blobs(partial / "segments") as blobs:
            message = manifest_pb2.ExportManifest(num_shards=len(snapshots))
            rows = 0
            for spec in _specs(snapshots):
                entry, num_rows = _export_table(spec, snapshots, blobs)
                message.tables.append(entry)
                rows += num_rows
            message.streams.extend(_streams(snapshots))
            for dense_set in _dense_sets(snapshots):
                ref = blobs.append(dense_set.SerializeToString(deterministic=True))
                message.dense.add(name=dense_set.name).blob.CopyFrom(_ref(ref))
        blobs.read_back()
        _write_file(partial / EXPORT_NAME, _framed(message.SerializeToString(deterministic=True)))
        sync_directory(partial)
    return _moved(message, rows, blobs.bytes_written)


def import_store(export: Path, data: Path, shard: int, num_shards: int) -> Moved:
    """Make the directory ``data`` of shard ``shard`` of ``num_shards`` from an export. It must be new, or empty.

    Its chunks stand where the exported ones stood, with their watermarks; the first start begins histories whose
    parents are the exported ones. Errors as of :func:`export_store`.
    """
    check_shard(shard, num_shards)
    message = read_export(export)
    tables = [SavedTable.read(entry) for entry in message.tables]
    for saved in tables:
        if saved.spec.num_chunks < num_shards:
            raise InvalidArgumentError(
                "shard",
                f"{num_shards} shards are too many: table {saved.spec.name!r} has {saved.spec.num_chunks} chunks",
            )
    with SegmentReader(export / "segments") as reader, _appearing(data) as partial:
        for saved in tables:
            reader.open(saved.segments())
        reader.open(ref.blob.segment for ref in message.dense)
        own_dense = [ref for ref in message.dense if shard_of_dense_set(ref.name, num_shards) == shard]
        puts: dict[bytes, bytes] = {}
        with _Blobs(partial / "segments") as blobs:
            rows, entries = 0, []
            for saved in tables:
                chunks = chunks_of_shard(shard, num_shards, saved.spec.num_chunks)
                entry, num_rows = _import_table(saved, chunks, reader, blobs)
                entries.append(entry)
                puts[table_key(saved.spec.name)] = entry.SerializeToString(deterministic=True)
                rows += num_rows
        blobs.read_back()
        puts |= {stream_key(each.stream): each.SerializeToString(deterministic=True) for each in message.streams}
        for ref in own_dense:
            content = reader.read(_blob(ref.blob))
            _check_dense(export, ref.name, content)
            puts[dense_key(ref.name)] = bytes(content)
        store = manifest_pb2.StoreManifest(
            format=FORMAT, shard=shard, num_shards=num_shards, epoch=1, next_segment=blobs.next_segment
        )
        manifest = Manifest(partial / MANIFEST_NAME)
        try:
            manifest.write({STORE_KEY: store, **puts})
        finally:
            manifest.close()
        sync_directory(partial / MANIFEST_NAME)
        sync_directory(partial)
    imported = manifest_pb2.ExportManifest(tables=entries, streams=message.streams, dense=own_dense)
    return _moved(imported, rows, blobs.bytes_written)


def read_export(path: Path) -> manifest_pb2.ExportManifest:
    """What an exported directory says of itself; :class:`CorruptCheckpointError` unless that is sound."""
    file = path / EXPORT_NAME
    try:
        content = file.read_bytes()
    except OSError as problem:
        raise CorruptCheckpointError(str(path), f"holds no export: {problem}") from problem
    if len(content) < _FRONT.size + _CHECKSUM.size or content[:8] != MAGIC:
        raise CorruptCheckpointError(str(file), "does not begin with the magic bytes")
    _, number, length = _FRONT.unpack_from(content)
    if number != EXPORT_FORMAT:
        raise CorruptCheckpointError(str(file), f"is of format {number} and this release reads {EXPORT_FORMAT}")
    if len(content) != _FRONT.size + length + _CHECKSUM.size:
        raise CorruptCheckpointError(str(file), "has another length than it says")
    if _CHECKSUM.unpack_from(content, len(content) - _CHECKSUM.size)[0] != crc32c(content[: -_CHECKSUM.size]):
        raise CorruptCheckpointError(str(file), "its checksum does not match")
    message = manifest_pb2.ExportManifest()
    try:
        message.ParseFromString(content[_FRONT.size : -_CHECKSUM.size])
    except DecodeError as problem:
        raise CorruptCheckpointError(str(file), str(problem)) from problem
    return message


# -- from shards to one


def _in_order(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Snapshots by shard; :class:`InvalidArgumentError` unless they are all shards of one store, each once."""
    if not snapshots:
        raise InvalidArgumentError("directories", "name those of all shards")
    num_shards = snapshots[0].store.num_shards
    by_shard: dict[int, Snapshot] = {}
    for snapshot in snapshots:
        held = f"{snapshot.path} holds shard {snapshot.store.shard} of {snapshot.store.num_shards}"
        if snapshot.store.num_shards != num_shards:
            raise InvalidArgumentError("directories", f"{held}, {snapshots[0].path} one of {num_shards}")
        if snapshot.store.shard in by_shard:
            raise InvalidArgumentError("directories", f"{held}, and so does {by_shard[snapshot.store.shard].path}")
        by_shard[snapshot.store.shard] = snapshot
    missing = sorted(set(range(num_shards)) - by_shard.keys())
    if missing:
        raise InvalidArgumentError("directories", f"shard {missing[0]} of {num_shards} is not among them")
    return [by_shard[shard] for shard in range(num_shards)]


def _specs(snapshots: Sequence[Snapshot]) -> list[TableSpec]:
    """The tables, which are the same on all shards, or :class:`InvalidArgumentError`."""
    specs = {saved.spec.name: saved.spec for snapshot in snapshots for saved in snapshot.tables}
    for snapshot in snapshots:
        held = {saved.spec.name: saved.spec for saved in snapshot.tables}
        for name, spec in specs.items():
            if name not in held:
                raise InvalidArgumentError("directories", f"{snapshot.path} has no table {name!r}, another one has")
            difference = spec.first_difference(held[name])
            if difference is not None:
                raise InvalidArgumentError(
                    "directories", f"table {name!r} differs in {difference} in {snapshot.path}; alter it on all shards"
                )
    return [specs[name] for name in sorted(specs)]


def _export_table(
    spec: TableSpec, snapshots: Sequence[Snapshot], blobs: _Blobs
) -> tuple[manifest_pb2.TableManifest, int]:
    """Every chunk as one base, and the table's entry; also how many rows."""
    records: list[ChunkRecord] = []
    beginnings: list[Watermarks] = []
    rows = 0
    for snapshot in snapshots:
        saved = next(each for each in snapshot.tables if each.spec.name == spec.name)
        beginnings.append(saved.beginnings)
        if list(saved.chunks) != list(chunks_of_shard(snapshot.store.shard, len(snapshots), spec.num_chunks)):
            raise CorruptCheckpointError(
                str(snapshot.path), f"table {spec.name!r} does not list the chunks of this shard"
            )
        for chunk in saved.chunks:
            table = saved.restored(chunk, snapshot.reader)
            records += record_of(table, {chunk: (blobs.append(table.delta(chunk)),)})
            rows += len(table)
    return table_message(spec, _lowest(beginnings), records), rows


def _lowest(several: Sequence[Watermarks]) -> dict[str, int]:
    names = {name for known in several for name in known}
    return {name: min(known[name] for known in several if name in known) for name in names}


def _streams(snapshots: Sequence[Snapshot]) -> list[manifest_pb2.StreamManifest]:
    """Every stream once, with its first position and its newest generation."""
    merged: dict[str, manifest_pb2.StreamManifest] = {}
    for snapshot in snapshots:
        for each in snapshot.contents.streams:
            known = merged.setdefault(each.stream, each)
            merged[each.stream] = manifest_pb2.StreamManifest(
                stream=each.stream,
                begin=min(known.begin, each.begin),
                generation=max(known.generation, each.generation),
            )
    return [merged[name] for name in sorted(merged)]


def _dense_sets(snapshots: Sequence[Snapshot]) -> list[store_pb2.DenseSet]:
    """Every dense set, from the shard that it lives on."""
    found = {
        each.name: each
        for snapshot in snapshots
        for each in snapshot.contents.dense
        if shard_of_dense_set(each.name, len(snapshots)) == snapshot.store.shard
    }
    return [found[name] for name in sorted(found)]


# -- from one to a shard


def _import_table(
    saved: SavedTable, chunks: range, reader: SegmentReader, blobs: _Blobs
) -> tuple[manifest_pb2.TableManifest, int]:
    if list(saved.chunks) != list(range(saved.spec.num_chunks)):
        raise CorruptCheckpointError(f"export of table {saved.spec.name!r}", "does not list all chunks")
    records: list[ChunkRecord] = []
    rows = 0
    for chunk in chunks:
        table = saved.restored(chunk, reader)
        records += record_of(table, {chunk: tuple(blobs.append(reader.read(blob)) for blob in saved.blobs(chunk))})
        rows += len(table)
    return table_message(saved.spec, saved.beginnings, records), rows


def _check_dense(export: Path, name: str, content: memoryview) -> None:
    try:
        read, _ = dense.from_proto(store_pb2.DenseSet.FromString(bytes(content)))
    except (DecodeError, InvalidArgumentError) as problem:
        raise CorruptCheckpointError(str(export), f"dense set {name!r}: {problem}") from problem
    if read != name:
        raise CorruptCheckpointError(str(export), f"dense set {name!r} is {read!r}")


# -- files


class _Blobs:
    """Blobs in as many segments as they need, in a new directory. For one thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer = SegmentWriter(directory, 1)
        self._written: list[Blob] = []
        self.bytes_written = 0

    def __enter__(self) -> _Blobs:
        try:
            self._directory.mkdir()
        except OSError as problem:
            raise CheckpointFailedError(str(self._directory), str(problem)) from problem
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._writer.sync()
        else:
            self._writer.discard()

    @property
    def next_segment(self) -> int:
        """A number that no segment has."""
        return self._writer.number + 1

    def append(self, data: bytes | memoryview) -> Blob:
        """Write one blob."""
        if self._writer.bytes_written >= SEGMENT_BYTES:
            self._writer.sync()
            self._writer = SegmentWriter(self._directory, self._writer.number + 1)
        blob = self._writer.append(data)
        self._written.append(blob)
        self.bytes_written += blob.length
        return blob

    def read_back(self) -> None:
        """Compare everything on the disk with its checksums. :class:`CorruptCheckpointError`."""
        with SegmentReader(self._directory) as reader:
            reader.open(blob.segment for blob in self._written)
            for blob in self._written:
                reader.read(blob)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A new directory that gets the name ``target`` in the end, or goes."""
    try:
        if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
            raise InvalidArgumentError("directory", f"{target} is there already, and not empty")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / f".{target.name}.{os.getpid()}.partial"
        partial.mkdir()
    except OSError as problem:
        raise CheckpointFailedError(str(target), str(problem)) from problem
    try:
        yield partial
        partial.rename(target)
        sync_directory(target.parent)
    except OSError as problem:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointFailedError(str(target), str(problem)) from problem
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _framed(payload: bytes) -> bytes:
    front = _FRONT.pack(MAGIC, EXPORT_FORMAT, len(payload)) + payload
    return front + _CHECKSUM.pack(crc32c(front))


def _ref(blob: Blob) -> manifest_pb2.BlobRef:
    return manifest_pb2.BlobRef(segment=blob.segment, offset=blob.offset, length=blob.length, crc32c=blob.crc)


def _blob(ref: manifest_pb2.BlobRef) -> Blob:
    return Blob(ref.segment, ref.offset, ref.length, ref.crc32c)


def _moved(message: manifest_pb2.ExportManifest, rows: int, num_bytes: int) -> Moved:
    num_chunks = sum(len(entry.chunks) for entry in message.tables)
    return Moved(len(message.tables), num_chunks, rows, len(message.streams), len(message.dense), num_bytes)
