"""The tables of a follower, put together from several leaders.

Every table holds all chunks; each leader fills those it owns. A table lives as long as any leader has it. When one
leader drops or remakes it, a fresh table takes its place and the other leaders are asked for their part again, so that
no row of the old one can stay behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from embedstore.errors import ReadOnlyError
from embedstore.interface import StreamState
from embedstore.row_formats import as_row_format
from embedstore.server.intake import same_rows
from embedstore.spec import TableSpec
from embedstore.table import Table
from embedstore.table_set import TableSet, wall_clock_ms


class Replica(TableSet):
    """Implements :class:`embedstore.server.intake.Holder` and, with ``TableSet``, ``Reader``; every write raises
    ReadOnlyError. All methods may be called from any thread. Leaders are numbers here."""

    def __init__(
        self,
        *,
        embeddings_only: bool = True,
        rows: str | None = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._row_format = as_row_format(rows, embeddings_only=embeddings_only)
        super().__init__(clock_ms=clock_ms)
        self._embeddings_only = embeddings_only
        self._catalogue = threading.Lock()
        self._announced: dict[str, dict[int, TableSpec]] = {}
        self._opened: dict[int, Mapping[str, tuple[int, int]]] = {}
        self.inherited: set[str] = set()

    def hold(self, leader: int, spec: TableSpec) -> None:
        """Make ``leader``'s table exist."""
        with self._catalogue:
            announced = self._announced.setdefault(spec.name, {})
            announced[leader] = spec
            table = self.table_map().get(spec.name)
            if table is None:
                self.add_table(self._fresh(spec))
            elif not same_rows(table.spec, spec):
                self._begin_afresh(spec, leader)
            elif table.spec != spec:
                table.alter(spec)
        self.notify()

    def release(self, leader: int, name: str) -> None:
        """``leader`` dropped the table; nothing happens when it never had it."""
        with self._catalogue:
            announced = self._announced.get(name, {})
            if announced.pop(leader, None) is None:
                return
            if announced:
                self._begin_afresh(next(iter(announced.values())), leader)
            else:
                del self._announced[name]
                self.remove_table(name)

    def held(self, leader: int) -> list[str]:
        """The tables that ``leader`` announced."""
        with self._catalogue:
            return [name for name, announced in self._announced.items() if leader in announced]

    def forget_leaders(self) -> None:
        """The leaders will be others; the tables stay as they are until :meth:`take_stock`."""
        with self._catalogue:
            self.inherited.update(self._announced)
            self._announced.clear()
            self._opened.clear()

    def take_stock(self, leaders: Collection[int]) -> None:
        """These have sent everything they have: what is left of tables that earlier leaders had is gone."""
        with self._catalogue:
            for name in self.inherited & self.table_map().keys():
                announced = self._announced.get(name, {})
                if not announced:
                    self.remove_table(name)
                elif set(leaders) - announced.keys():
                    self._begin_afresh(next(iter(announced.values())))
            self.inherited.clear()

    def opened(self, leader: int, streams: Mapping[str, tuple[int, int]]) -> None:
        """``leader`` has these streams open."""
        with self._catalogue:
            self._opened[leader] = streams
        self.notify()

    def open_streams(self) -> dict[str, tuple[int, int]]:
        """What all leaders together have open; one that opened a stream later, or heard of an older writer, counts
        less."""
        merged: dict[str, tuple[int, int]] = {}
        with self._catalogue:
            for streams in self._opened.values():
                for name, (begin, generation) in streams.items():
                    first, newest = merged.get(name, (begin, generation))
                    merged[name] = min(first, begin), max(newest, generation)
        return merged

    def lowest_watermarks(self, leader: int) -> Mapping[str, int] | None:
        """See :class:`embedstore.server.intake.Holder`."""
        tables = self.table_map().values()
        sets: list[Mapping[str, int]] = []
        for table in tables:
            theirs = self._chunks_of(leader, table)
            sets += [known for known, chunks in table.watermarks() if any(chunk in theirs for chunk in chunks)]
        if not sets:
            return None if tables else {}
        streams = set(sets[0]).intersection(*sets[1:])
        return {stream: min(known[stream] for known in sets) for stream in sorted(streams)}

    def _chunks_of(self, leader: int, table: Table) -> range:
        """The chunks that the leader owns, as far as it is known."""
        return table.chunks

    def ask_again(self, leader: int, table: str) -> None:
        """Have the leader's part of a table sent from the beginning. Must not call back."""

    def _begin_afresh(self, spec: TableSpec, leader: int | None = None) -> None:
        self.add_table(self._fresh(spec))
        for other in self._announced[spec.name]:
            if other != leader:
                self.ask_again(other, spec.name)

    def _fresh(self, spec: TableSpec) -> Table:
        return Table(spec, embeddings_only=self._embeddings_only, rows=self._row_format)

    def stream_states(self) -> dict[str, StreamState]:
        """What its chunks have absorbed of each stream; a follower makes nothing durable and knows no writers."""
        positions: dict[str, set[int]] = {}
        for table in self.table_map().values():
            for watermarks, chunks in table.watermarks():
                for stream, position in watermarks.items() if chunks else ():
                    positions.setdefault(stream, set()).add(position)
        return {
            stream: StreamState(applied=min(found), durable=0, watermarks=tuple(sorted(found)), generation=0)
            for stream, found in positions.items()
        }

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ReadOnlyError("a follower takes no writes: they go to its leaders")

    push = assign = delete = put_dense = open_stream = _refuse
    create_table = alter_table = drop_table = sweep = _refuse
