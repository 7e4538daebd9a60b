"""What one follower has been sent of one table, and what it is to be sent next; see :mod:`embedstore.server.feed`.

It belongs to the thread of its call.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedstore.changes import Span
from embedstore.server.parts import Cursors, to_bytes
from embedstore.server.shared_deltas import SharedDeltas
from embedstore.table import DELTA_HEADER_BYTES, ChunkStates, Table
from embedstore.v1 import store_pb2, sync_pb2

if TYPE_CHECKING:
    from embedstore.spec import TableSpec

NEVER_MS = -(1 << 62)
_NO_MS = np.iinfo(np.int64).max
_NOTHING = (_NO_MS, 0, _NO_MS, 0)
"""A span of no change; a time that is not known is 0 for a maximum, and this for a minimum."""


class Outgoing(NamedTuple):
    """A delta that is sent next. ``changes``: how many it carries beyond what was sent before; ``span``: when they were
    made, as far as that is known."""

    chunk: int
    data: bytes
    changes: int
    span: Span | None


class TableFeed:
    """What one follower has been sent of one table.

    ``since_ms``: changes from this moment of the wall clock on are unsent, others may have been; None: nobody knows.
    """

    def __init__(
        self,
        table: Table,
        cursors: Cursors | None,
        *,
        embeddings_only: bool,
        only_chunks: range | None = None,
        deltas: SharedDeltas | None = None,
        since_ms: int | None = None,
    ) -> None:
        self.table = table
        self._deltas = deltas or SharedDeltas(lambda: False)
        self.spec: TableSpec | None = None
        self._embeddings_only = embeddings_only
        self._range = table.chunks if only_chunks is None else _common(table.chunks, only_chunks)
        self._chunks = np.arange(self._range.start, self._range.stop, dtype=np.uint32)
        count = len(self._chunks)
        self._incarnations = np.zeros(count, np.uint64)
        self._versions = np.zeros(count, np.uint64)
        self._sent_ms = np.full(count, NEVER_MS, np.int64)
        self._seen = np.zeros(count, np.uint64)
        self._unsent = np.tile(np.array(_NOTHING, np.int64), (count, 1))
        self._looked_ms = since_ms
        self._first_look = True
        self._complete_ms = np.zeros(count, np.int64)
        self._claimed_sets = np.full(count, -1, np.int64)
        self._claimed_clocks_ms = np.zeros(count, np.int64)
        self._set_numbers: dict[bytes, int] = {}
        self._next_set = 0
        self.next_due_ms: int | None = None
        if cursors is not None:
            self.rewind(cursors, whole_table=True)

    @property
    def complete_until_ms(self) -> int:
        """The moment before which no change of this table is unsent; 0 before the first complete round."""
        return int(self._complete_ms.min(initial=np.iinfo(np.int64).max))

    def rewind(self, cursors: Cursors, *, whole_table: bool) -> None:
        """Go on from these cursors instead; chunks that are not of this table's part are ignored. A whole table is
        announced again first, which tells the follower what was sent before it asked."""
        if whole_table:
            self.spec = None
            self._incarnations[:] = 0
            self._versions[:] = 0
        first = self._range.start
        mine = (cursors.chunks >= first) & (cursors.chunks < self._range.stop)
        at = cursors.chunks[mine].astype(np.int64) - first
        self._incarnations[at] = cursors.incarnations[mine]
        self._versions[at] = cursors.versions[mine]
        touched = slice(None) if whole_table else at
        self._complete_ms[touched] = 0
        self._claimed_sets[touched] = -1

    def due(self, now_ms: int, interval_ms: int, as_of_ms: int, wall_ms: int) -> np.ndarray:
        """Indexes of the chunks to send now; remembers when the next one of those that must wait is due.

        ``wall_ms``: the wall clock, now.
        """
        states = self._states()
        changed = (states.incarnations != self._incarnations) | (states.versions != self._versions)
        self._note(changed, states, wall_ms)
        self._complete_ms[~changed] = as_of_ms
        # Intervals begin at the same moments for all followers, so that these can be sent the same.
        begun_ms = now_ms - now_ms % interval_ms
        early = changed & (self._sent_ms >= begun_ms)
        self.next_due_ms = begun_ms + interval_ms if early.any() else None
        return np.flatnonzero(changed & ~early)

    def _note(self, changed: np.ndarray, states: ChunkStates, wall_ms: int) -> None:
        """What has changed since the last look, changed since then."""
        looked, self._looked_ms = self._looked_ms, wall_ms
        moved = changed & (states.versions != self._seen)
        first, self._seen = self._first_look, states.versions
        self._first_look = False
        if looked is None or not moved.any():
            return
        span = self.table.changes.since(looked)
        if span is None:
            if first:
                return
            span = Span(wall_ms, wall_ms)  # so new that it has not been told
        self._unsent[moved] = _join(self._unsent[moved], span)

    def _states(self) -> ChunkStates:
        states, first = self.table.chunk_states(), self.table.chunks.start
        mine = slice(self._range.start - first, self._range.stop - first)
        return ChunkStates(*(column[mine] for column in states))

    def delta(self, index: int, now_ms: int, as_of_ms: int, wall_ms: int, age_ms_max: int = 0) -> Outgoing:
        """The delta of the chunk at ``index`` after what was sent before. One that was made for another follower, at
        most ``age_ms_max`` ago, will do."""
        chunk = int(self._chunks[index])
        made = self._deltas.delta(
            self.table,
            chunk,
            (int(self._incarnations[index]), int(self._versions[index])),
            embeddings_only=self._embeddings_only,
            now_ms=now_ms,
            as_of_ms=as_of_ms,
            age_ms_max=age_ms_max,
        )
        data, info = made.data, made.info
        changes = 1 if info.full else info.to_version - int(self._versions[index])
        self._incarnations[index], self._versions[index] = info.incarnation, info.to_version
        self._sent_ms[index] = now_ms
        self._complete_ms[index] = max(self._complete_ms[index], made.as_of_ms)
        watermarks = data[DELTA_HEADER_BYTES : DELTA_HEADER_BYTES + info.watermark_bytes]
        self._claimed_sets[index] = self._number(watermarks)
        self._claimed_clocks_ms[index] = info.clock_ms
        span = _span(self._unsent[index])
        self._unsent[index] = _NOTHING
        if info.to_version < self._seen[index]:  # it was made before what was seen last
            rest = self.table.changes.since(wall_ms - (now_ms - made.made_ms))
            if rest is not None:
                self._unsent[index] = _join(self._unsent[index], rest)
        return Outgoing(chunk, data, changes, span)

    def heartbeat(self) -> sync_pb2.TableHeartbeat | None:
        """Watermarks and clocks that moved since the last one, of chunks that stand where the follower stands."""
        before = self._states()
        watermarks = self.table.watermarks()
        after = self._states()
        still = (before.incarnations == self._incarnations) & (before.versions == self._versions)
        still &= (after.incarnations == self._incarnations) & (after.versions == self._versions)
        numbers, indexes = self._numbers(watermarks)
        moved = still & (numbers >= 0)
        moved &= (numbers != self._claimed_sets) | (after.clocks_ms != self._claimed_clocks_ms)
        if not moved.any():
            return None
        self._claimed_sets[moved] = numbers[moved]
        self._claimed_clocks_ms[moved] = after.clocks_ms[moved]
        return sync_pb2.TableHeartbeat(
            table=self.table.spec.name,
            chunks=to_bytes(self._chunks[moved], "<u4"),
            incarnations=to_bytes(self._incarnations[moved], "<u8"),
            versions=to_bytes(self._versions[moved], "<u8"),
            clocks_ms=to_bytes(after.clocks_ms[moved], "<i8"),
            watermark_indexes=to_bytes(indexes[moved], "<u4"),
            watermark_sets=[
                sync_pb2.WatermarkSet(
                    positions=[store_pb2.StreamPosition(stream=name, position=at) for name, at in positions.items()]
                )
                for positions, _ in watermarks
            ],
        )

    def _numbers(self, watermarks: Sequence[tuple[Mapping[str, int], Sequence[int]]]) -> tuple[np.ndarray, np.ndarray]:
        """Per chunk the number of its set of watermarks, and the set's index in this list. Forgets all other sets."""
        numbers = np.full(len(self._chunks), -1, np.int64)
        indexes = np.zeros(len(self._chunks), np.uint32)
        kept: dict[bytes, int] = {}
        for index, (positions, chunks) in enumerate(watermarks):
            encoded = encode_watermarks(positions)
            kept[encoded] = self._number(encoded)
            at = np.asarray(chunks, np.int64) - self._range.start
            at = at[(at >= 0) & (at < len(numbers))]
            numbers[at], indexes[at] = kept[encoded], index
        self._set_numbers = kept
        return numbers, indexes

    def _number(self, encoded: bytes) -> int:
        """A number of its own for each set of watermarks, never used again for another."""
        number = self._set_numbers.get(encoded)
        if number is None:
            number = self._set_numbers[encoded] = self._next_set
            self._next_set += 1
        return number


def encode_watermarks(positions: Mapping[str, int]) -> bytes:
    """The watermark section of a delta with these positions; see docs/formats/delta.md."""
    names = sorted((stream.encode(), position) for stream, position in positions.items())
    section = b"".join(struct.pack("<H", len(name)) + name + struct.pack("<q", position) for name, position in names)
    return section + bytes(-len(section) % 8)


def _join(spans: np.ndarray, span: Span) -> np.ndarray:
    """Spans in rows, each with this one added."""
    lowest = np.minimum(spans, [span.first_ms, 0, span.oldest_event_ms or _NO_MS, 0])
    highest = np.maximum(spans, [0, span.last_ms, 0, span.newest_event_ms])
    return np.asarray(np.where([True, False, True, False], lowest, highest))


def _span(numbers: np.ndarray) -> Span | None:
    first, last, oldest, newest = numbers.tolist()
    return Span(first, last, oldest if newest else 0, newest) if last else None


def _common(a: range, b: range) -> range:
    """What two ranges share; empty ones lie within ``a``."""
    first = min(max(a.start, b.start), a.stop)
    return range(first, max(first, min(a.stop, b.stop)))
