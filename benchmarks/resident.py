"""Prints how the memory of this process moves when it fills one table or map, and when rows go again: a process of
its own for each figure, because memory that another measurement left behind would hide growth.

Modes: "fill" prints the bytes that all rows take. "expire" takes all rows but one of ten away and prints how many per
cent of their memory is still there. "turns" inserts as many new rows again and again, takes those before them away
each time, and prints the memory after the last turn in per cent of that after the fifth: by then as many removals are
remembered as ever will be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

import embedstore as es
from benchmarks import data, tables
from benchmarks.harness import Settings
from benchmarks.processes import ROOT
from benchmarks.reference import HashMap
from benchmarks.sizes import give_memory_back
from embedstore.row_formats import NATIVE_ROW_TYPES, RowFormat
from embedstore.table import Table

STAYING = 0.1
TURNS = 20
SETTLED = 5
TTL_S = 3600
TURN_MS = 2 * TTL_S * 1000
# Event times begin here: long ago, because a clock is never ahead of the wall's.
BEGIN_MS = 1_600_000_000_000


def measured(settings: Settings, kind: str, mode: str) -> float:
    """What a fresh process prints."""
    told = {**asdict(settings), "work_dir": str(settings.work_dir), "peers_dir": str(settings.peers_dir)}
    command = [sys.executable, "-m", "benchmarks.resident", kind, mode, json.dumps(told)]
    return float(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


class Holder(Protocol):
    """Holds rows; ``turn`` counts the times that all earlier rows go."""

    def insert(self, ids: np.ndarray, turn: int) -> None: ...
    def drop(self, earlier: Iterator[np.ndarray]) -> None: ...


class Ours:
    """A table whose rows expire: every turn is two hours later, and a sweep takes away what is older than one."""

    def __init__(self, settings: Settings, expires: bool) -> None:
        more: dict[str, Any] = {"ttl_s": TTL_S} if expires else {}
        self._store: Any = es.open(None, tables=[tables.spec(settings, tables.without_state(), **more)])
        self._rows = data.some_rows(settings, settings.batch)

    def insert(self, ids: np.ndarray, turn: int) -> None:
        self._store.assign(tables.NAME, ids, self._rows[: len(ids)], event_time_ms=BEGIN_MS + turn * TURN_MS)

    def drop(self, earlier: Iterator[np.ndarray]) -> None:
        self._store.sweep(tables.NAME)


class Follower:
    """A table as a follower has it: embeddings only, kept as ``rows`` says."""

    def __init__(self, settings: Settings, rows: RowFormat) -> None:
        self._table = Table(tables.spec(settings, tables.without_state()), embeddings_only=True, rows=rows)
        self._rows = data.some_rows(settings, settings.batch)

    def insert(self, ids: np.ndarray, turn: int) -> None:
        self._table.assign(ids, self._rows[: len(ids)], now_ms=BEGIN_MS + turn * TURN_MS)

    def drop(self, earlier: Iterator[np.ndarray]) -> None:
        for ids in earlier:
            self._table.delete(ids)


class Map:
    """A hash map that is told which ids go."""

    def __init__(self, settings: Settings, kind: Literal["libcuckoo", "std::unordered_map"]) -> None:
        self._map = HashMap(kind, settings.dim)
        self._rows = data.some_rows(settings, settings.batch)

    def insert(self, ids: np.ndarray, turn: int) -> None:
        self._map.assign(ids, self._rows[: len(ids)])

    def drop(self, earlier: Iterator[np.ndarray]) -> None:
        for ids in earlier:
            self._map.erase(ids)


def ids_of_turn(settings: Settings, turn: int, share: float = 1.0, above: bool = False) -> Iterator[np.ndarray]:
    """The ids of one turn, a batch at a time: all, or the same random ``share`` of them, or with ``above`` the rest."""
    generator = np.random.default_rng((settings.seed, turn))
    for part in data.slices(settings):
        numbers = np.arange(part.start, part.stop, dtype=np.uint64) + np.uint64(turn * settings.rows)
        drawn = generator.random(len(numbers)) < share
        yield data.ids_of(settings, numbers[drawn != above])


def resident_bytes() -> int:
    """Memory of this process that is in RAM, after malloc gave back what it can."""
    give_memory_back()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(new: Callable[[], Holder], settings: Settings) -> float:
    before = resident_bytes()
    holder = new()
    _insert(holder, settings, 0)
    return resident_bytes() - before


def expire(new: Callable[[], Holder], settings: Settings) -> float:
    before = resident_bytes()
    holder = new()
    _insert(holder, settings, 0)
    full = resident_bytes() - before
    for ids in ids_of_turn(settings, 0, STAYING):
        holder.insert(ids, 1)
    holder.drop(ids_of_turn(settings, 0, STAYING, above=True))
    return 100 * (resident_bytes() - before) / full


def turns(new: Callable[[], Holder], settings: Settings) -> float:
    before, taken = resident_bytes(), []
    holder = new()
    for turn in range(TURNS):
        _insert(holder, settings, turn)
        holder.drop(ids_of_turn(settings, turn - 1) if turn > 0 else iter(()))
        taken.append(resident_bytes() - before)
    return 100 * taken[-1] / taken[SETTLED - 1]


def _insert(holder: Holder, settings: Settings, turn: int) -> None:
    for ids in ids_of_turn(settings, turn):
        holder.insert(ids, turn)


def main() -> None:
    kind, mode, told = sys.argv[1:4]
    given = json.loads(told)
    settings = Settings(**{**given, **{name: Path(given[name]) for name in ("work_dir", "peers_dir")}})

    def new() -> Holder:
        if kind == "ours":
            return Ours(settings, expires=mode != "fill")
        if kind in NATIVE_ROW_TYPES:
            return Follower(settings, kind)
        return Map(settings, cast(Literal["libcuckoo", "std::unordered_map"], kind))

    # What the first calls bring in once and for all is no table's.
    fill(new, replace(settings, rows=min(settings.rows, settings.batch)))
    print({"fill": fill, "expire": expire, "turns": turns}[mode](new, settings))


if __name__ == "__main__":
    main()
