"""LocalStore: the embedded store, and what a shard server serves. ``embedstore.open`` is its face.

Row writes are in :mod:`embedstore.writing`, the rules of streams, origins and generations in
:mod:`embedstore.origins`, those of the disk in :mod:`embedstore.checkpoint`. What is kept here:

- order of locks: gate (shared by pushes, alone for what changes the set of tables or streams), stream locks by name,
  the checkpointer's own, chunk locks. A pull takes only chunk locks; a checkpoint writes under no gate or stream lock;
- what an answer promises to be durable (streams, generations, tables, dense sets) is in the manifest before it is in
  memory, so that a failed write changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedstore import dense
from embedstore.durable import Durability, DurableTables, begin_where_they_stand, directory, standing
from embedstore.errors import (
    InvalidArgumentError,
    StaleDenseSetError,
    TableExistsError,
)
from embedstore.interface import (
    DenseSet,
    StreamState,
    check_position,
    check_stream_name,
)
from embedstore.manifest import MANIFEST_NAME, dense_key, stream_key
from embedstore.origins import Stream, is_client
from embedstore.spec import TableSpec
from embedstore.table import Table
from embedstore.table_set import TableSet, wall_clock_ms

__all__ = ["Durability", "LocalStore", "TableSet", "open", "wall_clock_ms"]


class LocalStore(DurableTables):
    """A store of this process; implements :class:`embedstore.interface.Store`. Any thread may call anything.

    ``path`` None keeps everything in memory: then ``checkpoint()`` only declares what is applied durable, so that a
    writer that waits for that can go on. ``shard`` of ``num_shards`` owns its share of every table's chunks; ids of
    other chunks raise :class:`WrongShardError`. ``clock_ms`` gives unix milliseconds and bounds event times.
    ``durability`` "sync": pushes without origins, assigns and deletes return when they are durable, many of them with
    one checkpoint; one that raises :class:`CheckpointFailedError` is applied, and durable with the next checkpoint that
    succeeds. Pushes with origins never wait: their streams can be read again. ``keep_checkpoints``: how many stay
    readable. ``progress`` is told in the opening thread how far the recovery is; what it raises ends the opening.
    """

    def _ensure_table(self, spec: TableSpec) -> None:
        _check_spec("tables", spec)
        if spec.name not in self.table_map():
            self.create_table(spec)
        elif self.table(spec.name).spec != spec:
            try:
                self.alter_table(spec)
            except InvalidArgumentError as problem:
                difference = problem.field.removeprefix("TableSpec.")
                raise _exists(self.table(spec.name).spec, spec, difference) from problem

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
                raise _exists(existing.spec, spec, difference)
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
                self._disk.drop_table(table, standing(idle))
            begin_where_they_stand(idle)
            self._streams.drop_durable(table)
            self.remove_table(table)
            self._tell_standbys()
        self._await_standbys()


def open(path: str | Path | None, tables: Sequence[TableSpec] = (), **options: Any) -> LocalStore:
    """A store of this process, durable in the directory ``path`` (None: memory only), with at least these tables.

    A table that exists already must have the same spec, except for lr, ttl_s, rows_max and bytes_max, which are
    altered; :class:`TableExistsError` names another difference. ``options``: see :class:`LocalStore`.
    """
    return LocalStore(path, tables, **options)


def is_store(path: str | Path) -> bool:
    """Whether the directory holds a store."""
    return (directory(path) / MANIFEST_NAME).exists()


def _exists(present: TableSpec, wanted: TableSpec, field: str) -> TableExistsError:
    return TableExistsError(wanted.name, field, f"{getattr(present, field)!r}, not {getattr(wanted, field)!r}")


def _check_spec(label: str, spec: TableSpec) -> None:
    if not isinstance(spec, TableSpec):
        raise InvalidArgumentError(label, f"must be a TableSpec, not {spec!r}")
