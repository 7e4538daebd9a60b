"""Applies what one leader sends: the follower's half of Follow, without any gRPC.

Every delta is checked and applied by its table, whole or not at all, so damage is never visible; what was lost on the
way (a part, a delta that does not continue the chunk, a wrong checksum) is asked for again from the beginning of that
one chunk, and the others go on. Until it has come, deltas of that chunk that were already on their way are dropped, and
heartbeats do not make the rows younger.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from google.protobuf.message import DecodeError

from embedstore import dense
from embedstore._native import crc32c
from embedstore.deltas import delta_info
from embedstore.errors import (
    CorruptDeltaError,
    DeltaGapError,
    InvalidArgumentError,
    TableNotFoundError,
    WrongShardError,
)
from embedstore.server.arrivals import Arrivals
from embedstore.server.parts import Assembler, Cursors, from_bytes
from embedstore.spec import TableSpec
from embedstore.table_set import wall_clock_ms
from embedstore.v1 import spec_pb2, store_pb2, sync_pb2

if TYPE_CHECKING:
    from embedstore.freshness import Freshness
    from embedstore.interface import DenseSet
    from embedstore.table import Table

log = logging.getLogger(__name__)


class Holder(Protocol):
    """Where the tables of a follower live; shared by the intakes of all its leaders, safe from any thread."""

    def hold(self, leader: int, spec: TableSpec) -> None:
        """Make ``leader``'s table exist with this spec."""

    def release(self, leader: int, name: str) -> None:
        """``leader`` has no such table any more."""

    def held(self, leader: int) -> list[str]:
        """The tables that ``leader`` announced."""

    @property
    def freshness(self) -> Freshness:
        """What it measures."""

    def table(self, name: str) -> Table:
        """TableNotFoundError."""

    def set_dense(self, name: str, dense_set: DenseSet) -> None:
        """Publish a dense set, whole."""

    def lowest_watermarks(self, leader: int) -> Mapping[str, int] | None:
        """Of each stream that all chunks of ``leader`` know here the lowest of their watermarks; None: it has no chunk
        that is wanted here."""

    def opened(self, leader: int, streams: Mapping[str, tuple[int, int]]) -> None:
        """Every stream that ``leader`` has open: first position and generation."""


class Intake:
    """Takes the messages of one leader, over any number of calls. Belongs to the thread of its link; the counters may
    be read from any thread. ``complete_until_ms``: the time up to which its part is here already, from other leaders;
    ``completed`` says whether this one has sent all of it."""

    def __init__(
        self,
        holder: Holder,
        leader: int,
        *,
        only_tables: Sequence[str],
        embeddings_only: bool,
        sync_interval_ms: int,
        standby: sync_pb2.StandbyPlace | None = None,
        name: str = "",
        complete_until_ms: int = 0,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._holder = holder
        self._arrivals = Arrivals(holder, clock_ms)
        self._leader = leader
        self._only_tables = tuple(only_tables)
        self._embeddings_only = embeddings_only
        self._sync_interval_ms = sync_interval_ms
        self._standby = standby
        self._name = name
        self._specs: dict[str, TableSpec] = {}
        self._agreed: dict[str, tuple[TableSpec, Table]] = {}
        self._refused: set[str] = set()
        self._afresh: set[str] = set()
        self._dense_checksums: dict[str, int] = {}
        self._deltas: Assembler[tuple[str, int]] = Assembler()
        self._dense: Assembler[tuple[str, int]] = Assembler()
        self._awaited: set[tuple[str, int]] = set()
        self._asked: dict[str, set[int]] = defaultdict(set)
        self._sequence = 0
        self.deltas = 0
        self.delta_bytes = 0
        self.chunks_asked_again = 0
        self.complete_until_ms = complete_until_ms
        self.completed = False
        self.replaced_in = 0

    def begin(self) -> sync_pb2.FollowWants:
        """Start a call: what to ask for, from where the tables stand now."""
        self._deltas, self._dense = Assembler(), Assembler()
        self._awaited.clear()
        self._afresh.clear()
        self._asked.clear()
        self._sequence = 0
        tables = []
        for name in self._holder.held(self._leader):
            try:
                table = self._holder.table(name)
            except TableNotFoundError:
                continue
            states = table.chunk_states()
            chunks = np.arange(table.chunks.start, table.chunks.stop, dtype=np.uint32)
            tables.append(Cursors(chunks, states.incarnations, states.versions).to_proto(name))
        return sync_pb2.FollowWants(
            tables=tables,
            only_tables=self._only_tables,
            embeddings_only=self._embeddings_only,
            dense_checksums=self._dense_checksums,
            sync_interval_ms=self._sync_interval_ms,
            standby=self._standby,
            complete_until_ms=self.complete_until_ms,
            name=self._name,
        )

    def applied(self) -> sync_pb2.WatermarkSet | None:
        """What a standby acknowledges beside the messages themselves; None: this is not one, or lacks something."""
        if self._standby is None or not self.complete_until_ms:
            return None
        lowest = self._holder.lowest_watermarks(self._leader)
        if lowest is None:
            return None
        return sync_pb2.WatermarkSet(
            positions=[
                store_pb2.StreamPosition(stream=stream, position=position) for stream, position in lowest.items()
            ]
        )

    def begin_afresh(self, name: str) -> None:
        """The table is empty and has been asked for again: until its announcement, no claim that it is complete counts.
        May be called from any thread."""
        self._afresh.add(name)

    def take(self, message: sync_pb2.FollowResponse) -> list[sync_pb2.FollowRewind]:
        """Apply one message; returns what to ask for again. A repeated message changes nothing.

        InvalidArgumentError: the leader does not keep to the protocol, or a message is missing: give up the call.
        """
        if message.sequence <= self._sequence:
            return []
        if message.sequence > self._sequence + 1:
            raise InvalidArgumentError("FollowResponse.sequence", f"{message.sequence} came after {self._sequence}")
        self._sequence = message.sequence
        kind = message.WhichOneof("kind")
        if kind == "deltas":
            for part in message.deltas.parts:
                self._take_part(part)
            self._arrivals.came(message.deltas.sent_ms, measured=self.complete_until_ms > 0)
        elif kind == "probes":
            self._arrivals.look_for(message.probes)
        elif kind == "heartbeat":
            self._take_heartbeat(message.heartbeat)
        elif kind == "dense":
            self._take_dense(message.dense)
        elif kind == "table":
            self._announced(message.table.spec)
        elif kind == "dropped":
            self._dropped(message.dropped.table)
        elif kind == "streams":
            opened = {each.stream: (each.begin, each.generation) for each in message.streams.streams}
            self._holder.opened(self._leader, opened)
        asked, self._asked = self._asked, defaultdict(set)
        return [
            sync_pb2.FollowRewind(cursors=Cursors.at_zero(sorted(chunks)).to_proto(name))
            for name, chunks in asked.items()
        ]

    def _announced(self, message: spec_pb2.TableSpec) -> None:
        """A table that this release cannot hold is left out, and the rows here are then never said to be complete."""
        self._specs.pop(message.name, None)
        self._afresh.discard(message.name)
        try:
            spec = TableSpec.from_proto(message)
            self._holder.hold(self._leader, spec)
        except InvalidArgumentError as error:
            self._refused.add(message.name)
            log.error("table %s of leader %d cannot be followed: %s", message.name, self._leader, error)
        else:
            self._specs[message.name] = spec
            self._refused.discard(message.name)

    def _dropped(self, name: str) -> None:
        self._specs.pop(name, None)
        self._agreed.pop(name, None)
        self._afresh.discard(name)
        self._refused.discard(name)
        self._awaited = {key for key in self._awaited if key[0] != name}
        self._holder.release(self._leader, name)

    def _take_part(self, part: sync_pb2.DeltaPart) -> None:
        value = self._deltas.add((part.table, part.chunk), part.offset, part.length, part.data)
        self._ask_for_lost()
        table = self._mine(part.table) if value is not None else None
        if value is None or table is None:
            return
        key = part.table, part.chunk
        try:
            table.apply(value)
        except CorruptDeltaError:
            self._ask_again(key)
        except WrongShardError as error:
            raise InvalidArgumentError("DeltaPart.data", str(error)) from error
        except DeltaGapError:
            if key not in self._awaited:
                self._ask_again(key)
        else:
            self._awaited.discard(key)
            self.deltas += 1
            self.delta_bytes += len(value)
            self._arrivals.applied(table, delta_info(value), part)

    def _mine(self, name: str) -> Table | None:
        """The table, unless this leader's idea of it is not the one that is held (it was dropped or made anew)."""
        try:
            table = self._holder.table(name)
        except TableNotFoundError:
            return None
        spec = self._specs.get(name)
        if spec is None:
            return None
        agreed = self._agreed.get(name)
        if agreed is None or agreed[0] is not spec or agreed[1] is not table:
            if not same_rows(spec, table.spec):
                return None
            self._agreed[name] = spec, table
        return table

    def _ask_again(self, key: tuple[str, int]) -> None:
        name, chunk = key
        if name not in self._specs:
            return
        self._awaited.add(key)
        self._asked[name].add(chunk)
        self.chunks_asked_again += 1

    def _ask_for_lost(self) -> None:
        for key in self._deltas.lost:
            self._ask_again(key)
        self._deltas.lost.clear()

    def _take_heartbeat(self, heartbeat: sync_pb2.Heartbeat) -> None:
        self._deltas.abandon()
        self._ask_for_lost()
        for message in heartbeat.tables:
            table = self._mine(message.table)
            if table is not None:
                _raise_watermarks(table, message)
        if heartbeat.complete_until_ms and not (self._awaited or self._refused or self._afresh):
            self.complete_until_ms = heartbeat.complete_until_ms
            self.completed, self.replaced_in = True, heartbeat.replaced_in

    def _take_dense(self, part: sync_pb2.DensePart) -> None:
        value = self._dense.add((part.name, part.crc32c), part.offset, part.length, part.data)
        if self._dense.lost:
            raise InvalidArgumentError("DensePart", f"a part of dense set {part.name!r} is missing")
        if value is None:
            return
        if crc32c(value) != part.crc32c:
            raise InvalidArgumentError("DensePart.crc32c", f"dense set {part.name!r} arrived damaged")
        self._holder.set_dense(part.name, _decode_dense(part.name, value))
        self._dense_checksums[part.name] = part.crc32c


def _decode_dense(name: str, value: bytes) -> DenseSet:
    try:
        found, dense_set = dense.from_proto(store_pb2.DenseSet.FromString(value))
    except DecodeError as problem:
        raise InvalidArgumentError("DensePart.data", f"is not a dense set: {problem}") from problem
    if found != name:
        raise InvalidArgumentError("DensePart.name", f"{name!r} holds {found!r}")
    return dense_set


def same_rows(a: TableSpec, b: TableSpec) -> bool:
    """Whether two specs differ at most in what a table can change while it lives."""
    return a.lasting() == b.lasting()


def _raise_watermarks(table: Table, message: sync_pb2.TableHeartbeat) -> None:
    """Believe the claims about chunks that stand exactly where the leader says; the others will get a delta."""
    chunks = from_bytes("TableHeartbeat.chunks", message.chunks, "<u4")
    count = len(chunks)
    incarnations = from_bytes("TableHeartbeat.incarnations", message.incarnations, "<u8", count)
    versions = from_bytes("TableHeartbeat.versions", message.versions, "<u8", count)
    clocks_ms = from_bytes("TableHeartbeat.clocks_ms", message.clocks_ms, "<i8", count)
    indexes = from_bytes("TableHeartbeat.watermark_indexes", message.watermark_indexes, "<u4", count)
    sets = [{each.stream: each.position for each in entry.positions} for entry in message.watermark_sets]
    states, first = table.chunk_states(), table.chunks.start
    if count and (chunks.max() >= table.chunks.stop or chunks.min() < first or indexes.max() >= len(sets)):
        raise InvalidArgumentError("TableHeartbeat", f"names a chunk or a watermark set that {message.table!r} lacks")
    places = chunks.astype(np.int64) - first
    same = (states.incarnations[places] == incarnations) & (states.versions[places] == versions)
    for index, watermarks in enumerate(sets):
        at = np.flatnonzero(same & (indexes == index))
        table.set_watermarks_of(chunks[at].tolist(), watermarks, clocks_ms[at].tolist())
