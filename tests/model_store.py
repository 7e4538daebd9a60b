"""A small, slow and obvious store: what every real store must be indistinguishable from.

Tables of ``model_table``, one watermark map each, one snapshot for what a checkpoint holds. No threads, no files, no
native code; ``crash()`` is what is left after a kill. The sweeps that ride on writes are whole rounds here, as they are
in the real store while a table has no more than a few dozen rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from model_table import ModelTable, rows_cap

from embedstore.errors import (
    ClosedError,
    DenseSetNotFoundError,
    GapError,
    InvalidArgumentError,
    StaleDenseSetError,
    StaleGenerationError,
    TableExistsError,
    TableNotFoundError,
    UnknownStreamError,
)
from embedstore.interface import (
    CheckpointResult,
    DenseSet,
    Origin,
    PushResult,
    Rows,
    StoreStats,
    StreamState,
    SweepResult,
    TablePush,
    TableStats,
    as_array,
    as_ids,
    as_row_dtype,
    as_rows,
    check_position,
    check_stream_name,
    check_sweep,
)
from embedstore.spec import TableSpec

COUNTERS = ("pushed_rows", "inserted_rows", "dropped_rows", "expired_rows", "evicted_rows")


@dataclass
class StoredTable:
    """``content`` knows no streams: all chunks of a table here stand at the same ``watermarks``."""

    beginnings: dict[str, int]
    content: ModelTable
    watermarks: dict[str, int] = field(default_factory=dict)

    @property
    def spec(self) -> TableSpec:
        return self.content.spec


@dataclass
class ModelStream:
    begin: int
    generation: int
    position: int


def fresh(spec: TableSpec) -> ModelTable:
    return ModelTable(spec, range(1, spec.num_chunks + 1))


def has_limits(spec: TableSpec) -> bool:
    return any(limit is not None for limit in (spec.ttl_s, spec.rows_max, spec.bytes_max))


def check_capacity(spec: TableSpec) -> None:
    if rows_cap(spec) == 0:
        raise InvalidArgumentError("TableSpec.bytes_max", "less than a row a chunk")


def check_time(event_time_ms: int | None) -> None:
    if event_time_ms is not None:
        check_position("event_time_ms", event_time_ms)


class ModelStore:
    """See the module. ``num_chunks`` of a spec matters only because each chunk has a clock of its own."""

    def __init__(self, tables: Sequence[TableSpec] = (), *, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._tables: dict[str, StoredTable] = {}
        self._streams: dict[str, ModelStream] = {}
        self._dense: dict[str, DenseSet] = {}
        self._saved: dict[str, StoredTable] = {}
        self._last_checkpoint_s = 0.0
        self._closed = False
        for spec in tables:
            self.create_table(spec)

    # -- reading

    def pull(self, tables: Mapping[str, Any], *, meta: bool = False, dtype: Any = np.float32) -> Any:
        kind = as_row_dtype(dtype)
        self._check_open()
        found = {name: (self._table(name), as_ids(ids, f"{name}.ids")) for name, ids in tables.items()}
        rows = {name: table.content.pull_rows(ids.tolist()) for name, (table, ids) in found.items()}
        with np.errstate(over="ignore"):
            rows = {name: replace(value, embeddings=value.embeddings.astype(kind)) for name, value in rows.items()}
        return rows if meta else {name: value.embeddings for name, value in rows.items()}

    def contains(self, table: str, ids: Any) -> np.ndarray:
        self._check_open()
        content = self._table(table).content
        return np.array([content.row(key) is not None for key in as_ids(ids, f"{table}.ids").tolist()], bool)

    def scan(self, table: str) -> Iterator[tuple[np.ndarray, Rows]]:
        self._check_open()
        content = self._table(table).content
        keys = sorted(key for chunk in content.chunks for key in content.living(chunk))
        return iter([(np.array(keys, np.uint64), content.pull_rows(keys))] if keys else [])

    def get_dense(self, dense_set: str) -> DenseSet:
        self._check_open()
        if dense_set not in self._dense:
            raise DenseSetNotFoundError(dense_set)
        return self._dense[dense_set]

    def tables(self) -> dict[str, TableSpec]:
        self._check_open()
        return {name: table.spec for name, table in self._tables.items()}

    def stats(self) -> StoreStats:
        self._check_open()
        sizes = {
            name: TableStats(
                rows=len(table.content),
                memory_bytes=0,
                chunks=table.spec.num_chunks,
                pulled_rows=0,
                missed_rows=0,
                tombstones=0,
                **{counter: table.content.counters[counter] for counter in COUNTERS},
            )
            for name, table in self._tables.items()
        }
        return StoreStats(sizes, self.watermarks(), self._last_checkpoint_s, 0.0)

    def close(self) -> None:
        self._closed = True

    # -- writing

    def push(
        self,
        tables: Mapping[str, Any],
        *,
        origins: Sequence[Origin] = (),
        event_time_ms: int | None = None,
        generations: Mapping[str, int] | None = None,
    ) -> PushResult:
        self._check_open()
        check_time(event_time_ms)
        pushes = {name: self._checked_push(name, value, event_time_ms) for name, value in tables.items()}
        if len({origin.stream for origin in origins}) != len(origins):
            raise InvalidArgumentError("origins", "a stream comes twice")
        if not origins:
            for name, (push, times) in pushes.items():
                self._apply(self._tables[name], push, times)
            self._sweep_beside(pushes)
            return PushResult()
        for origin in origins:
            self._check_generation(origin.stream, generations)
        fresh = [table for table in self._tables.values() if self._is_new(table.watermarks, origins)]
        registered = {stream: state.position for stream, state in self._streams.items()}
        new = bool(fresh) if self._tables else self._is_new(registered, origins)
        for table in fresh:
            if table.spec.name in pushes:
                self._apply(table, *pushes[table.spec.name])
            table.watermarks.update({origin.stream: origin.end for origin in origins})
        for origin in origins:
            stream = self._streams[origin.stream]
            stream.position = max(stream.position, origin.end)
        self._sweep_beside(pushes)
        return PushResult({origin.stream: self._state(origin.stream) for origin in origins}, repeated=not new)

    def assign(self, table: str, ids: Any, rows: Any, *, event_time_ms: int | None = None) -> None:
        self._check_open()
        model = self._table(table)
        keys = as_ids(ids, f"{table}.ids").tolist()
        values = as_rows(rows, len(keys), model.spec.dim, f"{table}.rows")
        if not np.isfinite(values).all():
            raise InvalidArgumentError(f"{table}.rows", "not finite")
        check_time(event_time_ms)
        model.content.assign(keys, values, now_ms=self._clock_ms(), time_ms=event_time_ms)
        if keys and has_limits(model.spec):
            model.content.sweep()

    def delete(self, table: str, ids: Any) -> int:
        self._check_open()
        return self._table(table).content.delete(as_ids(ids, f"{table}.ids").tolist())

    def sweep(
        self, table: str | None = None, *, budget_ms: float | None = None, dry_run: bool = False
    ) -> dict[str, SweepResult]:
        self._check_open()
        check_sweep(budget_ms, dry_run)
        chosen = self._tables if table is None else {table: self._table(table)}
        return {name: SweepResult(rows_expired=each.content.sweep(dry_run=dry_run)) for name, each in chosen.items()}

    def put_dense(
        self,
        dense_set: str,
        tensors: Mapping[str, Any],
        position: Mapping[str, int],
        generations: Mapping[str, int] | None = None,
    ) -> int:
        self._check_open()
        if not isinstance(dense_set, str) or not dense_set:
            raise InvalidArgumentError("dense_set", "must be a name")
        arrays = {name: np.array(tensor) for name, tensor in tensors.items()}
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":
                raise InvalidArgumentError(f"tensors[{name!r}]", f"dtype {array.dtype}")
        for stream, offered in position.items():
            check_position(f"position[{stream!r}]", offered)
            self._check_generation(stream, generations)
        published = self._dense.get(dense_set, DenseSet({}, {}, 0))
        for stream, offered in position.items():
            if offered < published.position.get(stream, 0):
                raise StaleDenseSetError(dense_set, stream, offered, published.position[stream])
        self._dense[dense_set] = DenseSet(arrays, dict(position), published.version + 1)
        return published.version + 1

    # -- streams and tables

    def open_stream(self, stream: str, position: int, generation: int = 0) -> StreamState:
        self._check_open()
        check_stream_name("stream", stream)
        check_position("position", position)
        if stream.startswith("client/"):
            raise InvalidArgumentError("stream", "client streams open by themselves")
        if stream not in self._streams:
            self._streams[stream] = ModelStream(position, 0, position)
            for table in self._tables.values():
                table.watermarks[stream] = position
        state = self._streams[stream]
        if generation and generation <= state.generation:
            raise StaleGenerationError(stream, generation, state.generation)
        state.generation = generation or state.generation + 1
        return self._state(stream)

    def watermarks(self) -> dict[str, StreamState]:
        self._check_open()
        return {stream: self._state(stream) for stream in self._streams}

    def checkpoint(self) -> CheckpointResult:
        self._check_open()
        self._saved = copy.deepcopy(self._tables)
        if not self._tables:
            for state in self._streams.values():
                state.begin = state.position
        self._last_checkpoint_s = self._clock_ms() / 1000
        return CheckpointResult(0, 0, 0.0)

    def crash(self) -> None:
        """What a kill leaves: the last checkpoint, and whatever is durable as soon as it is answered."""
        for name, table in self._tables.items():
            saved = copy.deepcopy(self._saved.get(name)) or StoredTable(table.beginnings, fresh(table.spec))
            saved.content.alter(table.spec)
            saved.content.counters.clear()
            for stream, state in self._streams.items():
                saved.watermarks.setdefault(stream, table.beginnings.get(stream, state.begin))
            self._tables[name] = saved
        for stream, state in self._streams.items():
            state.position = max(self._state(stream).watermarks) if self._tables else state.begin

    def reopen(self) -> None:
        """A clean stop and start: close() has checkpointed."""
        self.checkpoint()
        self.crash()

    def create_table(self, spec: TableSpec) -> bool:
        self._check_open()
        check_capacity(spec)
        if spec.name in self._tables:
            difference = spec.first_difference(self._tables[spec.name].spec)
            if difference is not None:
                present, wanted = (getattr(each, difference) for each in (self._tables[spec.name].spec, spec))
                raise TableExistsError(spec.name, difference, f"{present!r}, not {wanted!r}")
            return False
        highest = {stream: state.position for stream, state in self._streams.items()}
        self._tables[spec.name] = StoredTable(dict(highest), fresh(spec), highest)
        return True

    def alter_table(self, spec: TableSpec) -> None:
        self._check_open()
        table = self._table(spec.name)
        difference = spec.lasting().first_difference(table.spec.lasting())
        if difference is not None:
            raise InvalidArgumentError(f"TableSpec.{difference}", "cannot be altered")
        check_capacity(spec)
        table.content.alter(spec)

    def drop_table(self, table: str) -> None:
        self._check_open()
        self._table(table)
        del self._tables[table]
        self._saved.pop(table, None)
        if not self._tables:
            for state in self._streams.values():
                state.begin = state.position

    # -- parts

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the store is closed")

    def _table(self, name: str) -> StoredTable:
        if name not in self._tables:
            raise TableNotFoundError(name)
        return self._tables[name]

    def _checked_push(self, name: str, value: Any, event_time_ms: int | None) -> tuple[TablePush, list[int | None]]:
        if not isinstance(value, TablePush) and (not isinstance(value, tuple) or len(value) != 2):
            raise InvalidArgumentError(name, "must be a TablePush or a pair")
        push = value if isinstance(value, TablePush) else TablePush(*value)
        table = self._table(name)
        ids = as_ids(push.ids, f"{name}.ids")
        grads = as_rows(push.grads, len(ids), table.spec.dim, f"{name}.grads")
        if not np.isfinite(grads).all():
            raise InvalidArgumentError(f"{name}.grads", "not finite")
        if push.counts is not None and as_array(push.counts, f"{name}.counts").shape != ids.shape:
            raise InvalidArgumentError(f"{name}.counts", "wrong shape")
        times: list[int | None] = [event_time_ms] * len(ids)
        if push.event_times_ms is not None:
            each = as_array(push.event_times_ms, f"{name}.event_times_ms")
            if each.shape != ids.shape or (each < 0).any():
                raise InvalidArgumentError(f"{name}.event_times_ms", "wrong shape or negative")
            times = each.tolist()
        if push.lr is not None and (type(push.lr) not in (int, float) or not 0 <= push.lr < 3e38):
            raise InvalidArgumentError(f"{name}.lr", "must be finite and >= 0")
        counts = None if push.counts is None else np.asarray(push.counts).tolist()
        return TablePush(ids, grads, counts=counts, lr=push.lr), times

    def _apply(self, table: StoredTable, push: TablePush, times: list[int | None]) -> None:
        keys = push.ids.tolist()
        table.content.push(keys, push.grads, now_ms=self._clock_ms(), times_ms=times, counts=push.counts, lr=push.lr)

    def _sweep_beside(self, pushes: Mapping[str, tuple[TablePush, Any]]) -> None:
        for name, (push, _) in pushes.items():
            if len(push.ids) and has_limits(self._tables[name].spec):
                self._tables[name].content.sweep()

    def _check_generation(self, stream: str, generations: Mapping[str, int] | None) -> None:
        if stream not in self._streams:
            raise UnknownStreamError(stream)
        current = self._streams[stream].generation
        if generations is not None and generations.get(stream, 0) < current:
            raise StaleGenerationError(stream, generations.get(stream, 0), current)

    def _is_new(self, watermarks: Mapping[str, int], origins: Sequence[Origin]) -> bool:
        if all(origin.end <= watermarks[origin.stream] for origin in origins):
            return False
        if all(origin.begin == watermarks[origin.stream] for origin in origins):
            return True
        raise GapError({origin.stream: self._state(origin.stream).watermarks for origin in origins})

    def _state(self, stream: str) -> StreamState:
        state = self._streams[stream]
        tables = self._tables
        applied = {table.watermarks[stream] for table in tables.values()} or {state.position}
        durable = {
            self._saved[name].watermarks.get(stream, state.begin)
            if name in self._saved
            else table.beginnings.get(stream, state.begin)
            for name, table in tables.items()
        } or {state.begin}
        return StreamState(min(applied), min(durable), tuple(sorted(applied)), state.generation)
