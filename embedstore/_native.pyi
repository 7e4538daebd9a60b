"""
The native core: one table's chunks, and batch operations on ids. Use embedstore.table instead.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy
import numpy.typing
from numpy.typing import NDArray


def tune_allocator() -> None:
    """
    Keep freed memory of large buffers in this process instead of returning and re-faulting it (glibc only; elsewhere this does nothing). Call once, early; any thread.
    """

def mix64(ids: object) -> numpy.typing.NDArray[numpy.uint64]:
    """
    The 64-bit hash of every id: uint64 [n] -> uint64 [n]. The finalizer of splitmix64; part of the formats.
    """

def unique(ids: object) -> tuple[numpy.typing.NDArray[numpy.uint64], numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.uint32]]:
    """
    Distinct ids in order of first occurrence: uint64 [n] -> (uint64 [k], int64 [n] index of each id among them, uint32 [k] how often each occurs).
    """

def repeated(ids: object, repeats_min: int) -> tuple[numpy.typing.NDArray[numpy.uint64], numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.uint32]] | None:
    """
    As unique; None when fewer than repeats_min (at least 1) of the ids repeat an earlier one.
    """

def split(ids: object, num_chunks: int, num_shards: int) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64]]:
    """
    Group ids by owning shard: (int64 [n] positions, stable within a shard; int64 [num_shards + 1] where each shard's begin). Shard i owns chunks [i*C//n, (i+1)*C//n).
    """

def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of the bytes."""

def answer_pull(table: Table, request: bytes, ids_at: int, num_ids: int, head: bytes, width: int) -> bytes:
    """
    One bytes object from head and the rows of the ids that stand in request at ids_at, pulled straight into place; width: bytes of a number, 4 or 2. Large pulls, and those that must wait, do without the GIL.
    """

def rows_of(message: bytes, at: int, num_rows: int, dim: int, width: int) -> numpy.typing.NDArray[Any]:
    """
    Rows in a message as a writable array over its memory, which lives as long as the array. Only for a message that nobody else will ever look at.
    """

def gather_message(segments: list[bytes | tuple[object, object, object]]) -> bytes:
    """
    One bytes object from literal bytes and rows: each segment is bytes, or (table, uint64 [n] ids, dtype) for the rows of these ids, float32 or float16, pulled straight into place without the GIL.
    """

class Table:
    """
    One table of this process. Every method may be called from any thread and drops the GIL.
    """

    def __init__(self, *, name: str, dim: int, num_chunks: int, chunk_begin: int, chunk_end: int, optimizer: int, lr: float, initial_accumulator: float, eps: float, beta1: float, beta2: float, l1: float, l2: float, weight_decay: float, clip_norm: float, init: int, init_scale: float, init_seed: int, admission: int = 0, admission_count: int = 1, admission_p: float = 1.0, admission_seed: int = 0, admission_bytes: int = 0, ttl_ms: int = -1, rows_max: int = 0, bytes_max: int = 0, init_on_miss: bool, embeddings_only: bool, stored: int = 0, tombstones_max: int, incarnations: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
        """
        optimizer: 1 SGD, 2 momentum (beta1), 3 Adagrad, 4 row-wise Adagrad, 5 Adam, 6 RMSProp (beta2), 7 FTRL (beta1). clip_norm: 0 for none. init: 0 zeros, 1 constant, 2 uniform, 3 normal, 4 truncated normal. incarnations: nonzero uint64, one for each owned chunk. admission: 0 everything, 1 admission_count, 2 admission_p. ttl_ms: -1 for ever. rows_max, bytes_max: of the table, 0 for no bound. stored: 0 float32, 1 float16, 2 int8, 3 int4.
        """

    def __len__(self) -> int:
        """Rows."""

    @property
    def memory_bytes(self) -> int:
        """Bytes held for rows, index, versions and tombstones."""

    def set_lr(self, lr: float) -> None:
        """Learning rate of later pushes that give none."""

    def set_limits(self, *, ttl_ms: int, rows_max: int, bytes_max: int) -> None:
        """Time to live (-1: for ever) and capacity (0: no bound) from now on."""

    def check_limits(self, *, ttl_ms: int, rows_max: int, bytes_max: int) -> None:
        """Raise what set_limits() would raise; change nothing."""

    def sweep(self, rows_max: int, dry_run: bool) -> dict[str, int]:
        """
        Go on sweeping through at most rows_max row numbers; with dry_run count what a whole round would find.
        """

    def pull(self, ids: object, out: object) -> None:
        """
        Write the rows of uint64 [n] ids to out, [n, dim] float32 or float16. An id without a row reads as the table's on_miss. Changes nothing.
        """

    def pull_rows(self, ids: object, rows: object, found: object, updates: object, first_seen_s: object, last_seen_s: object) -> None:
        """
        pull() with metadata: found bool [n], updates uint32 [n], first_seen_s and last_seen_s int64 [n].
        """

    def contains(self, ids: object, found: object) -> None:
        """Write to found, bool [n], which ids have a row."""

    def last_seen(self, ids: object, found: object, last_seen_s: object) -> None:
        """
        contains(), and when each row was last seen, int64 [n]. Counts as no pull.
        """

    def push(self, ids: object, grads: object, *, now_ms: int, counts: object | None = None, event_times_ms: object | None = None, event_time_ms: int = -1, lr: float = -1.0, origins: list[tuple[str, int, int]] = [], validated: bool = False) -> None:
        """
        Apply float32 [n, dim] gradients; equal ids are summed. -1: no event time, the table's lr.
        """

    def validate_push(self, ids: object, grads: object, *, now_ms: int, counts: object | None = None, event_times_ms: object | None = None, event_time_ms: int = -1, lr: float = -1.0) -> None:
        """Raise what push() would raise for these arguments; touch nothing."""

    def assign(self, ids: object, rows: object, *, now_ms: int, event_time_ms: int = -1, origins: list[tuple[str, int, int]] = []) -> None:
        """Write float32 [n, dim] embeddings; the last of equal ids wins."""

    def erase(self, ids: object, *, reason: int = 1, origins: list[tuple[str, int, int]] = []) -> int:
        """
        Remove rows; returns how many were there. reason: 1 erased, 2 expired, 3 evicted.
        """

    def scan(self, chunk: int) -> tuple[numpy.typing.NDArray[numpy.uint64], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.uint32], numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64]]:
        """
        All rows of a chunk at one instant: (ids, embeddings, updates, first_seen_s, last_seen_s).
        """

    def counters(self) -> dict[str, int]:
        """Counters since the table was made, and its present tombstones."""

    def watermarks(self) -> list[tuple[dict[str, int], list[int]]]:
        """Each distinct set of watermarks and the chunks that have it."""

    def raise_streams(self, positions: Mapping[str, int], only_new: bool) -> None:
        """
        Raise streams in every chunk to these positions; with only_new leave known ones as they are.
        """

    def forget_stream(self, stream: str) -> None:
        """Drop a stream's watermark in every chunk."""

    def raise_chunk(self, chunk: int, positions: Mapping[str, int], clock_ms: int) -> None:
        """Raise one chunk's watermarks and clock."""

    def chunk_states(self) -> tuple[numpy.typing.NDArray[numpy.uint64], numpy.typing.NDArray[numpy.uint64], numpy.typing.NDArray[numpy.int64]]:
        """
        (incarnations uint64, versions uint64, clocks int64) of the owned chunks.
        """

    def branch(self, incarnations: object) -> None:
        """
        Begin a new history in every chunk, with the present one as its parent.
        """

    def delta(self, chunk: int, incarnation: int, version: int, embeddings_only: bool) -> bytes:
        """
        The ChunkDelta since a cursor, or the full chunk when it cannot continue from there.
        """

    def apply(self, delta: bytes | memoryview) -> tuple[int, int, int]:
        """
        Apply a ChunkDelta: (chunk, incarnation, version) where it stands now. Nobody may write to the buffer meanwhile.
        """
