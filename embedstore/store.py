"""LocalStore: the embedded store, and what a shard server serves. ``embedstore.open`` is its face.

Row writes are in :mod:`embedstore.writing`, the rules of streams, origins and generations in
:mod:`embedstore.origins`, those of the disk in :mod:`embedstore.checkpoint`. What is kept here:

- order of locks: gate (shared by pushes, alone for what changes the set of tables or streams), stream locks by name,
  the checkpointer's own, chunk locks. A pull takes only chunk locks; a checkpoint writes under no gate or stream lock;
- what an answer promises to be durable (streams, generations, tables, dense sets) is in the manifest before it is in
  memory, so that a failed write changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from embedstore import dense
from embedstore.checkpoint import Checkpointer
from embedstore.errors import (
    CorruptCheckpointError,
    InvalidArgumentError,
    StaleDenseSetError,
    TableExistsError,
)
from embedstore.group_commit import GroupCommit
from embedstore.interface import (
    CheckpointResult,
    DenseSet,
    Origin,
    StreamState,
    check_position,
    check_stream_name,
)
from embedstore.manifest import MANIFEST_NAME, dense_key, stream_key
from embedstore.membership import Membership
from embedstore.origins import Stream, Watermarks, is_client
from embedstore.placement import check_shard, chunks_of_shard
from embedstore.recovery import Recovery
from embedstore.spec import TableSpec
from embedstore.table import Table
from embedstore.table_set import TableSet, wall_clock_ms
from embedstore.v1 import manifest_pb2
from embedstore.writing import WritableTables

__all__ = ["LocalStore", "TableSet", "open", "wall_clock_ms"]

Durability = Literal["checkpoint", "sync"]


class LocalStore(WritableTables):
    """A store of this process; implements :class:`embedstore.interface.Store`. Any thread may call anything.

    ``path`` None keeps everything in memory: then ``checkpoint()`` only declares what is applied durable, so that a
    writer that waits for that can go on. ``shard`` of ``num_shards`` owns its share of every table's chunks; ids of
    other chunks raise :class:`WrongShardError`. ``clock_ms`` gives unix milliseconds and bounds event times.
    ``durability`` "sync": pushes without origins, assigns and deletes return when they are durable, many of them with
    one checkpoint; one that raises :class:`CheckpointFailedError` is applied, and durable with the next checkpoint that
    succeeds. Pushes with origins never wait: their streams can be read again. ``keep_checkpoints``: how many stay
    readable. ``progress`` is told in the opening thread how far the recovery is; what it raises ends the opening.
    """

    def __init__(
        self,
        path: str | Path | None,
        tables: Sequence[TableSpec] = (),
        *,
        shard: int = 0,
        num_shards: int = 1,
        clock_ms: Callable[[], int] = wall_clock_ms,
        durability: Durability = "checkpoint",
        keep_checkpoints: int = 1,
        progress: Callable[[Recovery], None] | None = None,
    ) -> None:
        super().__init__(clock_ms=clock_ms)
        check_shard(shard, num_shards)
        self._shard, self._num_shards = shard, num_shards
        self._dense_lock = threading.Lock()
        self._closing = threading.Lock()
        self._last_checkpoint_ms = 0
        self._changed_lock = threading.Lock()
        self._changed_bytes = 0
        self.membership = Membership()
        self._group_commit = _group_commit(durability, path, self._checkpoint)
        self._disk = None
        if path is not None:
            self._disk = Checkpointer(_directory(path), shard, num_shards, keep=keep_checkpoints)
        try:
            self._recover(progress)
            if not isinstance(tables, Sequence):
                raise InvalidArgumentError("tables", f"must be a sequence of TableSpec, not {type(tables).__name__}")
            for spec in tables:
                self._ensure_table(spec)
        except BaseException:
            self._closed = True
            if self._disk is not None:
                self._disk.close()
            raise

    # -- opening

    @property
    def num_shards(self) -> int:
        """How many shards the store is one of."""
        return self._num_shards

    def _owned(self, spec: TableSpec) -> range:
        if spec.num_chunks < self._num_shards:
            raise InvalidArgumentError(
                "TableSpec.num_chunks", f"{spec.num_chunks} is below the number of shards, {self._num_shards}"
            )
        return chunks_of_shard(self._shard, self._num_shards, spec.num_chunks)

    def _recover(self, progress: Callable[[Recovery], None] | None) -> None:
        if self._disk is None:
            return
        tables = self._disk.recover(self._owned, *([] if progress is None else [progress]))
        contents = self._disk.take_contents()
        self.membership = Membership(
            self._disk.put, contents.topology, contents.previous_topology, contents.acquaintances
        )
        self._take_in(tables, contents.streams)
        for entry in contents.dense:
            try:
                self.set_dense(*dense.from_proto(entry))
            except InvalidArgumentError as problem:
                raise CorruptCheckpointError(f"dense set {entry.name!r}", str(problem)) from problem
        self._streams.set_durable(self._disk.durable())

    def _take_in(self, tables: Sequence[Table], streams: Iterable[manifest_pb2.StreamManifest]) -> None:
        """Hold tables that come with rows and watermarks. A stream that only chunks know begins at 0."""
        begins = {message.stream: message for message in streams}
        for name in sorted({name for table in tables for known, _ in table.watermarks() for name in known}):
            if name not in begins:
                begins[name] = manifest_pb2.StreamManifest(stream=name)
        for table in tables:
            for name, message in begins.items():
                table.open_stream(name, message.begin)
        for name, message in begins.items():
            known = [watermarks[name] for table in tables for watermarks, _ in table.watermarks()]
            self._streams.add(name, message.begin, message.generation, max(known, default=message.begin))
        for table in tables:
            self.add_table(table)

    def take_over(
        self,
        tables: Sequence[Table],
        streams: Sequence[manifest_pb2.StreamManifest],
        dense_sets: Mapping[str, DenseSet],
    ) -> None:
        """Go on with what a standby has received: each chunk as it is, with its own watermarks, in a new history whose
        parent is the leader's. Durable when it returns. :class:`InvalidArgumentError` unless the store is empty."""
        with self._streams.gate.alone():
            self.check_writable()
            if self.table_map() or self._streams.opened() or self.dense_sets():
                raise InvalidArgumentError("path", "must name an empty directory: it holds a store already")
            for table in tables:
                table.branch()
            if self._disk is not None:
                entries: dict[bytes, Any] = {stream_key(message.stream): message for message in streams}
                entries |= {dense_key(name): dense.to_proto(name, each) for name, each in dense_sets.items()}
                self._disk.put(entries)
                for table in tables:
                    self._disk.take_over(table)
            self._take_in(tables, streams)
            for name, each in dense_sets.items():
                self.set_dense(name, each)
        self._checkpoint()

    def _ensure_table(self, spec: TableSpec) -> None:
        _check_spec("tables", spec)
        if spec.name not in self.table_map():
            self.create_table(spec)
        elif self.table(spec.name).spec != spec:
            try:
                self.alter_table(spec)
            except InvalidArgumentError as problem:
                raise TableExistsError(spec.name, problem.field.removeprefix("TableSpec.")) from problem

    # -- streams

    def open_stream(self, stream: str, position: int, generation: int = 0) -> StreamState:
        """See :meth:`embedstore.interface.Store.open_stream`; in the manifest and at the listed standbys before it is
        answered.

        ``generation`` 0 takes the next one; another must be above the present one (:class:`StaleGenerationError`).
        """
        check_stream_name("stream", stream)
        check_position("position", position)
        if is_client(stream):
            raise InvalidArgumentError("stream", f"{stream!r} is a client's own stream, which opens by itself")
        with self._streams.gate.alone():
            self.check_writable()
            taken = self._streams.next_generation(stream, generation)
            begin = self._streams.get(stream).begin if self._streams.knows(stream) else int(position)
            if self._disk is not None:
                self._disk.put({stream_key(stream): Stream(stream, begin, begin, taken).to_proto(begin)})
            self._streams.add(stream, begin).generation = taken
            for table in self.table_map().values():
                table.open_stream(stream, begin)
            self._tell_standbys()
        self._await_standbys()
        return self._state(stream)

    def watermarks(self) -> dict[str, StreamState]:
        """See :meth:`embedstore.interface.Store.watermarks`; clients' own streams are not among them."""
        self.check_open()
        return self.stream_states()

    def stream_states(self) -> dict[str, StreamState]:
        """Where every opened stream stands."""
        sets = self._watermark_sets()
        return {
            stream.name: self._streams.state(
                stream.name, [known[stream.name] for known in sets if stream.name in known]
            )
            for stream in self._streams.opened()
        }

    def open_streams(self) -> dict[str, tuple[int, int]]:
        """First position and generation of every stream that was opened by name."""
        return {stream.name: (stream.begin, stream.generation) for stream in self._streams.opened()}

    def standby_applied(self, address: str, watermarks: Mapping[str, int], seen_tick: int) -> None:
        """From now on what is durable is so at the standby too; see :meth:`Streams.standby_applied`."""
        self._streams.standby_applied(address, watermarks, seen_tick)
        self.membership.meet(address)

    def _tell_standbys(self) -> None:
        """A stream or a table has come, changed or gone. The gate is held alone."""
        self.notify()
        self._streams.tell_standbys(self.tick())

    def _await_standbys(self) -> None:
        """Nobody is told of it before the listed standbys have it: whichever takes over knows it."""
        self._streams.await_standbys(lambda: bool(self.replaced_in))
        with self._streams.gate.shared():
            self.check_writable()

    def standbys(self) -> tuple[str, ...]:
        """Addresses of the standbys that what is durable waits for."""
        return self._streams.standbys()

    def _state(self, stream: str) -> StreamState:
        return self._streams.state(stream, [known[stream] for known in self._watermark_sets() if stream in known])

    def _watermark_sets(self) -> list[Watermarks]:
        return [known for table in self.table_map().values() for known, _ in table.watermarks()]

    # -- dense sets

    def put_dense(
        self,
        dense_set: str,
        tensors: Mapping[str, Any],
        position: Mapping[str, int],
        generations: Mapping[str, int] | None = None,
    ) -> int:
        """See :meth:`embedstore.interface.Store.put_dense`; durable when it returns."""
        self.check_open()
        dense.check_dense_name("dense_set", dense_set)
        offered = dense.freeze(tensors, position, 0)
        entry = None if self._disk is None else dense.to_proto(dense_set, offered)
        with self._streams.gate.shared(), self._dense_lock:
            self.check_writable()
            for stream in offered.position:
                self._streams.check_generation(stream, generations)
            published = self.dense_sets().get(dense_set, DenseSet({}, {}, 0))
            for stream, at in offered.position.items():
                if at < published.position.get(stream, 0):
                    raise StaleDenseSetError(dense_set, stream, at, published.position[stream])
            new = replace(offered, version=published.version + 1)
            if self._disk is not None and entry is not None:
                entry.version = new.version
                self._disk.put({dense_key(dense_set): entry})
            self.set_dense(dense_set, new)
        return new.version

    # -- tables

    def create_table(self, spec: TableSpec) -> bool:
        """See :meth:`embedstore.interface.Store.create_table`; in the manifest and at the listed standbys before it is
        answered."""
        self.check_open()
        _check_spec("spec", spec)
        owned = self._owned(spec)
        with self._streams.gate.alone():
            self.check_writable()
            existing = self.table_map().get(spec.name)
            if existing is None:
                self._add_new(Table(spec, chunks=owned))
            elif (difference := spec.first_difference(existing.spec)) is not None:
                raise TableExistsError(spec.name, difference)
        self._await_standbys()
        return existing is None

    def _add_new(self, table: Table) -> None:
        """The gate is held alone."""
        beginnings = self._streams.positions()
        table.begin_at(beginnings)
        if self._disk is not None:
            self._disk.add_table(table, beginnings)
        self._streams.add_durable(table.spec.name, beginnings)
        self.add_table(table)
        self._tell_standbys()

    def alter_table(self, spec: TableSpec) -> None:
        """See :meth:`embedstore.interface.Store.alter_table`; in the manifest and at the listed standbys before it is
        answered."""
        self.check_open()
        _check_spec("spec", spec)
        with self._streams.gate.alone():
            self.check_writable()
            table = self.table(spec.name)
            difference = spec.lasting().first_difference(table.spec.lasting())
            if difference is not None:
                raise InvalidArgumentError(f"TableSpec.{difference}", "cannot be altered")
            table.check_limits(spec)
            if self._disk is None:
                table.alter(spec)
            else:
                self._disk.alter_table(table, spec)
            self._tell_standbys()
        self._await_standbys()

    def drop_table(self, table: str) -> None:
        """See :meth:`embedstore.interface.Store.drop_table`; gone from the manifest and the listed standbys before
        it is answered."""
        with self._streams.gate.alone():
            self.check_writable()
            self.table(table)
            idle = self._streams.opened() if len(self.table_map()) == 1 else []
            if self._disk is not None:
                self._disk.drop_table(table, _standing(idle))
            _begin_where_they_stand(idle)
            self._streams.drop_durable(table)
            self.remove_table(table)
            self._tell_standbys()
        self._await_standbys()

    # -- durability

    def checkpoint(self) -> CheckpointResult:
        """See :meth:`embedstore.interface.Store.checkpoint`; :class:`CheckpointFailedError` loses nothing."""
        self.check_open()
        return self._checkpoint()

    def _settle(self, origins: Sequence[Origin], num_bytes: int) -> None:
        with self._changed_lock:
            self._changed_bytes += num_bytes
        if self._group_commit is not None and all(is_client(origin.stream) for origin in origins):
            self._group_commit.wait()
            # Who takes over from a leader that has been told has it anyway. A refusal would say that nothing was done.
            self._streams.await_applied(origins, lambda: bool(self.replaced_in))

    def changed_bytes(self) -> int:
        """About how many bytes of rows were written since the last checkpoint; a row counts as often as it was."""
        return self._changed_bytes

    def _checkpoint(self) -> CheckpointResult:
        started_ms = self._clock_ms()
        num_chunks, num_bytes, changed_bytes = 0, 0, self._changed_bytes
        if self._disk is not None:
            num_chunks, num_bytes = self._disk.checkpoint(started_ms)
        with self._streams.gate.alone():
            idle = [] if self.table_map() else self._streams.opened()
            if self._disk is not None:
                self._disk.put(_standing(idle))
            _begin_where_they_stand(idle)
            if self._disk is None:
                self._streams.set_durable({name: _lowest(table) for name, table in self.table_map().items()})
            else:
                self._streams.set_durable(self._disk.durable())
        ended_ms = self._clock_ms()
        self._last_checkpoint_ms = ended_ms
        with self._changed_lock:
            self._changed_bytes -= changed_bytes
        return CheckpointResult(num_chunks, num_bytes, max(ended_ms - started_ms, 0) / 1000)

    def last_checkpoint_number(self) -> int:
        """How many checkpoints the directory has had; 0 without one."""
        return 0 if self._disk is None else self._disk.last_checkpoint

    def last_checkpoint_s(self) -> float:
        """Unix seconds of the last checkpoint of this process; 0: none."""
        return self._last_checkpoint_ms / 1000

    def corrupt_chunks(self) -> int:
        """Chunks that fell back at the start because a blob of theirs was unreadable."""
        return 0 if self._disk is None else len(self._disk.corrupt)

    def abandon(self) -> None:
        """Release everything without a checkpoint, and remove what is on disk: of a store that never came to be."""
        with self._closing:
            self._closed = True
            if self._disk is not None:
                self._disk.remove()
            super().close()

    def close(self) -> None:
        """Checkpoint, then release everything. When that fails the store stays open and nothing is lost."""
        with self._closing:
            if self._closed:
                return
            with self._streams.gate.alone():
                self._closed = True
            try:
                self._checkpoint()
            except BaseException:
                self._closed = False
                raise
            if self._disk is not None:
                self._disk.close()
            super().close()
            self._tables = {}


def open(path: str | Path | None, tables: Sequence[TableSpec] = (), **options: Any) -> LocalStore:
    """A store of this process, durable in the directory ``path`` (None: memory only), with at least these tables.

    A table that exists already must have the same spec, except for lr, ttl_s, rows_max and bytes_max, which are
    altered; :class:`TableExistsError` names another difference. ``options``: see :class:`LocalStore`.
    """
    return LocalStore(path, tables, **options)


def is_store(path: str | Path) -> bool:
    """Whether the directory holds a store."""
    return (_directory(path) / MANIFEST_NAME).exists()


def _directory(path: Any) -> Path:
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise InvalidArgumentError("path", f"must name a directory, or be None, not {path!r}")
    return Path(path)


def _group_commit(durability: Any, path: Any, commit: Callable[[], object]) -> GroupCommit | None:
    if durability not in ("checkpoint", "sync"):
        raise InvalidArgumentError("durability", f'must be "checkpoint" or "sync", not {durability!r}')
    if durability == "sync" and path is None:
        raise InvalidArgumentError("durability", '"sync" needs a directory')
    return GroupCommit(commit) if durability == "sync" else None


def _check_spec(label: str, spec: TableSpec) -> None:
    if not isinstance(spec, TableSpec):
        raise InvalidArgumentError(label, f"must be a TableSpec, not {spec!r}")


def _standing(streams: Sequence[Stream]) -> dict[bytes, manifest_pb2.StreamManifest]:
    """Manifest entries of streams that no table holds the watermarks of: they begin where they stand."""
    return {stream_key(stream.name): stream.to_proto(stream.position) for stream in streams}


def _begin_where_they_stand(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.begin = stream.position


def _lowest(table: Table) -> dict[str, int]:
    """The lowest watermark of each stream over a table's chunks."""
    sets = [known for known, _ in table.watermarks()]
    return {stream: min(known[stream] for known in sets if stream in known) for known in sets for stream in known}
