"""A table as plain dictionaries: what ``embedstore.table.Table`` must be indistinguishable from.

Slow, obvious, single-threaded. The arithmetic is float32 in the order of the native kernels, so comparisons are exact.
Counts of ids without a row are a dictionary by the 32-bit fingerprint, as long as the real one never has to halve.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from model_optimizers import initial_embedding, initial_state, learn, mix64

from embedstore.errors import DeltaGapError, GapError, UnknownStreamError
from embedstore.interface import Origin, Rows
from embedstore.spec import Admission, MinCount, Probability, TableSpec, Zeros

FUTURE_TOLERANCE_MS = 60_000
ERASED, EXPIRED, EVICTED = 1, 2, 3
COUNT_MAX = 2**32 - 1
HEADER_BYTES = 20
INDEX_BYTES = 24
F = np.float32


def chunk_of(key: int, num_chunks: int) -> int:
    """The top bits of the hash."""
    return mix64(key) >> (65 - num_chunks.bit_length()) if num_chunks > 1 else 0


def fingerprint(key: int) -> int:
    return mix64(key) & COUNT_MAX


def needed(rule: Admission | None, key: int) -> int:
    """The number of the occurrence that lets the id have a row; 0: every id has one at once."""
    if isinstance(rule, MinCount):
        return rule.count
    if not isinstance(rule, Probability):
        return 0
    draw = mix64(key ^ mix64(rule.seed)) >> 11
    bound, failures, chance = (2**53 - draw) * 2.0**-53, 0, 1.0
    powers = [1.0 - rule.p]
    while len(powers) < 32:
        powers.append(powers[-1] * powers[-1])
    for j in reversed(range(32)):
        if powers[j] > bound and chance * powers[j] > bound:
            chance *= powers[j]
            failures += 1 << j
    return min(failures + 1, COUNT_MAX)


def row_bytes(spec: TableSpec) -> int:
    state = initial_state(spec.optimizer, spec.dim)
    return HEADER_BYTES + INDEX_BYTES + 4 * (spec.dim + sum(len(part) for part in state))


def rows_cap(spec: TableSpec) -> int | None:
    """Rows that one chunk may have."""
    caps = []
    if spec.rows_max is not None:
        caps.append(spec.rows_max // spec.num_chunks)
    if spec.bytes_max is not None:
        caps.append(spec.bytes_max // spec.num_chunks // row_bytes(spec))
    return min(caps, default=None)


@dataclass
class ModelRow:
    embedding: np.ndarray
    state: list[np.ndarray]
    first_seen_s: int
    last_seen_s: int
    version: int = 0
    updates: int = 0


@dataclass
class ModelChunk:
    incarnation: int
    version: int = 0
    parent: tuple[int, int] = (0, 0)
    clock_ms: int = 0
    watermarks: dict[str, int] = field(default_factory=dict)
    rows: dict[int, ModelRow] = field(default_factory=dict)
    tombstones: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(version, reason) by id."""
    sketch: dict[int, int] = field(default_factory=dict)
    horizon: int = 0

    def remove(self, key: int, reason: int) -> None:
        del self.rows[key]
        self.tombstones[key] = (self.version, reason)


@dataclass
class ModelDelta:
    """A chunk at one instant, and the version from which a delta to it starts."""

    chunk: int
    from_version: int
    state: ModelChunk


class ModelTable:
    """All chunks of a table; the methods mirror ``Table``'s. ``counters`` has the names of ``TableStats``."""

    def __init__(self, spec: TableSpec, incarnations: Sequence[int]) -> None:
        self.spec = spec
        self.chunks = [ModelChunk(incarnation) for incarnation in incarnations]
        self.counters: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(len(chunk.rows) for chunk in self.chunks)

    def chunk(self, key: int) -> ModelChunk:
        return self.chunks[chunk_of(key, self.spec.num_chunks)]

    def alter(self, spec: TableSpec) -> None:
        self.spec = spec

    # --- what is there

    def alive_since_s(self, clock_ms: int) -> int:
        """A row that was last seen before this is expired."""
        if self.spec.ttl_s is None:
            return 0
        return max(clock_ms - round(min(self.spec.ttl_s, 2.0**53) * 1000), 0) // 1000

    def row(self, key: int) -> ModelRow | None:
        """The row as a reader sees it."""
        return self.living(self.chunk(key)).get(key)

    def living(self, chunk: ModelChunk) -> dict[int, ModelRow]:
        since_s = self.alive_since_s(chunk.clock_ms)
        return {key: row for key, row in chunk.rows.items() if row.last_seen_s >= since_s}

    def pull_rows(self, keys: Sequence[int]) -> Rows:
        rows = [self.row(key) for key in keys]
        init = self.spec.init if self.spec.on_miss == "init" else Zeros()
        missing = [initial_embedding(init, key, self.spec.dim) for key in keys]
        embeddings = [miss if row is None else row.embedding for row, miss in zip(rows, missing, strict=True)]
        return Rows(
            embeddings=np.array(embeddings, F).reshape(len(keys), self.spec.dim),
            found=np.array([row is not None for row in rows], np.bool_),
            updates=np.array([row.updates if row else 0 for row in rows], np.uint32),
            first_seen_s=np.array([row.first_seen_s if row else 0 for row in rows], np.int64),
            last_seen_s=np.array([row.last_seen_s if row else 0 for row in rows], np.int64),
        )

    # --- writes

    def push(
        self,
        keys: Sequence[int],
        grads: np.ndarray,
        *,
        now_ms: int,
        times_ms: Sequence[int | None] | None,
        counts: Sequence[int] | None = None,
        lr: float | None = None,
        origins: Sequence[Origin] = (),
    ) -> None:
        """``times_ms``: one a key, or None."""
        lr = self.spec.optimizer.lr if lr is None else lr
        given = [None] * len(keys) if times_ms is None else times_ms
        each = [1] * len(keys) if counts is None else counts
        for chunk, members in self._begin(keys, origins):
            clock_ms = chunk.clock_ms
            occurrences = {key: sum(each[at] for at in places) for key, places in members.items()}
            taken = self._admit(chunk, occurrences)
            for key, places in members.items():
                seen_ms = [_limited(given[at], now_ms, clock_ms) for at in places]
                chunk.clock_ms = max(chunk.clock_ms, *seen_ms)
                if key not in taken:
                    continue
                gradient = grads[places[0]].copy()
                for at in places[1:]:
                    gradient += grads[at]
                row = self._row(chunk, key, min(seen_ms) // 1000, clock_ms)
                row.last_seen_s = max(row.last_seen_s, max(seen_ms) // 1000)
                row.updates += 1
                learn(self.spec.optimizer, row.embedding, row.state, gradient, lr, row.updates)
                row.version = chunk.version
            self.counters["pushed_rows"] += len(taken)
            self._evict(chunk)

    def _admit(self, chunk: ModelChunk, occurrences: dict[int, int]) -> set[int]:
        """Decide by the counts before the batch, move the version on, and count; the keys that have a row then."""
        new = occurrences.keys() - self.living(chunk).keys()
        counted = {key: chunk.sketch.get(fingerprint(key), 0) + occurrences[key] for key in new}
        dropped = [key for key in occurrences if key in new and counted[key] < needed(self.spec.admission, key)]
        taken = occurrences.keys() - set(dropped)
        chunk.version += bool(taken) or any(occurrences[key] or key in chunk.rows for key in dropped)
        for key in new & taken:
            chunk.sketch.pop(fingerprint(key), None)
        for key in dropped:
            if key in chunk.rows:
                chunk.remove(key, EXPIRED)
                self.counters["expired_rows"] += 1
            if occurrences[key]:
                chunk.sketch[fingerprint(key)] = min(counted[key], COUNT_MAX)
        self.counters["dropped_rows"] += len(dropped)
        return taken

    def assign(
        self, keys: Sequence[int], rows: np.ndarray, *, now_ms: int, time_ms: int | None, origins: Sequence[Origin] = ()
    ) -> None:
        for chunk, members in self._begin(keys, origins):
            clock_ms = chunk.clock_ms
            chunk.version += bool(members)
            for key, occurrences in members.items():
                seen_ms = _limited(time_ms, now_ms, clock_ms)
                chunk.clock_ms = max(chunk.clock_ms, seen_ms)
                row = self._row(chunk, key, seen_ms // 1000, clock_ms)
                row.last_seen_s = max(row.last_seen_s, seen_ms // 1000)
                row.embedding = rows[occurrences[-1]].copy()
                row.version = chunk.version
            self._evict(chunk)

    def delete(self, keys: Sequence[int], *, origins: Sequence[Origin] = ()) -> int:
        removed = 0
        for chunk, members in self._begin(keys, origins):
            present = [key for key in members if key in chunk.rows]
            removed += len(members.keys() & self.living(chunk).keys())
            chunk.version += bool(present)
            for key in present:
                chunk.remove(key, ERASED)
        return removed

    def sweep(self, *, dry_run: bool = False) -> int:
        """A whole round; how many rows expired."""
        clocks: dict[tuple[tuple[str, int], ...], int] = {}
        for chunk in self.chunks:
            marks = tuple(sorted(chunk.watermarks.items()))
            clocks[marks] = max(clocks.get(marks, 0), chunk.clock_ms)
        expired = 0
        for chunk in self.chunks:
            clock_ms = clocks[tuple(sorted(chunk.watermarks.items()))]
            since_s = self.alive_since_s(clock_ms)
            old = [key for key, row in chunk.rows.items() if row.last_seen_s < since_s]
            expired += len(old)
            if dry_run:
                continue
            chunk.clock_ms = clock_ms
            chunk.version += bool(old) or self._over(chunk, len(chunk.rows)) > 0
            for key in old:
                chunk.remove(key, EXPIRED)
            self.counters["expired_rows"] += len(old)
            self._evict(chunk)
        return expired

    def _over(self, chunk: ModelChunk, num_rows: int) -> int:
        """How many of so many rows have to go."""
        cap = rows_cap(self.spec)
        return num_rows - (cap - cap // 16) if cap is not None and num_rows > cap else 0

    def _evict(self, chunk: ModelChunk) -> None:
        def order(key: int) -> tuple[int, int, int]:
            return chunk.rows[key].last_seen_s, chunk.rows[key].version, key

        for key in sorted(chunk.rows, key=order)[: self._over(chunk, len(chunk.rows))]:
            chunk.remove(key, EVICTED)
            self.counters["evicted_rows"] += 1

    def _begin(
        self, keys: Sequence[int], origins: Sequence[Origin]
    ) -> Iterable[tuple[ModelChunk, dict[int, list[int]]]]:
        """Check the origins; then, for every chunk that takes part, move its watermarks and give its keys' places."""
        members: list[dict[int, list[int]]] = [{} for _ in self.chunks]
        for at, key in enumerate(keys):
            members[chunk_of(key, self.spec.num_chunks)].setdefault(key, []).append(at)
        for chunk in self.chunks:
            for origin in origins:
                if origin.stream not in chunk.watermarks:
                    raise UnknownStreamError(origin.stream)
        taking = [
            (chunk, group)
            for chunk, group in zip(self.chunks, members, strict=True)
            if self._takes(chunk, origins) and (group or origins)
        ]
        for chunk, _ in taking:
            chunk.watermarks = chunk.watermarks | {origin.stream: origin.end for origin in origins}
        return [(chunk, group) for chunk, group in taking if group]

    def _takes(self, chunk: ModelChunk, origins: Sequence[Origin]) -> bool:
        if origins and all(origin.end <= chunk.watermarks[origin.stream] for origin in origins):
            return False
        if any(origin.begin != chunk.watermarks[origin.stream] for origin in origins):
            raise GapError({o.stream: sorted({c.watermarks[o.stream] for c in self.chunks}) for o in origins})
        return True

    def _row(self, chunk: ModelChunk, key: int, seconds: int, clock_ms: int) -> ModelRow:
        """The row to write to, begun afresh when there is none that was alive before the write."""
        chunk.tombstones.pop(key, None)
        old = chunk.rows.get(key)
        if old is not None and old.last_seen_s >= self.alive_since_s(clock_ms):
            return old
        state = initial_state(self.spec.optimizer, self.spec.dim)
        chunk.rows[key] = ModelRow(initial_embedding(self.spec.init, key, self.spec.dim), state, seconds, seconds)
        chunk.sketch.pop(fingerprint(key), None)
        self.counters["inserted_rows"] += 1
        self.counters["expired_rows"] += old is not None
        return chunk.rows[key]

    # --- streams and sync

    def open_stream(self, stream: str, position: int) -> None:
        for chunk in self.chunks:
            chunk.watermarks.setdefault(stream, position)

    def branch(self, incarnations: Sequence[int]) -> None:
        for chunk, incarnation in zip(self.chunks, incarnations, strict=True):
            chunk.parent = (chunk.incarnation, chunk.version)
            chunk.incarnation = incarnation

    def snapshot(self, number: int, from_version: int) -> ModelDelta:
        return ModelDelta(number, from_version, copy.deepcopy(self.chunks[number]))

    def apply(self, delta: ModelDelta) -> None:
        """The same verdicts as the table's; the resulting chunk is the snapshot itself."""
        mine, theirs = self.chunks[delta.chunk], delta.state
        if theirs.incarnation == mine.incarnation and theirs.version <= mine.version:
            if theirs.version == mine.version:
                raised = {s: max(p, mine.watermarks.get(s, 0)) for s, p in theirs.watermarks.items()}
                mine.watermarks = mine.watermarks | raised
                mine.clock_ms = max(mine.clock_ms, theirs.clock_ms)
            return
        if theirs.incarnation == mine.parent[0] and theirs.version <= mine.parent[1]:
            return
        child = theirs.parent[0] == mine.incarnation and mine.version <= theirs.parent[1]
        continues = (theirs.incarnation == mine.incarnation or child) and (
            delta.from_version <= mine.version <= theirs.version
        )
        if delta.from_version and not continues:
            raise DeltaGapError("model")
        self.chunks[delta.chunk] = copy.deepcopy(theirs)
        if delta.from_version == 0:
            self.chunks[delta.chunk].tombstones = {}


def _limited(time_ms: int | None, now_ms: int, clock_ms: int) -> int:
    return clock_ms if time_ms is None else min(time_ms, now_ms + FUTURE_TOLERANCE_MS)
