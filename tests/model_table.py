"""A table as plain dictionaries: what ``embedstore.table.Table`` must be indistinguishable from.

Slow, obvious, single-threaded. The arithmetic is float32 in the order of the native kernels, so comparisons are exact.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from model_optimizers import initial_embedding, initial_state, learn, mix64

from embedstore.errors import DeltaGapError, GapError, UnknownStreamError
from embedstore.interface import Origin, Rows
from embedstore.spec import TableSpec, Zeros

FUTURE_TOLERANCE_MS = 60_000
F = np.float32


def chunk_of(key: int, num_chunks: int) -> int:
    """The top bits of the hash."""
    return mix64(key) >> (65 - num_chunks.bit_length()) if num_chunks > 1 else 0


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
    tombstones: dict[int, int] = field(default_factory=dict)
    horizon: int = 0


@dataclass
class ModelDelta:
    """A chunk at one instant, and the version from which a delta to it starts."""

    chunk: int
    from_version: int
    state: ModelChunk


class ModelTable:
    """All chunks of a table; the methods mirror ``Table``'s."""

    def __init__(self, spec: TableSpec, incarnations: Sequence[int]) -> None:
        self.spec = spec
        self.chunks = [ModelChunk(incarnation) for incarnation in incarnations]

    def __len__(self) -> int:
        return sum(len(chunk.rows) for chunk in self.chunks)

    def chunk(self, key: int) -> ModelChunk:
        return self.chunks[chunk_of(key, self.spec.num_chunks)]

    # --- reads

    def pull_rows(self, keys: Sequence[int]) -> Rows:
        rows = [self.chunk(key).rows.get(key) for key in keys]
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
        times_ms: Sequence[int] | None,
        lr: float | None = None,
        origins: Sequence[Origin] = (),
    ) -> None:
        """``times_ms``: one a key, or None."""
        lr = self.spec.optimizer.lr if lr is None else lr
        limit_ms = now_ms + FUTURE_TOLERANCE_MS
        for chunk, members in self._begin(keys, origins):
            clock_ms = chunk.clock_ms
            for key, occurrences in members.items():
                gradient = grads[occurrences[0]].copy()
                for at in occurrences[1:]:
                    gradient += grads[at]
                seen_ms = [clock_ms] if times_ms is None else [min(times_ms[at], limit_ms) for at in occurrences]
                row = self._row(chunk, key, min(seen_ms) // 1000)
                row.last_seen_s = max(row.last_seen_s, max(seen_ms) // 1000)
                chunk.clock_ms = max(chunk.clock_ms, *seen_ms)
                row.updates += 1
                learn(self.spec.optimizer, row.embedding, row.state, gradient, lr, row.updates)
                row.version = chunk.version

    def assign(
        self, keys: Sequence[int], rows: np.ndarray, *, now_ms: int, time_ms: int | None, origins: Sequence[Origin] = ()
    ) -> None:
        limit_ms = now_ms + FUTURE_TOLERANCE_MS
        limited = None if time_ms is None else min(time_ms, limit_ms)
        for chunk, members in self._begin(keys, origins):
            for key, occurrences in members.items():
                seconds = (chunk.clock_ms if limited is None else limited) // 1000
                chunk.clock_ms = max(chunk.clock_ms, limited or 0)
                row = self._row(chunk, key, seconds)
                row.last_seen_s = max(row.last_seen_s, seconds)
                row.embedding = rows[occurrences[-1]].copy()
                row.version = chunk.version

    def delete(self, keys: Sequence[int], *, origins: Sequence[Origin] = ()) -> int:
        removed = 0
        for chunk, members in self._begin(keys, origins, changes=False):
            present = [key for key in members if key in chunk.rows]
            chunk.version += bool(present)
            for key in present:
                del chunk.rows[key]
                chunk.tombstones[key] = chunk.version
            removed += len(present)
        return removed

    def _begin(
        self, keys: Sequence[int], origins: Sequence[Origin], *, changes: bool = True
    ) -> list[tuple[ModelChunk, dict[int, list[int]]]]:
        """Check the origins; then, for every chunk that takes part, move on and give its keys' occurrences."""
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
        for chunk, group in taking:
            chunk.watermarks = chunk.watermarks | {origin.stream: origin.end for origin in origins}
            chunk.version += bool(group) and changes
        return taking

    def _takes(self, chunk: ModelChunk, origins: Sequence[Origin]) -> bool:
        if origins and all(origin.end <= chunk.watermarks[origin.stream] for origin in origins):
            return False
        if any(origin.begin != chunk.watermarks[origin.stream] for origin in origins):
            raise GapError({o.stream: sorted({c.watermarks[o.stream] for c in self.chunks}) for o in origins})
        return True

    def _row(self, chunk: ModelChunk, key: int, seconds: int) -> ModelRow:
        chunk.tombstones.pop(key, None)
        if key not in chunk.rows:
            state = initial_state(self.spec.optimizer, self.spec.dim)
            chunk.rows[key] = ModelRow(initial_embedding(self.spec.init, key, self.spec.dim), state, seconds, seconds)
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
