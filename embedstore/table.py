"""One table in this process: a thin face on the native core.

Every method may be called from any thread; batch calls drop the GIL and lock one chunk at a time. A reader may see a
push in some chunks and not yet in others, never half of it in one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from embedstore import _native
from embedstore.changes import Changes
from embedstore.deltas import DELTA_HEADER_BYTES as DELTA_HEADER_BYTES
from embedstore.deltas import DeltaInfo as DeltaInfo
from embedstore.deltas import delta_info as delta_info
from embedstore.errors import InvalidArgumentError
from embedstore.interface import (
    ROW_DTYPES,
    Ids,
    Origin,
    Rows,
    SweepResult,
    TableStats,
    as_ids,
    as_row_dtype,
    as_rows,
    check_position,
    check_stream_name,
)
from embedstore.row_formats import NATIVE_ROW_TYPES, RowFormat, as_row_format
from embedstore.rules import init_arguments, optimizer_arguments
from embedstore.spec import TableSpec
from embedstore.table_arguments import (
    admission_arguments,
    limit_arguments,
    to_counts,
    to_event_time,
    to_event_times,
    to_lr,
    to_positions,
    to_tuples,
)

TOMBSTONES_PER_CHUNK_MAX = 8192
"""Removals that a chunk remembers, but no more than 256 or twice its rows; followers further behind get it whole."""

Reason = Literal["erased", "expired", "evicted"]
_REASONS = {"erased": 1, "expired": 2, "evicted": 3}


def random_incarnations(count: int) -> np.ndarray:
    """``count`` random nonzero uint64 numbers from the system's entropy."""
    numbers = np.frombuffer(np.random.SeedSequence().generate_state(count, np.uint64).tobytes(), dtype=np.uint64)
    return np.maximum(numbers, np.uint64(1))


class ChunkStates(NamedTuple):
    """Where the owned chunks stand, in order: incarnations and versions uint64 [C], clocks in ms int64 [C]."""

    incarnations: np.ndarray
    versions: np.ndarray
    clocks_ms: np.ndarray


class PreparedPush(NamedTuple):
    """What :meth:`Table.apply_push` takes: a push that nothing but its origins can be refused for."""

    ids: np.ndarray
    grads: np.ndarray
    options: dict[str, Any]


class Table:
    """One table: rows, optimizer state and history of the owned chunks.

    ``chunks``: the owned ones (default all); an id of another raises WrongShardError. ``embeddings_only``: what a
    serving follower holds, without optimizer state; it takes deltas and assigns, no pushes. ``rows``: fp32, or for such
    a table fp16, int8 or int4: packed when they come, float32 or float16 when they are read. ``entropy(n)`` gives n
    nonzero uint64 incarnations. Sizes are bounded by the spec and by memory; MemoryError leaves every chunk either
    before or after its part of the call.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        chunks: range | None = None,
        embeddings_only: bool = False,
        rows: RowFormat = "fp32",
        entropy: Callable[[int], np.ndarray] = random_incarnations,
        tombstones_max: int = TOMBSTONES_PER_CHUNK_MAX,
    ) -> None:
        chunks = range(spec.num_chunks) if chunks is None else chunks
        if chunks.step != 1 or not 0 <= chunks.start <= chunks.stop <= spec.num_chunks:
            raise InvalidArgumentError("chunks", f"must be a range within [0, {spec.num_chunks}), not {chunks}")
        self._spec = spec
        self._chunks = chunks
        self._embeddings_only = embeddings_only
        self._row_format = as_row_format(rows, embeddings_only=embeddings_only)
        self._entropy = entropy
        self._native = _native.Table(
            name=spec.name,
            dim=spec.dim,
            num_chunks=spec.num_chunks,
            chunk_begin=chunks.start,
            chunk_end=chunks.stop,
            **optimizer_arguments(spec.optimizer),
            **init_arguments(spec.init),
            **admission_arguments(spec.admission),
            **limit_arguments(spec),
            init_on_miss=spec.on_miss == "init",
            embeddings_only=embeddings_only,
            stored=NATIVE_ROW_TYPES[self._row_format],
            tombstones_max=tombstones_max,
            incarnations=self._new_incarnations(),
        )
        self._mid_round = False
        self.changes = Changes()
        """What its owner tells of when it changed."""

    @property
    def native(self) -> _native.Table:
        """The native table, for ``_native.gather_message``."""
        return self._native

    @property
    def spec(self) -> TableSpec:
        """What the table is, at present."""
        return self._spec

    @property
    def chunks(self) -> range:
        """The owned chunks."""
        return self._chunks

    @property
    def embeddings_only(self) -> bool:
        """Whether it holds no optimizer state."""
        return self._embeddings_only

    @property
    def row_format(self) -> RowFormat:
        """How it keeps its rows."""
        return self._row_format

    @property
    def memory_bytes(self) -> int:
        """Bytes held for rows, index, versions and tombstones."""
        return self._native.memory_bytes

    @cached_property
    def row_bytes(self) -> int:
        """What one row takes in a delta."""
        first = self._chunks[0]
        states = self.chunk_states()
        return delta_info(self.delta(first, int(states.incarnations[0]), int(states.versions[0]))).row_bytes

    def __len__(self) -> int:
        return len(self._native)

    def check_limits(self, spec: TableSpec) -> None:
        """Raise InvalidArgumentError when a chunk's share of ``rows_max`` or ``bytes_max`` is less than one row."""
        self._native.check_limits(**limit_arguments(spec))

    def alter(self, spec: TableSpec) -> None:
        """Change lr, ttl_s, rows_max and bytes_max; any other difference raises InvalidArgumentError naming it.

        A shorter time to live shows at once; rows above a lower bound go with the next writes and sweeps.
        """
        difference = self._spec.lasting().first_difference(spec.lasting())
        if difference is not None:
            raise InvalidArgumentError(f"TableSpec.{difference}", "cannot be changed")
        self.check_limits(spec)
        self._native.set_lr(spec.optimizer.lr)
        self._native.set_limits(**limit_arguments(spec))
        self._spec = spec

    def pull(self, ids: Ids, *, out: np.ndarray | None = None, dtype: Any = np.float32) -> np.ndarray:
        """Rows in the order of ``ids``: [n, dim] float32 or float16 (``out`` is filled when given). Changes nothing."""
        ids = as_ids(ids, self._label("ids"))
        if out is None:
            out = np.empty((len(ids), self._spec.dim), dtype if dtype is np.float32 else as_row_dtype(dtype))
        elif (
            out.shape != (len(ids), self._spec.dim)
            or out.dtype not in ROW_DTYPES
            or not (out.flags.c_contiguous and out.flags.writeable)
        ):
            raise InvalidArgumentError("out", f"must be writable contiguous float32 or float16 [{len(ids)}, dim]")
        self._native.pull(ids, out)
        return out

    def pull_rows(self, ids: Ids, *, dtype: Any = np.float32) -> Rows:
        """Rows, float32 or float16, with what is known of them."""
        ids = as_ids(ids, self._label("ids"))
        rows = Rows(
            embeddings=np.empty((len(ids), self._spec.dim), dtype if dtype is np.float32 else as_row_dtype(dtype)),
            found=np.empty(len(ids), np.bool_),
            updates=np.empty(len(ids), np.uint32),
            first_seen_s=np.empty(len(ids), np.int64),
            last_seen_s=np.empty(len(ids), np.int64),
        )
        self._native.pull_rows(ids, rows.embeddings, rows.found, rows.updates, rows.first_seen_s, rows.last_seen_s)
        return rows

    def contains(self, ids: Ids) -> np.ndarray:
        """Which ids have a row: bool [n]."""
        ids = as_ids(ids, self._label("ids"))
        found = np.empty(len(ids), np.bool_)
        self._native.contains(ids, found)
        return found

    def last_seen_s(self, ids: Ids) -> np.ndarray:
        """Of those that have a row: unix seconds of the last event, int64. Counts as no pull."""
        ids = as_ids(ids, self._label("ids"))
        found, seen_s = np.empty(len(ids), np.bool_), np.empty(len(ids), np.int64)
        self._native.last_seen(ids, found, seen_s)
        return seen_s[found]

    def push(
        self,
        ids: Ids,
        grads: Any,
        *,
        now_ms: int,
        counts: Any = None,
        event_times_ms: Any = None,
        lr: float | None = None,
        origins: Sequence[Origin] = (),
    ) -> None:
        """Apply gradients, float32 [n, dim]; gradients of equal ids are summed.

        Ids without a row get one when the table's admission lets them in, otherwise their gradients are dropped.
        ``now_ms``: wall time, which bounds event times (plus a minute). ``counts``: occurrences an entry stands for.
        ``event_times_ms``: one int, int64 [n], or None (last_seen becomes the chunk's clock). A chunk's clock is the
        largest event time of its own ids. With ``origins``, each chunk skips a repeat and applies a continuation;
        GapError or UnknownStreamError otherwise, before anything is touched.
        """
        push = self.prepare_push(ids, grads, now_ms=now_ms, counts=counts, event_times_ms=event_times_ms, lr=lr)
        self.apply_push(push, origins)

    def prepare_push(
        self,
        ids: Ids,
        grads: Any,
        *,
        now_ms: int,
        counts: Any = None,
        event_times_ms: Any = None,
        lr: float | None = None,
    ) -> PreparedPush:
        """Raise what :meth:`push` would raise for these arguments (origins aside); nothing is touched before
        :meth:`apply_push`, until which the arrays must stay as they are."""
        ids = as_ids(ids, self._label("ids"))
        grads = as_rows(grads, len(ids), self._spec.dim, self._label("grads"))
        each, time_ms = to_event_times(self._spec.name, event_times_ms, len(ids))
        check_position("now_ms", now_ms)
        options: dict[str, Any] = {
            "now_ms": now_ms,
            "counts": to_counts(self._label("counts"), counts, len(ids)),
            "event_times_ms": each,
            "event_time_ms": time_ms,
            "lr": to_lr(self._label("lr"), lr),
        }
        self._native.validate_push(ids, grads, **options)
        return PreparedPush(ids, grads, options)

    def apply_push(self, push: PreparedPush, origins: Sequence[Origin] = ()) -> None:
        """The second half of :meth:`push`."""
        self._native.push(push.ids, push.grads, **push.options, origins=to_tuples(origins), validated=True)

    def assign(
        self,
        ids: Ids,
        rows: Any,
        *,
        now_ms: int,
        event_time_ms: int | None = None,
        origins: Sequence[Origin] = (),
    ) -> None:
        """Write embeddings, float32 [n, dim], as they are; the last of equal ids wins.

        An existing row keeps its optimizer state and ``updates``; both get the event time as last_seen.
        """
        ids = as_ids(ids, self._label("ids"))
        rows = as_rows(rows, len(ids), self._spec.dim, self._label("rows"))
        time_ms = to_event_time(self._label("event_time_ms"), event_time_ms)
        self._native.assign(ids, rows, now_ms=now_ms, event_time_ms=time_ms, origins=to_tuples(origins))

    def delete(self, ids: Ids, *, reason: Reason = "erased", origins: Sequence[Origin] = ()) -> int:
        """Remove rows and leave tombstones; returns how many were there."""
        if reason not in _REASONS:
            raise InvalidArgumentError("reason", f"must be one of {', '.join(_REASONS)}, not {reason!r}")
        ids = as_ids(ids, self._label("ids"))
        return self._native.erase(ids, reason=_REASONS[reason], origins=to_tuples(origins))

    @property
    def sweeps(self) -> bool:
        """Whether rows go without being deleted, so that sweeps have something to do."""
        spec = self._spec
        return not (spec.ttl_s is None and spec.rows_max is None and spec.bytes_max is None)

    @property
    def mid_round(self) -> bool:
        """Whether the last sweep stopped before the end of its round."""
        return self._mid_round

    def sweep(self, rows_max: int, *, dry_run: bool = False) -> SweepResult:
        """Remove expired rows, empty sparse slabs and give memory back; go on where the last sweep stopped.

        Looks at about ``rows_max`` rows, and holds a chunk's lock for at most 2048 of them at a time. A new round
        raises the clock of chunks that stand at the same watermarks as others to the highest of these. ``dry_run``:
        count what a whole round would find, and change nothing.
        """
        if isinstance(rows_max, bool) or not isinstance(rows_max, int) or not 1 <= rows_max < 2**63:
            raise InvalidArgumentError("rows_max", f"must be a positive integer, not {rows_max!r}")
        found = self._native.sweep(rows_max, dry_run)
        result = SweepResult(complete=bool(found.pop("complete")), **found)
        if not dry_run:
            self._mid_round = not result.complete
        return result

    def scan_chunk(self, chunk: int) -> tuple[np.ndarray, Rows]:
        """Every row of a chunk at one instant: uint64 [n] ids and their rows."""
        self._check_chunk(chunk)
        ids, embeddings, updates, first_seen_s, last_seen_s = self._native.scan(chunk)
        return ids, Rows(embeddings, np.ones(len(ids), np.bool_), updates, first_seen_s, last_seen_s)

    def watermarks(self) -> list[tuple[dict[str, int], list[int]]]:
        """Each distinct set of watermarks (stream to position) and the chunks that have it."""
        return self._native.watermarks()

    def open_stream(self, stream: str, position: int) -> None:
        """Set a stream's watermark in the chunks that do not know the stream."""
        check_stream_name("stream", stream)
        check_position("position", position)
        self._native.raise_streams({stream: int(position)}, True)

    def forget_stream(self, stream: str) -> None:
        """Drop a stream's watermark in every chunk: pushes of it are refused from now on."""
        check_stream_name("stream", stream)
        self._native.forget_stream(stream)

    def begin_at(self, watermarks: Mapping[str, int]) -> None:
        """Raise every chunk's watermarks to these: where a new table begins."""
        self._native.raise_streams(to_positions(watermarks), False)

    def set_watermarks(self, chunk: int, watermarks: Mapping[str, int], clock_ms: int) -> None:
        """Raise the watermarks and the clock of a chunk whose rows are as they were: recovery, heartbeats."""
        self.set_watermarks_of([chunk], watermarks, [clock_ms])

    def set_watermarks_of(self, chunks: Sequence[int], watermarks: Mapping[str, int], clocks_ms: Sequence[int]) -> None:
        """The same for many chunks with one set of watermarks: it is checked once."""
        for chunk, clock_ms in zip(chunks, clocks_ms, strict=True):
            self._check_chunk(chunk)
            check_position("clock_ms", clock_ms)
        positions = to_positions(watermarks)
        for chunk, clock_ms in zip(chunks, clocks_ms, strict=True):
            self._native.raise_chunk(int(chunk), positions, int(clock_ms))

    def chunk_states(self) -> ChunkStates:
        """Where every owned chunk stands."""
        return ChunkStates(*self._native.chunk_states())

    def delta(self, chunk: int, incarnation: int = 0, version: int = 0, *, embeddings_only: bool = False) -> bytes:
        """The ChunkDelta since a cursor; the full chunk from cursor (0, 0) or one that cannot be continued."""
        self._check_chunk(chunk)
        for name, value in (("incarnation", incarnation), ("version", version)):
            if not 0 <= value < 2**64:
                raise InvalidArgumentError(name, f"must be an unsigned 64-bit integer, not {value!r}")
        return self._native.delta(chunk, int(incarnation), int(version), embeddings_only or self._embeddings_only)

    def apply(self, delta: bytes) -> tuple[int, int, int]:
        """Apply a ChunkDelta; returns (chunk, incarnation, version) where the chunk stands now.

        A full one replaces the chunk, a continuation updates it, a known one changes nothing. CorruptDeltaError,
        DeltaGapError and WrongShardError leave the chunk as it was.
        """
        if not isinstance(delta, bytes):
            raise InvalidArgumentError("delta", f"must be bytes, not {type(delta).__name__}")
        return self._native.apply(delta)

    def apply_buffer(self, delta: memoryview) -> tuple[int, int, int]:
        """:meth:`apply` for memory that is used again afterwards; nobody may write to it during the call."""
        return self._native.apply(delta)

    def branch(self) -> None:
        """Begin a new history in every chunk, with the present one as its parent: after recovery or promotion."""
        self._native.branch(self._new_incarnations())

    def stats(self) -> TableStats:
        """Counters and sizes."""
        return TableStats(
            rows=len(self), memory_bytes=self.memory_bytes, chunks=len(self._chunks), **self._native.counters()
        )

    def _label(self, field: str) -> str:
        return f"{self._spec.name}.{field}"

    def _check_chunk(self, chunk: int) -> None:
        if not 0 <= chunk < self._spec.num_chunks:
            raise InvalidArgumentError("chunk", f"must be in [0, {self._spec.num_chunks}), not {chunk!r}")

    def _new_incarnations(self) -> np.ndarray:
        return np.ascontiguousarray(self._entropy(len(self._chunks)), dtype=np.uint64)
