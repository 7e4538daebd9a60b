"""Reading a checkpoint back: tables from the manifest, chunks from their blobs. docs/formats/checkpoint.md.

A chunk with an unreadable blob stands where its last good one left it; no other chunk changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from embedstore.errors import (
    CorruptCheckpointError,
    CorruptDeltaError,
    DeltaGapError,
    InvalidArgumentError,
    UnsupportedError,
)
from embedstore.records import Watermarks, read_watermarks
from embedstore.segments import Blob, SegmentReader
from embedstore.spec import TableSpec
from embedstore.table import Table, delta_info
from embedstore.v1 import manifest_pb2

REPORTS_MAX = 256
T = TypeVar("T")


@dataclass(frozen=True)
class CorruptBlob:
    """A blob that cannot be read, and whose chunk falls back."""

    table: str
    chunk: int
    file: str
    offset: int
    problem: str


@dataclass(frozen=True)
class SavedTable:
    """What a manifest says of one table. ``chunks``: the entry and the watermarks of each, in order."""

    spec: TableSpec
    beginnings: Watermarks
    chunks: Mapping[int, tuple[manifest_pb2.ChunkManifest, Watermarks]]

    @classmethod
    def read(cls, message: manifest_pb2.TableManifest) -> SavedTable:
        """:class:`CorruptCheckpointError` for what cannot be, :class:`UnsupportedError` for what is of later."""
        try:
            spec = TableSpec.from_proto(message.spec)
            sets = [read_watermarks(entry) for entry in message.watermark_sets]
            chunks = {entry.cursor.chunk: (entry, sets[entry.watermark_set]) for entry in message.chunks}
        except UnsupportedError:
            raise
        except (InvalidArgumentError, IndexError) as problem:
            raise CorruptCheckpointError(f"manifest of table {message.spec.name!r}", str(problem)) from problem
        return cls(spec, read_watermarks(message.beginnings), chunks)

    def blobs(self, chunk: int) -> tuple[Blob, ...]:
        """The base, then the deltas in order."""
        return tuple(Blob(ref.segment, ref.offset, ref.length, ref.crc32c) for ref in self.chunks[chunk][0].blobs)

    def segments(self) -> set[int]:
        """The numbers of the segments that hold its blobs."""
        return {ref.segment for entry, _ in self.chunks.values() for ref in entry.blobs}

    def restore(self, chunk: int, table: Table, reader: SegmentReader) -> tuple[tuple[Blob, ...], CorruptBlob | None]:
        """Bring one chunk of an empty table to where its sound blobs leave it; returns these, and the first bad one."""
        entry, watermarks = self.chunks[chunk]
        blobs = self.blobs(chunk)
        for place, blob in enumerate(blobs):
            try:
                _apply(table, chunk, reader.read(blob))
            except (CorruptCheckpointError, CorruptDeltaError, DeltaGapError) as error:
                if not place:
                    table.set_watermarks(chunk, self.beginnings, 0)
                bad = CorruptBlob(self.spec.name, chunk, str(reader.path(blob.segment)), blob.offset, str(error))
                return blobs[:place], bad
        table.set_watermarks(chunk, watermarks, entry.clock_ms)
        return blobs, None

    def room(self, chunk: int) -> Table:
        """An empty table of this one chunk."""
        return Table(self.spec, chunks=range(chunk, chunk + 1))

    def restored(self, chunk: int, reader: SegmentReader) -> Table:
        """A table that holds this one chunk; :class:`CorruptCheckpointError` for a bad blob."""
        table = self.room(chunk)
        _, bad = self.restore(chunk, table, reader)
        if bad is not None:
            what = f"table {bad.table!r}, chunk {chunk}, offset {bad.offset}"
            raise CorruptCheckpointError(bad.file, f"{what}: {bad.problem}")
        return table


def _apply(table: Table, chunk: int, delta: memoryview) -> None:
    held = delta_info(delta).chunk
    if held != chunk:
        raise CorruptDeltaError(f"is of chunk {held}, not {chunk}")
    table.apply_buffer(delta)


@dataclass(frozen=True)
class Recovery:
    """How far a recovery is: the table that it reads, chunks over all tables, and rows so far."""

    table: str
    chunks: int
    num_chunks: int
    rows: int


def no_report(recovery: Recovery) -> None:
    """For who does not want to know."""


class Shown:
    """Tells ``progress`` at the beginning and end of each table and some hundred times between."""

    def __init__(self, progress: Callable[[Recovery], None], num_chunks: int) -> None:
        self._progress, self._num_chunks = progress, num_chunks
        self._step = max(num_chunks // REPORTS_MAX, 1)
        self._chunks, self._rows = 0, 0

    def begin(self, table: Table) -> None:
        """The next table begins."""
        self._tell(table)

    def each(self, table: Table, results: Iterable[T]) -> Iterator[T]:
        """``results``, of which each is a chunk of ``table``."""
        for result in results:
            self._chunks += 1
            if self._chunks % self._step == 0:
                self._tell(table)
            yield result

    def end(self, table: Table) -> None:
        """The table is there."""
        self._tell(table)
        self._rows += len(table)

    def _tell(self, table: Table) -> None:
        rows = self._rows + len(table)
        self._progress(Recovery(table.spec.name, self._chunks, self._num_chunks, rows))
