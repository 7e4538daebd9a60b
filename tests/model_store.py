"""A small, slow and obvious store: what every real store must be indistinguishable from.

Dicts of rows, one watermark map a table, one snapshot for what a checkpoint holds. No threads, no files, no native
code; ``crash()`` is what is left after a kill. Rows start and learn as in ``model_optimizers``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from model_optimizers import initial_embedding, initial_state, learn

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
    TablePush,
    TableStats,
    as_ids,
    as_rows,
    check_position,
    check_stream_name,
)
from embedstore.spec import TableSpec

TOLERANCE_MS = 60_000


@dataclass
class ModelRow:
    embedding: np.ndarray
    state: list[np.ndarray]
    updates: int = 0
    first_seen_s: int = 0
    last_seen_s: int = 0


@dataclass
class ModelTable:
    spec: TableSpec
    beginnings: dict[str, int]
    rows: dict[int, ModelRow] = field(default_factory=dict)
    watermarks: dict[str, int] = field(default_factory=dict)
    clocks_ms: dict[int, int] = field(default_factory=dict)


@dataclass
class ModelStream:
    begin: int
    generation: int
    position: int


def chunk_of(key: int, num_chunks: int) -> int:
    """The top bits of the splitmix64 finalizer."""
    mask = 2**64 - 1
    key ^= key >> 30
    key = key * 0xBF58476D1CE4E5B9 & mask
    key ^= key >> 27
    key = key * 0x94D049BB133111EB & mask
    key ^= key >> 31
    return key * num_chunks >> 64


def missing_row(spec: TableSpec, key: int) -> np.ndarray:
    if spec.on_miss == "zeros":
        return np.zeros(spec.dim, np.float32)
    return initial_embedding(spec.init, key, spec.dim)


def check_time(event_time_ms: int | None) -> None:
    if event_time_ms is not None:
        check_position("event_time_ms", event_time_ms)


class ModelStore:
    """See the module. ``num_chunks`` of a spec matters only because each chunk has a clock of its own."""

    def __init__(self, tables: Sequence[TableSpec] = (), *, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._tables: dict[str, ModelTable] = {}
        self._streams: dict[str, ModelStream] = {}
        self._dense: dict[str, DenseSet] = {}
        self._saved: dict[str, ModelTable] = {}
        self._last_checkpoint_s = 0.0
        self._closed = False
        for spec in tables:
            self.create_table(spec)

    # -- reading

    def pull(self, tables: Mapping[str, Any], *, meta: bool = False) -> Any:
        self._check_open()
        found = {name: (self._table(name), as_ids(ids, f"{name}.ids")) for name, ids in tables.items()}
        rows = {name: self._rows(table, ids.tolist()) for name, (table, ids) in found.items()}
        return rows if meta else {name: value.embeddings for name, value in rows.items()}

    def contains(self, table: str, ids: Any) -> np.ndarray:
        self._check_open()
        rows = self._table(table).rows
        return np.array([key in rows for key in as_ids(ids, f"{table}.ids").tolist()], bool)

    def scan(self, table: str) -> Iterator[tuple[np.ndarray, Rows]]:
        self._check_open()
        model = self._table(table)
        keys = sorted(model.rows)
        return iter([(np.array(keys, np.uint64), self._rows(model, keys))] if keys else [])

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
            name: TableStats(len(table.rows), 0, table.spec.num_chunks, 0, 0, 0, 0, 0)
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
        return PushResult({origin.stream: self._state(origin.stream) for origin in origins}, repeated=not new)

    def assign(self, table: str, ids: Any, rows: Any, *, event_time_ms: int | None = None) -> None:
        self._check_open()
        model = self._table(table)
        keys = as_ids(ids, f"{table}.ids").tolist()
        values = as_rows(rows, len(keys), model.spec.dim, f"{table}.rows")
        if not np.isfinite(values).all():
            raise InvalidArgumentError(f"{table}.rows", "not finite")
        check_time(event_time_ms)
        for key, value in zip(keys, values, strict=True):
            row = self._touch(model, key, event_time_ms)
            row.embedding = value.copy()

    def delete(self, table: str, ids: Any) -> int:
        self._check_open()
        rows = self._table(table).rows
        return sum(rows.pop(key, None) is not None for key in as_ids(ids, f"{table}.ids").tolist())

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
            saved = copy.deepcopy(self._saved.get(name)) or ModelTable(table.spec, table.beginnings)
            saved.spec = table.spec
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
        spec.check_supported()
        if spec.name in self._tables:
            difference = spec.first_difference(self._tables[spec.name].spec)
            if difference is not None:
                raise TableExistsError(spec.name, difference)
            return False
        highest = {stream: state.position for stream, state in self._streams.items()}
        self._tables[spec.name] = ModelTable(spec, dict(highest), watermarks=highest)
        return True

    def alter_table(self, spec: TableSpec) -> None:
        self._check_open()
        table = self._table(spec.name)
        same = replace(spec, optimizer=replace(spec.optimizer, lr=table.spec.optimizer.lr))
        difference = same.first_difference(table.spec)
        if difference is not None:
            raise InvalidArgumentError(f"TableSpec.{difference}", "cannot be altered")
        table.spec = spec

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

    def _table(self, name: str) -> ModelTable:
        if name not in self._tables:
            raise TableNotFoundError(name)
        return self._tables[name]

    def _rows(self, table: ModelTable, keys: list[int]) -> Rows:
        rows = [table.rows.get(key) or ModelRow(missing_row(table.spec, key), []) for key in keys]
        return Rows(
            np.array([row.embedding for row in rows], np.float32).reshape(len(keys), table.spec.dim),
            np.array([key in table.rows for key in keys], bool),
            np.array([row.updates for row in rows], np.uint32),
            np.array([row.first_seen_s for row in rows], np.int64),
            np.array([row.last_seen_s for row in rows], np.int64),
        )

    def _checked_push(self, name: str, value: Any, event_time_ms: int | None) -> tuple[TablePush, list[int | None]]:
        if not isinstance(value, TablePush) and (not isinstance(value, tuple) or len(value) != 2):
            raise InvalidArgumentError(name, "must be a TablePush or a pair")
        push = value if isinstance(value, TablePush) else TablePush(*value)
        table = self._table(name)
        ids = as_ids(push.ids, f"{name}.ids")
        grads = as_rows(push.grads, len(ids), table.spec.dim, f"{name}.grads")
        if not np.isfinite(grads).all():
            raise InvalidArgumentError(f"{name}.grads", "not finite")
        if push.counts is not None and np.shape(push.counts) != ids.shape:
            raise InvalidArgumentError(f"{name}.counts", "wrong shape")
        times: list[int | None] = [event_time_ms] * len(ids)
        if push.event_times_ms is not None:
            if np.shape(push.event_times_ms) != ids.shape or (np.asarray(push.event_times_ms) < 0).any():
                raise InvalidArgumentError(f"{name}.event_times_ms", "wrong shape or negative")
            times = np.asarray(push.event_times_ms).tolist()
        if push.lr is not None and (type(push.lr) not in (int, float) or not 0 <= push.lr < np.inf):
            raise InvalidArgumentError(f"{name}.lr", "must be finite and >= 0")
        return TablePush(ids, grads, lr=push.lr), times

    def _apply(self, table: ModelTable, push: TablePush, times: list[int | None]) -> None:
        sums: dict[int, np.ndarray] = {}
        for key, grad in zip(push.ids.tolist(), push.grads, strict=True):
            sums[key] = sums[key] + grad if key in sums else grad
        latest: dict[int, int | None] = {}
        for key, time in zip(push.ids.tolist(), times, strict=True):
            known = latest.get(key)
            latest[key] = time if known is None else max(known, time or 0)
        lr = table.spec.optimizer.lr if push.lr is None else push.lr
        for key, grad in sums.items():
            row = self._touch(table, key, latest[key])
            row.updates += 1
            learn(table.spec.optimizer, row.embedding, row.state, grad, lr, row.updates)

    def _touch(self, table: ModelTable, key: int, time_ms: int | None) -> ModelRow:
        chunk = chunk_of(key, table.spec.num_chunks)
        clock = table.clocks_ms.get(chunk, 0)
        if time_ms is None:
            time_ms = clock
        else:
            time_ms = min(time_ms, self._clock_ms() + TOLERANCE_MS)
            table.clocks_ms[chunk] = max(clock, time_ms)
        row = table.rows.get(key)
        if row is None:
            first = initial_embedding(table.spec.init, key, table.spec.dim)
            row = table.rows[key] = ModelRow(first, initial_state(table.spec.optimizer, table.spec.dim))
            row.first_seen_s = time_ms // 1000
        row.last_seen_s = max(row.last_seen_s, time_ms // 1000)
        return row

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
