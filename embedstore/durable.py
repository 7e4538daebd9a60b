"""Tables that live on disk as well: recovery, checkpoints, what is durable where, and the end.

The rules of the disk are in :mod:`embedstore.checkpoint`, those of streams and origins in :mod:`embedstore.origins`,
the order of locks in :mod:`embedstore.store`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from embedstore import dense
from embedstore.checkpoint import Checkpointer
from embedstore.errors import (
    CorruptCheckpointError,
    InvalidArgumentError,
)
from embedstore.group_commit import GroupCommit
from embedstore.interface import (
    CheckpointResult,
    DenseSet,
    Origin,
    StreamState,
)
from embedstore.manifest import dense_key, stream_key
from embedstore.membership import Membership
from embedstore.origins import Stream, Watermarks, is_client
from embedstore.placement import check_shard, chunks_of_shard
from embedstore.recovery import Recovery
from embedstore.spec import TableSpec
from embedstore.table import Table
from embedstore.table_set import wall_clock_ms
from embedstore.v1 import manifest_pb2
from embedstore.writing import WritableTables

Durability = Literal["checkpoint", "sync"]


class DurableTables(WritableTables, ABC):
    """What :class:`embedstore.store.LocalStore` is made on; its parameters are told there. Any thread may call
    anything."""

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
            self._disk = Checkpointer(directory(path), shard, num_shards, keep=keep_checkpoints)
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

    @abstractmethod
    def _ensure_table(self, spec: TableSpec) -> None:
        """Have the table, as the store makes and alters them."""

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

    # -- streams

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
                self._disk.put(standing(idle))
            begin_where_they_stand(idle)
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


def directory(path: Any) -> Path:
    """Where a store is to lie; :class:`InvalidArgumentError` for what names no directory."""
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise InvalidArgumentError("path", f"must name a directory, or be None, not {path!r}")
    return Path(path)


def _group_commit(durability: Any, path: Any, commit: Callable[[], object]) -> GroupCommit | None:
    if durability not in ("checkpoint", "sync"):
        raise InvalidArgumentError("durability", f'must be "checkpoint" or "sync", not {durability!r}')
    if durability == "sync" and path is None:
        raise InvalidArgumentError("durability", '"sync" needs a directory')
    return GroupCommit(commit) if durability == "sync" else None


def standing(streams: Sequence[Stream]) -> dict[bytes, manifest_pb2.StreamManifest]:
    """Manifest entries of streams that no table holds the watermarks of: they begin where they stand."""
    return {stream_key(stream.name): stream.to_proto(stream.position) for stream in streams}


def begin_where_they_stand(streams: Sequence[Stream]) -> None:
    """As :func:`standing`, in memory."""
    for stream in streams:
        stream.begin = stream.position


def _lowest(table: Table) -> dict[str, int]:
    """The lowest watermark of each stream over a table's chunks."""
    sets = [known for known, _ in table.watermarks()]
    return {stream: min(known[stream] for known in sets if stream in known) for known in sets for stream in known}
