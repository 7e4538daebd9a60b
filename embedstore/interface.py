"""The values that go in and out of a store, and the protocol that every store implements.

The embedded store (:func:`embedstore.open`), the remote store (:func:`embedstore.connect`) and the in-process follower
(:func:`embedstore.follow`, reads only) are interchangeable: same calls, same errors, checked by one contract suite.
All values here are immutable; every method of every store may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload, runtime_checkable

import numpy as np

from embedstore.errors import InvalidArgumentError
from embedstore.freshness import Distribution
from embedstore.rules import is_finite

if TYPE_CHECKING:
    from embedstore.spec import TableSpec

STREAM_NAME_BYTES_MAX = 512
POSITION_MAX = 2**63 - 1
IDS_PER_CALL_MAX = 1 << 22
ROW_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))

Ids = Any
"""uint64 or int64 [n]: a numpy array, a torch tensor or a sequence of ints. int64 is reinterpreted, never refused."""


@dataclass(frozen=True)
class Origin:
    """The half-open range [begin, end) of positions of one stream that a push was computed from."""

    stream: str
    begin: int
    end: int

    def __post_init__(self) -> None:
        check_stream_name("Origin.stream", self.stream)
        for name in ("begin", "end"):
            check_position(f"Origin.{name}", getattr(self, name))
        if self.begin > self.end:
            raise InvalidArgumentError("Origin.end", f"{self.end} is below begin {self.begin}")


@dataclass(frozen=True)
class Rows:
    """What a pull with ``meta=True`` returns, in the order of the ids.

    ``embeddings`` [n, dim], float32 or float16 as asked; ``found`` bool [n]; ``updates`` uint32 [n], pushes applied to
    the row; ``first_seen_s`` and ``last_seen_s`` int64 [n], event time in unix seconds. Zero where not found; the times
    also where no push told any.
    """

    embeddings: np.ndarray
    found: np.ndarray
    updates: np.ndarray
    first_seen_s: np.ndarray
    last_seen_s: np.ndarray

    def take(self, chosen: np.ndarray) -> Rows:
        """Some of them, by index or by a mask."""
        return Rows(*(getattr(self, column.name)[chosen] for column in fields(self)))


@dataclass(frozen=True)
class TablePush:
    """Gradients of one table: the long form of the pair ``(ids, grads)``.

    ``grads`` float32 [n, dim] (any float dtype is converted); equal ids are summed. ``counts`` uint32 [n]: occurrences
    an entry stands for (default 1). ``event_times_ms`` int64 [n]: default is the push's ``event_time_ms``. ``lr``:
    learning rate of this push, default the table's. The arrays must stay as they are until the call returns: an
    embedded store reads them in place.
    """

    ids: Ids
    grads: Any
    counts: Any = None
    event_times_ms: Any = None
    lr: float | None = None


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands: lowest ``applied`` and ``durable`` watermark over all chunks of all shards,
    every distinct watermark ascending, and the present writer's generation."""

    applied: int
    durable: int
    watermarks: tuple[int, ...]
    generation: int


@dataclass(frozen=True)
class PushResult:
    """What became of a push. ``streams`` has the streams of its origins; ``repeated`` says that every chunk had it.

    ``lost_updates``: how many earlier updates of its client stream a restart has taken back (always 0 for a stream that
    was opened: there a gap is refused).
    """

    streams: Mapping[str, StreamState] = field(default_factory=dict)
    repeated: bool = False
    lost_updates: int = 0


@dataclass(frozen=True)
class DenseSet:
    """Dense weights that belong together, with the stream positions they were trained to."""

    tensors: Mapping[str, np.ndarray]
    position: Mapping[str, int]
    version: int


@dataclass(frozen=True)
class TableStats:
    """Counters of one table since its process started, and its present size.

    ``rows`` and ``memory_bytes`` include expired rows that no sweep has come to yet. ``pulled_rows``, of which
    ``missed_rows`` had no row: ids as often as a store was asked for them (a remote client asks once for equal ids).
    ``pushed_rows``: distinct ids of each push whose row took the gradient. ``inserted_rows``: by push or assign.
    ``tombstones``: removals that are remembered for deltas. ``dropped_rows``: distinct ids of a push that admission
    kept out, with their gradients. ``expired_rows``, ``evicted_rows``: removed by expiry and by capacity.
    ``sketch_bytes``: what counting for admission takes, part of ``memory_bytes``; ``sketch_halvings``: how often it was
    full and halved its counts.
    """

    rows: int
    memory_bytes: int
    chunks: int
    pulled_rows: int
    missed_rows: int
    pushed_rows: int
    inserted_rows: int
    tombstones: int
    dropped_rows: int = 0
    expired_rows: int = 0
    evicted_rows: int = 0
    sketch_bytes: int = 0
    sketch_halvings: int = 0


@dataclass(frozen=True)
class SweepResult:
    """What a sweep of one table did: places of rows it looked at (free ones too), rows that expired, rows it moved to
    empty sparse slabs, bytes that went back to the system. ``complete``: it has come round every chunk.

    Rows above a lowered capacity go too; they are counted in :attr:`TableStats.evicted_rows` only."""

    rows_visited: int = 0
    rows_expired: int = 0
    rows_moved: int = 0
    bytes_released: int = 0
    complete: bool = True

    def __add__(self, other: SweepResult) -> SweepResult:
        return SweepResult(
            self.rows_visited + other.rows_visited,
            self.rows_expired + other.rows_expired,
            self.rows_moved + other.rows_moved,
            self.bytes_released + other.bytes_released,
            self.complete and other.complete,
        )


@dataclass(frozen=True)
class LeaderState:
    """How a follower stands towards one leader; ``age_s``: how old its rows are, infinite before the first sync."""

    address: str
    connected: bool
    age_s: float
    deltas: int
    reconnects: int


@dataclass(frozen=True)
class FollowerState:
    """How a leader sees those of its followers that have one name, ``peer``: the address at which others reach it, its
    machine, or what it was told to be called. ``lag_s``: now minus the moment up to which it has acknowledged
    everything, infinite before it has once. What was sent is since the name was first known. ``calls``: on how many it
    follows now; 0: it has gone, at most ten minutes ago."""

    peer: str
    standby: bool
    lag_s: float
    in_flight_bytes: int
    sent_bytes: int
    sent_messages: int
    calls: int = 1


@dataclass(frozen=True)
class StoreStats:
    """Numbers of one store; a remote store sums over its shards. ``leaders`` is empty unless it is a follower.

    ``corrupt_chunks``: chunks that fell back at the last start because a blob of theirs was unreadable. ``standbys``:
    addresses of those that what is durable waits for. ``follower_states``: who follows a serving process.
    ``distributions``: how fresh rows are, by measure and table (:mod:`embedstore.freshness`). ``dense_sets``: versions
    and positions of the first of them by name, without tensors.
    """

    tables: Mapping[str, TableStats]
    streams: Mapping[str, StreamState]
    last_checkpoint_s: float
    uptime_s: float
    followers: int = 0
    leaders: tuple[LeaderState, ...] = ()
    corrupt_chunks: int = 0
    standbys: tuple[str, ...] = ()
    follower_states: tuple[FollowerState, ...] = ()
    distributions: Mapping[tuple[str, str], Distribution] = field(default_factory=dict)
    dense_sets: Mapping[str, DenseSet] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointResult:
    """What one checkpoint wrote."""

    chunks_written: int
    bytes_written: int
    seconds: float


@runtime_checkable
class Reader(Protocol):
    """The half of a store that changes nothing; a follower has only this."""

    @overload
    def pull(
        self, tables: Mapping[str, Ids], *, meta: Literal[False] = False, dtype: Any = np.float32
    ) -> dict[str, np.ndarray]: ...
    @overload
    def pull(self, tables: Mapping[str, Ids], *, meta: Literal[True], dtype: Any = np.float32) -> dict[str, Rows]: ...
    def pull(
        self, tables: Mapping[str, Ids], *, meta: bool = False, dtype: Any = np.float32
    ) -> dict[str, np.ndarray] | dict[str, Rows]:
        """Rows in the order of the ids, [n, dim] a table; with ``meta`` also what is known of them.

        ``dtype``: float32, or float16, which is the float32 rows rounded to the nearest, ties to even. Numbers from
        65520 on become infinite and keep their sign; no warning tells. Any other raises InvalidArgumentError of
        ``dtype``. Of a remote store half as many bytes travel.
        """
        ...

    def contains(self, table: str, ids: Ids) -> np.ndarray:
        """Which ids have a row: bool [n]."""

    def scan(self, table: str) -> Iterator[tuple[np.ndarray, Rows]]:
        """Every row once, as (uint64 [n] ids, rows) pieces; the rows of one chunk are of one instant."""

    def get_dense(self, dense_set: str) -> DenseSet:
        """The published dense set; DenseSetNotFoundError."""

    def tables(self) -> dict[str, TableSpec]:
        """The spec of every table by name."""

    def stats(self) -> StoreStats:
        """Counters and sizes."""

    def close(self) -> None:
        """Release everything; an embedded store with a path checkpoints first. Twice is harmless."""


@runtime_checkable
class Store(Reader, Protocol):
    """Everything that a trainer needs. A push without origins is applied, but can be lost with its shard until the
    next checkpoint; a push with origins is applied exactly once."""

    def push(
        self,
        tables: Mapping[str, TablePush | tuple[Ids, Any]],
        *,
        origins: Sequence[Origin] = (),
        event_time_ms: int | None = None,
    ) -> PushResult:
        """Apply gradients of any number of tables, all or nothing (GapError, UnknownStreamError,
        StaleGenerationError, InvalidArgumentError, TableNotFoundError: nothing was touched)."""
        ...

    def assign(self, table: str, ids: Ids, rows: Any, *, event_time_ms: int | None = None) -> None:
        """Write embeddings as they are; the last of equal ids wins.

        Optimizer state and ``updates`` of an existing row stay.
        """

    def delete(self, table: str, ids: Ids) -> int:
        """Remove rows; returns how many were there."""

    def put_dense(self, dense_set: str, tensors: Mapping[str, Any], position: Mapping[str, int]) -> int:
        """Publish a dense set, whole; returns its version. StaleDenseSetError when any stream would go back, LimitError
        past 1 GiB, or past 64 MiB for a remote store."""

    def open_stream(self, stream: str, position: int) -> StreamState:
        """Open a stream at ``position``, or take over a known one (its watermarks stay) with the next generation."""

    def watermarks(self) -> dict[str, StreamState]:
        """Where every stream stands."""

    def checkpoint(self) -> CheckpointResult:
        """Make everything applied so far durable before returning. Nothing to do for a store without a path."""

    def create_table(self, spec: TableSpec) -> bool:
        """Create a table; False when it exists with the same spec; TableExistsError for another."""

    def alter_table(self, spec: TableSpec) -> None:
        """Change lr, ttl_s, rows_max or bytes_max; any other difference is refused by name."""

    def drop_table(self, table: str) -> None:
        """Remove a table and its rows."""

    def sweep(
        self, table: str | None = None, *, budget_ms: float | None = None, dry_run: bool = False
    ) -> dict[str, SweepResult]:
        """Remove expired rows and give memory back, in ``table`` or in all: by table what was done.

        Without ``budget_ms`` one whole round. ``budget_ms``: stop about then, and go on from there the next time; in a
        remote store each shard has it for itself. ``dry_run``: count what would expire, and change nothing.
        """
        ...


def check_stream_name(label: str, stream: str) -> None:
    """Raise :class:`InvalidArgumentError` unless ``stream`` can name a stream."""
    if not isinstance(stream, str) or not stream or len(stream.encode()) > STREAM_NAME_BYTES_MAX:
        raise InvalidArgumentError(label, f"must be 1-{STREAM_NAME_BYTES_MAX} bytes of text, not {stream!r}")


def check_position(label: str, position: int) -> None:
    """Raise :class:`InvalidArgumentError` unless ``position`` is an integer in [0, 2**63)."""
    if isinstance(position, bool) or not isinstance(position, int | np.integer) or not 0 <= position <= POSITION_MAX:
        raise InvalidArgumentError(label, f"must be an integer in [0, 2**63), not {position!r}")


def check_sweep(budget_ms: Any, dry_run: Any) -> None:
    """Raise :class:`InvalidArgumentError` unless these can be a sweep's."""
    if budget_ms is not None and not (is_finite(budget_ms) and budget_ms > 0):
        raise InvalidArgumentError("budget_ms", f"must be a positive number, or None, not {budget_ms!r}")
    if not isinstance(dry_run, bool):
        raise InvalidArgumentError("dry_run", f"must be True or False, not {dry_run!r}")


def as_ids(ids: Ids, label: str = "ids") -> np.ndarray:
    """``ids`` as a contiguous uint64 [n] array; no copy when it is one (int64 is reinterpreted)."""
    array = as_array(ids, label)
    if array.size == 0 and array.dtype.kind == "f" and not isinstance(ids, np.ndarray):
        array = array.astype(np.uint64)
    if array.ndim != 1:
        raise InvalidArgumentError(label, f"must have one dimension, not shape {array.shape}")
    if array.dtype.kind not in "iu":
        texts = " (embedstore.hash_ids makes them from texts)" if array.dtype.kind in "USTO" else ""
        raise InvalidArgumentError(label, f"must be 64-bit integers, not {array.dtype}{texts}")
    if array.size > IDS_PER_CALL_MAX:
        raise InvalidArgumentError(label, f"at most {IDS_PER_CALL_MAX} a call, not {array.size}")
    if array.dtype == np.int64:
        array = array.view(np.uint64)
    return np.ascontiguousarray(array, dtype=np.uint64)


def as_array(values: Any, label: str) -> np.ndarray:
    """``values`` as an array of whatever numpy makes of them, or :class:`InvalidArgumentError` naming ``label``."""
    try:
        return np.asarray(values.detach() if hasattr(values, "detach") else values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as problem:
        raise InvalidArgumentError(label, f"cannot be read as an array: {problem}") from problem


def as_row_dtype(dtype: Any, label: str = "dtype") -> np.dtype[Any]:
    """``dtype`` as numpy reads it: float32 or float16; or :class:`InvalidArgumentError` naming ``label``."""
    with suppress(TypeError, ValueError, SyntaxError):
        asked: np.dtype[Any] = np.dtype(dtype)
        if asked in ROW_DTYPES:
            return asked
    raise InvalidArgumentError(label, f"must be float32 or float16, not {dtype!r}")


def as_rows(rows: Any, num_ids: int, dim: int, label: str) -> np.ndarray:
    """``rows`` as contiguous float32 [num_ids, dim], or :class:`InvalidArgumentError` naming ``label``.

    Whether they are finite is checked by the table, in the same pass that reads them.
    """
    array = as_array(rows, label)
    if array.dtype.kind not in "fiu":
        raise InvalidArgumentError(label, f"must be floating point, not {array.dtype}")
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):  # becomes infinite, which the table refuses
            array = array.astype(np.float32)
    array = np.ascontiguousarray(array)
    if array.size == 0 and num_ids == 0 and array.ndim <= 2:
        array = array.reshape(0, dim)
    if array.shape != (num_ids, dim):
        raise InvalidArgumentError(label, f"must have shape {(num_ids, dim)}, not {array.shape}")
    return array
