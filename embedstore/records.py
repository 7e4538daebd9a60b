"""What a manifest says of tables and chunks, as values: plain data between the checkpointer and the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from embedstore.segments import Blob
from embedstore.spec import TableSpec
from embedstore.table import Table
from embedstore.v1 import manifest_pb2, sync_pb2

Watermarks = Mapping[str, int]


@dataclass(frozen=True)
class ChunkRecord:
    """What the manifest says of one chunk. The blobs hold it up to (incarnation, version); beyond that version nothing
    is claimed."""

    chunk: int
    incarnation: int
    version: int
    clock_ms: int
    watermarks: Watermarks
    blobs: tuple[Blob, ...]


@dataclass
class TableRecord:
    """What the manifest says of one table."""

    table: Table
    beginnings: Watermarks
    chunks: tuple[ChunkRecord, ...]

    def durable(self) -> dict[str, int]:
        """The lowest watermarks over all chunks; a stream that a chunk does not know is left out."""
        sets = {id(record.watermarks): record.watermarks for record in self.chunks}.values()
        common = set.intersection(*(set(known) for known in sets))
        return {stream: min(known[stream] for known in sets) for stream in common}

    def to_proto(self, spec: TableSpec) -> manifest_pb2.TableManifest:
        """The manifest entry, with ``spec`` for the table's."""
        return table_message(spec, self.beginnings, self.chunks)


def table_message(spec: TableSpec, beginnings: Watermarks, chunks: Iterable[ChunkRecord]) -> manifest_pb2.TableManifest:
    """A manifest entry. Chunks with equal watermarks share their place."""
    message = manifest_pb2.TableManifest(spec=spec.to_proto())
    _fill(message.beginnings, beginnings)
    index: dict[int, int] = {}
    known: dict[frozenset[tuple[str, int]], int] = {}
    for record in list(chunks):
        if id(record.watermarks) not in index:
            content = frozenset(record.watermarks.items())
            if content not in known:
                known[content] = len(known)
                _fill(message.watermark_sets.add(), record.watermarks)
            index[id(record.watermarks)] = known[content]
        entry = message.chunks.add(clock_ms=record.clock_ms, watermark_set=index[id(record.watermarks)])
        entry.cursor.chunk = record.chunk
        entry.cursor.incarnation = record.incarnation
        entry.cursor.version = record.version
        for blob in record.blobs:
            entry.blobs.add(segment=blob.segment, offset=blob.offset, length=blob.length, crc32c=blob.crc)
    return message


def record_of(table: Table, blobs: Mapping[int, tuple[Blob, ...]]) -> tuple[ChunkRecord, ...]:
    """The records of a table that holds exactly what these blobs hold, and that nobody changes meanwhile."""
    watermarks = watermarks_by_chunk(table)
    states = zip(table.chunks, *(column.tolist() for column in table.chunk_states()), strict=True)
    return tuple(
        ChunkRecord(chunk, incarnation, version, clock_ms, watermarks[chunk], blobs.get(chunk, ()))
        for chunk, incarnation, version, clock_ms in states
    )


def watermarks_by_chunk(table: Table) -> dict[int, Watermarks]:
    """Each chunk's watermarks; chunks that share a set share the object."""
    return {chunk: known for known, chunks in table.watermarks() for chunk in chunks}


def _fill(message: sync_pb2.WatermarkSet, watermarks: Watermarks) -> None:
    for stream in sorted(watermarks):
        message.positions.add(stream=stream, position=watermarks[stream])


def read_watermarks(message: sync_pb2.WatermarkSet) -> dict[str, int]:
    """The watermarks of a message."""
    return {entry.stream: entry.position for entry in message.positions}


def segments_of(tables: Iterable[manifest_pb2.TableManifest]) -> frozenset[int]:
    """The numbers of all segments that hold blobs of these tables."""
    return frozenset(ref.segment for table in tables for entry in table.chunks for ref in entry.blobs)
