"""What one follower is to be sent next: the leader's half of Follow, without any gRPC.

A :class:`Feed` remembers per chunk the cursor that its follower will have when everything sent so far is applied, and
compares it, vectorised, with where the chunk stands. A round sends one delta of each chunk that moved, unless it had
one in the same interval of ``sync_interval_ms``; it then waits for the next and holds back no other. Intervals begin at
the same moments in all feeds: whoever keeps up is then sent what the others are, made once.

Two rules keep what followers know true:

- A delta is taken under the chunk's lock and carries its own watermarks. A heartbeat claims watermarks for a chunk only
  together with the cursor that they belong to: the chunk's state is read before and after its watermarks, and a chunk
  that moved in between is left out.
- ``complete_until_ms`` is the latest moment before which nothing is unsent: the beginning of the round, or, for a chunk
  that waits for its turn, the beginning of the last round that found it unchanged or sent it.

A feed belongs to the thread of its call. It holds arrays of a few dozen bytes a chunk, and while it is suspended
between two messages at most one delta.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedstore import dense
from embedstore._native import crc32c
from embedstore.changes import Span
from embedstore.errors import InvalidArgumentError
from embedstore.freshness import TRAINED_TO_PUBLISHED
from embedstore.placement import check_shard, chunks_of_shard
from embedstore.server.parts import PART_BYTES_MAX, Cursors, split
from embedstore.server.shared_deltas import SharedDeltas
from embedstore.server.table_feed import NEVER_MS, TableFeed
from embedstore.v1 import sync_pb2

if TYPE_CHECKING:
    from embedstore.interface import DenseSet
    from embedstore.spec import TableSpec
    from embedstore.table_set import TableSet

SYNC_INTERVAL_MS_MAX = 3_600_000
SHARED_PART = 4
"""A delta made for another follower within this part of ``sync_interval_ms`` is new enough."""


@dataclass(frozen=True)
class Pace:
    """How often things are sent. ``sync_interval_ms``: in each interval of so long, a chunk has one delta at most; also
    the shortest time between two heartbeats when watermarks moved; followers may ask for longer ones.
    ``heartbeat_ms``: longest time between two heartbeats."""

    sync_interval_ms: int = 200
    heartbeat_ms: int = 500

    def __post_init__(self) -> None:
        for name in ("sync_interval_ms", "heartbeat_ms"):
            if not 1 <= getattr(self, name) <= SYNC_INTERVAL_MS_MAX:
                raise InvalidArgumentError(name, f"must be in [1, {SYNC_INTERVAL_MS_MAX}], not {getattr(self, name)}")


class Feed:
    """Everything that one follower is to be sent.

    ``clock_ms``: wall clock; ``monotonic_ms``: the clock that intervals are measured with. InvalidArgumentError names
    what is wrong with ``wants``.
    """

    def __init__(
        self,
        tables: TableSet,
        wants: sync_pb2.FollowWants,
        pace: Pace,
        *,
        clock_ms: Callable[[], int],
        monotonic_ms: Callable[[], int],
        deltas: SharedDeltas | None = None,
    ) -> None:
        self._source = tables
        self._shared = deltas
        self._clock_ms = clock_ms
        self._monotonic_ms = monotonic_ms
        self._pace = Pace(max(wants.sync_interval_ms, pace.sync_interval_ms), pace.heartbeat_ms)
        self._only = frozenset(wants.only_tables)
        self._embeddings_only = wants.embeddings_only
        self._standby = wants.standby if wants.HasField("standby") else None
        if self._standby is not None:
            check_shard(self._standby.shard, self._standby.num_shards)
        self._streams: sync_pb2.OpenStreams | None = None
        self._wanted = {each.table: Cursors.from_proto(each) for each in wants.tables}
        self._tables: dict[str, TableFeed] = {}
        self._dense_checksums = dict(wants.dense_checksums)
        self._dense: dict[str, weakref.ref[DenseSet]] = {}
        self._heartbeat_ms = NEVER_MS
        self._complete_ms = 0
        self._replaced_in = 0
        self._moved = True
        self._since_ms = wants.complete_until_ms or None
        self._probe, _ = tables.freshness.probes_after(0)

    def round(self) -> Iterator[sync_pb2.FollowResponse]:
        """Send what is due. Between two messages the caller may wait as long as it likes."""
        replaced_in = self._source.replaced_in
        as_of_ms = self._source.as_of_ms(self._clock_ms())
        now_ms = self._monotonic_ms()
        self._moved = True
        yield from self._opened_streams()
        yield from self._catalogue()
        yield from self._deltas(now_ms, as_of_ms)
        yield from self._probes()
        yield from self._dense_sets()
        complete_ms = min([as_of_ms, *(feed.complete_until_ms for feed in self._tables.values())])
        yield from self._heartbeats(complete_ms, replaced_in if complete_ms == as_of_ms else 0)

    def idle_ms(self) -> int:
        """How long nothing is due unless something changes."""
        now_ms = self._monotonic_ms()
        interval_ms = self._pace.sync_interval_ms if self._moved else self._pace.heartbeat_ms
        due = [feed.next_due_ms for feed in self._tables.values() if feed.next_due_ms is not None]
        return max(0, min([self._heartbeat_ms + interval_ms, *due]) - now_ms)

    def rewind(self, message: sync_pb2.FollowRewind) -> None:
        """The follower stands elsewhere than it was thought to; a table that is not being sent is ignored."""
        name, cursors = message.cursors.table, Cursors.from_proto(message.cursors)
        if name in self._tables:
            self._tables[name].rewind(cursors, whole_table=message.whole_table)
        elif name in self._wanted:
            self._wanted[name] = cursors if message.whole_table else self._wanted[name].then(cursors)

    def _opened_streams(self) -> Iterator[sync_pb2.FollowResponse]:
        if self._standby is None:
            return
        streams = sync_pb2.OpenStreams(
            streams=[
                sync_pb2.OpenStreamRecord(stream=name, begin=begin, generation=generation)
                for name, (begin, generation) in sorted(self._source.open_streams().items())
            ]
        )
        if streams != self._streams:
            self._streams = streams
            yield sync_pb2.FollowResponse(streams=streams)

    def _chunks_for(self, spec: TableSpec) -> range | None:
        """The chunks that a standby wants; None: all."""
        if self._standby is None:
            return None
        return chunks_of_shard(self._standby.shard, self._standby.num_shards, spec.num_chunks)

    def _catalogue(self) -> Iterator[sync_pb2.FollowResponse]:
        """Tables that went, came, or changed their spec."""
        tables = {
            name: table for name, table in self._source.table_map().items() if not self._only or name in self._only
        }
        for name in [name for name in (*self._wanted, *self._tables) if name not in tables]:
            self._wanted.pop(name, None)
            self._leave(name)
            yield _dropped(name)
        for name, table in tables.items():
            feed = self._tables.get(name)
            if feed is not None and feed.table is not table:
                self._leave(name)
                yield _dropped(name)
                feed = None
            if feed is None:
                if table.embeddings_only and not self._embeddings_only:
                    problem = f"table {name!r} has nothing but embeddings here"
                    raise InvalidArgumentError("FollowWants.embeddings_only", problem)
                cursors = self._wanted.pop(name, None)
                feed = self._tables[name] = TableFeed(
                    table,
                    cursors,
                    embeddings_only=self._embeddings_only,
                    only_chunks=self._chunks_for(table.spec),
                    deltas=self._shared,
                    since_ms=self._since_ms,
                )
            if feed.spec != table.spec:
                feed.spec = table.spec
                announcement = sync_pb2.TableAnnouncement(spec=feed.spec.to_proto())
                yield sync_pb2.FollowResponse(table=announcement)

    def _leave(self, name: str) -> None:
        """The table is gone."""
        feed = self._tables.pop(name, None)
        if feed is not None and self._shared is not None:
            self._shared.forget_table(feed.table)

    def _deltas(self, now_ms: int, as_of_ms: int) -> Iterator[sync_pb2.FollowResponse]:
        bundle, size = sync_pb2.FollowResponse(), 0
        changes: Counter[tuple[str, Span]] = Counter()
        interval_ms = self._pace.sync_interval_ms
        for name, feed in self._tables.items():
            for index in feed.due(now_ms, interval_ms, as_of_ms, self._clock_ms()).tolist():
                delta = feed.delta(index, self._monotonic_ms(), as_of_ms, self._clock_ms(), interval_ms // SHARED_PART)
                for offset, data in split(delta.data):
                    if size and size + len(data) > PART_BYTES_MAX:
                        yield from self._publish(bundle, changes)
                        bundle, size = sync_pb2.FollowResponse(), 0
                    part = bundle.deltas.parts.add(
                        table=name, chunk=delta.chunk, offset=offset, length=len(delta.data), data=data
                    )
                    size += len(data)
                if delta.span is not None:
                    part.oldest_event_ms = delta.span.oldest_event_ms
                    part.newest_event_ms = delta.span.newest_event_ms
                    changes[name, delta.span] += delta.changes
        if size:
            yield from self._publish(bundle, changes)

    def _publish(
        self, bundle: sync_pb2.FollowResponse, changes: Counter[tuple[str, Span]]
    ) -> Iterator[sync_pb2.FollowResponse]:
        """Send it, and count how long the changes in it had waited. The caller may put a later ``sent_ms`` in."""
        bundle.deltas.sent_ms = self._clock_ms()
        yield bundle
        sent_ms = bundle.deltas.sent_ms
        for (name, span), count in changes.items():
            self._source.freshness.observe_between_ms(
                TRAINED_TO_PUBLISHED, name, sent_ms - span.last_ms, sent_ms - span.first_ms, count
            )
        changes.clear()

    def _probes(self) -> Iterator[sync_pb2.FollowResponse]:
        self._probe, probes = self._source.freshness.probes_after(self._probe)
        wanted = [probe for probe in probes if probe.table in self._tables]
        if wanted:
            messages = [sync_pb2.Probe(table=name, id=id_, event_time_ms=time_ms) for name, id_, time_ms in wanted]
            yield sync_pb2.FollowResponse(probes=sync_pb2.Probes(probes=messages))

    def _dense_sets(self) -> Iterator[sync_pb2.FollowResponse]:
        for name, dense_set in self._source.dense_sets().items():
            seen = self._dense.get(name)
            if seen is not None and seen() is dense_set:
                continue
            # Versions say nothing across a leader that begins anew, which a follower of this one does not hear of.
            self._dense[name] = weakref.ref(dense_set)
            encoded = dense.to_proto(name, dense_set).SerializeToString()
            checksum = crc32c(encoded)
            if self._dense_checksums.get(name) == checksum:
                continue
            self._dense_checksums[name] = checksum
            for offset, data in split(encoded):
                part = sync_pb2.DensePart(name=name, offset=offset, length=len(encoded), crc32c=checksum, data=data)
                yield sync_pb2.FollowResponse(dense=part)

    def _heartbeats(self, complete_ms: int, replaced_in: int) -> Iterator[sync_pb2.FollowResponse]:
        now_ms = self._monotonic_ms()
        late = now_ms >= self._heartbeat_ms + self._pace.heartbeat_ms
        first = (bool(complete_ms) and not self._complete_ms) or replaced_in != self._replaced_in
        if not late and not first and now_ms < self._heartbeat_ms + self._pace.sync_interval_ms:
            return
        moved: list[sync_pb2.TableHeartbeat] = []
        size = 0
        for feed in self._tables.values():
            message = feed.heartbeat()
            if message is None:
                continue
            if moved and size + message.ByteSize() > PART_BYTES_MAX:
                yield sync_pb2.FollowResponse(heartbeat=sync_pb2.Heartbeat(tables=moved))
                moved, size = [], 0
            moved.append(message)
            size += message.ByteSize()
        self._moved = False
        if moved or late or first:
            self._heartbeat_ms = now_ms
            self._complete_ms, self._replaced_in = complete_ms, replaced_in
            heartbeat = sync_pb2.Heartbeat(complete_until_ms=complete_ms, replaced_in=replaced_in, tables=moved)
            yield sync_pb2.FollowResponse(heartbeat=heartbeat)


def _dropped(name: str) -> sync_pb2.FollowResponse:
    return sync_pb2.FollowResponse(dropped=sync_pb2.TableDropped(table=name))
