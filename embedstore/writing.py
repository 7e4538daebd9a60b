"""Row writes of a store: push, assign and delete, each exactly once for its origins.

What is kept here: nothing is touched before everything that can be refused has been checked, and an origin moves the
watermarks of *all* tables, whether they have ids in the write or not. A failure between two tables (memory) leaves
chunks at different watermarks, which is sound: the same push again gives each chunk only what it lacks.

A write to a table whose rows may expire or be evicted is followed by a step of its sweep, of as many rows: so sweeping
keeps up with writing, and nobody has to ask for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from embedstore.errors import InvalidArgumentError
from embedstore.interface import Ids, Origin, PushResult, SweepResult, TablePush, as_ids, as_rows, check_sweep
from embedstore.origins import Stream, Streams, Watermarks, after, check_event_time, check_origins, is_client, is_new
from embedstore.table import PreparedPush, Table
from embedstore.table_set import TableSet, check_tables, wall_clock_ms

SWEEP_ROWS_MIN = 64
"""Rows that a write's step of the sweep looks at, at least."""

SWEEP_STEP_ROWS = 1 << 14
"""Rows between two looks at the clock, and what a sweep that a write waits for has ahead of it at most."""

_log = logging.getLogger(__name__)
_NO_IDS = np.empty(0, np.uint64)


class _Push(NamedTuple):
    table: Table
    prepared: PreparedPush

    @property
    def num_ids(self) -> int:
        return len(self.prepared.ids)

    def event_times(self) -> tuple[int, int]:
        """The oldest and the newest; 0: not known."""
        each = self.prepared.options["event_times_ms"]
        if each is None or not len(each):
            all_ms = max(0, self.prepared.options["event_time_ms"]) if self.num_ids else 0
            return all_ms, all_ms
        return int(np.min(each)), int(np.max(each))


class WritableTables(TableSet):
    """A :class:`TableSet` whose rows are changed by calls. Any thread may call anything.

    Where a method takes ``generations``, they are the writer's own, by stream; None is the owner of this store, whose
    generation is always the present one.
    """

    def __init__(self, *, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        super().__init__(clock_ms=clock_ms)
        self._streams = Streams()
        self._refusal: Callable[[], Exception] | None = None
        self._replaced_in = 0

    def check_writable(self) -> None:
        """Raise :class:`ClosedError` after :meth:`close`, and after :meth:`fence` what it was given. The gate is held,
        so that the answer stays true until the write is done."""
        self.check_open()
        if self._refusal is not None:
            raise self._refusal()

    @property
    def replaced_in(self) -> int:
        """See :meth:`TableSet.replaced_in`."""
        return self._replaced_in

    def fence(self, epoch: int, refusal: Callable[[], Exception] | None) -> None:
        """Refuse every write from now on with ``refusal()``, because others took over in ``epoch``; 0 and None: take
        them again. When this returns the last one has been applied."""
        with self._streams.gate.alone():
            self._refusal, self._replaced_in = refusal, epoch
        self.notify()

    def push(
        self,
        tables: Mapping[str, TablePush | tuple[Ids, Any]],
        *,
        origins: Sequence[Origin] = (),
        event_time_ms: int | None = None,
        generations: Mapping[str, int] | None = None,
    ) -> PushResult:
        """See :meth:`embedstore.interface.Store.push`."""
        check_event_time("event_time_ms", event_time_ms)
        check_origins(origins)
        self._open_client_streams(origins, lambda: self._checked_pushes(tables, event_time_ms))
        with self._streams.gate.shared():
            self.check_writable()
            now_ms = self._clock_ms()
            pushes = self._checked_pushes(tables, event_time_ms)

            def apply(table: Table) -> None:
                push = pushes.get(table.spec.name)
                if push is None:
                    table.push(_NO_IDS, _no_rows(table), now_ms=now_ms, origins=origins)
                else:
                    table.apply_push(push.prepared, origins)
                    table.changes.add(self._clock_ms(), *push.event_times())

            if origins:
                result = self._with_origins(origins, generations, apply)
            else:
                result = PushResult()
                for push in pushes.values():
                    apply(push.table)
            for push in pushes.values():
                _sweep_beside(push.table, push.num_ids)
        self.notify()
        self._settle(origins, sum(push.num_ids * push.table.row_bytes for push in pushes.values()))
        return result

    def _checked_pushes(self, tables: Any, event_time_ms: int | None) -> dict[str, _Push]:
        now_ms = self._clock_ms()
        return {
            name: self._checked_push(name, value, event_time_ms, now_ms) for name, value in check_tables(tables).items()
        }

    def _checked_push(self, name: str, value: Any, event_time_ms: int | None, now_ms: int) -> _Push:
        table = self.table(name)
        if not isinstance(value, TablePush):
            if not isinstance(value, tuple) or len(value) != 2:
                raise InvalidArgumentError(name, "must be a TablePush or a pair (ids, grads)")
            value = TablePush(*value)
        times = event_time_ms if value.event_times_ms is None else value.event_times_ms
        options = {"now_ms": now_ms, "counts": value.counts, "event_times_ms": times, "lr": value.lr}
        return _Push(table, table.prepare_push(value.ids, value.grads, **options))

    def _with_origins(
        self, origins: Sequence[Origin], generations: Mapping[str, int] | None, apply: Callable[[Table], None]
    ) -> PushResult:
        """Decide over all chunks, then let ``apply`` change every table. The gate is held shared."""
        with self._streams.writing(origins, generations) as streams:
            tables = list(self.table_map().values())
            sets: list[Watermarks] = [known for table in tables for known, _ in table.watermarks()]
            sets = sets or [_positions(streams)]
            lost, client = 0, is_client(origins[0].stream)
            if client:
                sets = _mended(origins[0], sets)
            new = is_new(origins, sets)
            if client:
                lost = self._mend(origins[0], tables)
            if new:
                for table in tables:
                    apply(table)
                for stream, origin in zip(streams, sorted(origins, key=lambda o: o.stream), strict=True):
                    stream.position = max(stream.position, origin.end)
                sets = after(origins, sets)
            states = {o.stream: self._streams.state(o.stream, [known[o.stream] for known in sets]) for o in origins}
        return PushResult(states, repeated=not new, lost_updates=lost)

    def assign(self, table: str, ids: Ids, rows: Any, *, event_time_ms: int | None = None) -> None:
        """See :meth:`embedstore.interface.Store.assign`."""
        self.assign_from(None, table, ids, rows, event_time_ms=event_time_ms)

    def assign_from(
        self, origin: Origin | None, table: str, ids: Ids, rows: Any, *, event_time_ms: int | None = None
    ) -> PushResult:
        """Assign as the next request of a client's own stream: applied once, however often it is sent."""
        check_event_time("event_time_ms", event_time_ms)
        keys = as_ids(ids, f"{table}.ids")

        def change(target: Table, now_ms: int, origins: Sequence[Origin]) -> None:
            target.assign(keys, values, now_ms=now_ms, event_time_ms=event_time_ms, origins=origins)

        values = as_rows(rows, len(keys), self.table(table).spec.dim, f"{table}.rows")
        if origin is not None and not np.isfinite(values).all():
            # The table checks this too, but by then the origin may have mended its stream.
            raise InvalidArgumentError(f"{table}.rows", "must be finite")
        return self._change_one(origin, table, keys, change, swept=len(keys), event_time_ms=event_time_ms)

    def delete(self, table: str, ids: Ids) -> int:
        """See :meth:`embedstore.interface.Store.delete`."""
        return self.delete_from(None, table, ids)[0]

    def delete_from(self, origin: Origin | None, table: str, ids: Ids) -> tuple[int, PushResult]:
        """Delete as the next request of a client's own stream; a repeat deletes nothing."""
        keys = as_ids(ids, f"{table}.ids")
        deleted = 0

        def change(target: Table, now_ms: int, origins: Sequence[Origin]) -> None:
            nonlocal deleted
            deleted = target.delete(keys, origins=origins)

        result = self._change_one(origin, table, keys, change)
        return deleted, result

    def _change_one(
        self,
        origin: Origin | None,
        name: str,
        ids: np.ndarray,
        change: Callable[[Table, int, Sequence[Origin]], None],
        *,
        swept: int = 0,
        event_time_ms: int | None = None,
    ) -> PushResult:
        origins = [] if origin is None else [origin]
        check_origins(origins)
        if origin is not None and not is_client(origin.stream):
            raise InvalidArgumentError("origin.stream", f"{origin.stream!r} is not a client's own stream")
        self._open_client_streams(origins, lambda: _check_owned(self.table(name), ids))
        with self._streams.gate.shared():
            self.check_writable()
            target, now_ms = self.table(name), self._clock_ms()
            if origins:
                _check_owned(target, ids)  # before the origin moves the watermarks of other tables

            def apply(table: Table) -> None:
                if table is target:
                    change(table, now_ms, origins)
                else:
                    table.push(_NO_IDS, _no_rows(table), now_ms=now_ms, origins=origins)

            if origins:
                result = self._with_origins(origins, None, apply)
            else:
                result = PushResult()
                change(target, now_ms, origins)
            target.changes.add(self._clock_ms(), event_time_ms or 0, event_time_ms or 0)
            _sweep_beside(target, swept)
        self.notify()
        self._settle(origins, swept * target.row_bytes)
        return result

    def _settle(self, origins: Sequence[Origin], num_bytes: int) -> None:
        """Called after each write of about so many bytes, with no lock held: the place to wait until it is durable."""

    def sweep(
        self, table: str | None = None, *, budget_ms: float | None = None, dry_run: bool = False
    ) -> dict[str, SweepResult]:
        """See :meth:`embedstore.interface.Store.sweep`; the budget is time of ``clock_ms``, and one for each table.

        Other calls go on meanwhile. What a sweep removes is durable with the next checkpoint; a kill before that brings
        expired rows back, which stay as invisible as they were.
        """
        self.check_open()
        check_sweep(budget_ms, dry_run)
        chosen = self.table_map() if table is None else {table: self.table(table)}
        swept = {}
        for place, (name, target) in enumerate(chosen.items()):
            if dry_run:
                swept[name] = target.sweep(SWEEP_STEP_ROWS, dry_run=True)
                continue
            share_ms = None if budget_ms is None else budget_ms / (len(chosen) - place)
            started_ms = self._clock_ms()
            swept[name] = self._sweep(target, share_ms)
            if budget_ms is not None:
                budget_ms = max(budget_ms - (self._clock_ms() - started_ms), 0)
            target.changes.add(self._clock_ms())
            self.notify()
        return swept

    def _sweep(self, table: Table, budget_ms: float | None) -> SweepResult:
        """Steps until the round ends or time is up, one at least. Without a budget a whole round, after what is left of
        the one that writes are at."""
        deadline_ms = float("inf") if budget_ms is None else self._clock_ms() + budget_ms
        rounds = 2 if budget_ms is None and table.mid_round else 1
        total = SweepResult(complete=False)
        while rounds:
            with self._streams.gate.shared():
                self.check_writable()
                step = table.sweep(SWEEP_STEP_ROWS)
            rounds -= step.complete
            total = replace(total + step, complete=not rounds)
            if self._clock_ms() >= deadline_ms:
                break
        return total

    def _open_client_streams(self, origins: Sequence[Origin], check: Callable[[], object]) -> None:
        """A client's own stream opens with its first request that ``check`` lets pass; the one that was idle for
        longest may have to go."""
        self.check_open()
        for origin in origins:
            if not is_client(origin.stream) or self._streams.used(origin.stream):
                continue
            with self._streams.gate.alone():
                self.check_writable()
                check()
                tables = self.table_map().values()
                for idle in self._streams.add_client(origin.stream):
                    for table in tables:
                        table.forget_stream(idle)
                for table in tables:
                    table.open_stream(origin.stream, 0)

    def _mend(self, origin: Origin, tables: Sequence[Table]) -> int:
        """Accept the gap that a restart left in a client's own stream; returns how many updates are gone."""
        lowest = origin.begin
        for table in tables:
            for known, chunks in table.watermarks():
                position = known[origin.stream]
                if position < origin.begin:
                    lowest = min(lowest, position)
                    for chunk in chunks:
                        table.set_watermarks(chunk, {origin.stream: origin.begin}, 0)
        stream = self._streams.get(origin.stream)
        if not tables:
            lowest = min(lowest, stream.position)
        stream.position = max(stream.position, origin.begin)
        return origin.begin - lowest


def _sweep_beside(table: Table, num_ids: int) -> None:
    if not num_ids or not table.sweeps:
        return
    try:
        table.sweep(max(SWEEP_ROWS_MIN, num_ids))
    except MemoryError:  # the write itself is done, and the next one tries again
        _log.warning("table %s: no memory for a step of its sweep", table.spec.name)


def _check_owned(table: Table, ids: np.ndarray) -> None:
    """Raise WrongShardError unless every id's chunk is one of the table's own."""
    if len(table.chunks) != table.spec.num_chunks:
        table.contains(ids)


def _no_rows(table: Table) -> np.ndarray:
    return np.empty((0, table.spec.dim), np.float32)


def _mended(origin: Origin, sets: Sequence[Watermarks]) -> list[Watermarks]:
    """The watermarks that there will be when the gap before ``origin`` has been accepted."""
    return [{**known, origin.stream: max(known[origin.stream], origin.begin)} for known in sets]


def _positions(streams: Sequence[Stream]) -> Watermarks:
    """The watermarks of a store without tables."""
    return {stream.name: stream.position for stream in streams}
