"""Durability, against the disk itself."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

import embedstore as es
from benchmarks import data, tables
from benchmarks.harness import Contender, Figures, Line, Settings, race

FLAT = "one flat file of the same bytes"


def checkpoint(settings: Settings) -> list[Line]:
    """A checkpoint of rows that all changed, and a restart, against one flat file of the same bytes."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(dir=settings.work_dir)))
        ids = data.ids_of(settings, np.arange(settings.rows, dtype=np.uint64))
        grads = data.some_rows(settings, settings.batch)
        held = _Held(settings, work / "store", ids, grads)
        stack.callback(held.close)
        held.write(-1)
        flat = _Flat(settings, work / "flat", held)
        written = race(
            settings,
            "checkpoint",
            "write, every row changed",
            [Contender("Store.checkpoint", held.write)],
            [Contender(FLAT, flat.write)],
            budgets={("ns/row", FLAT): 2.0},
            warm_up=False,
        )
        read = race(
            settings,
            "checkpoint",
            "restart",
            [Contender("open", held.read)],
            [Contender(FLAT, flat.read)],
            limits={"ns/row": 500.0},
            warm_up=False,
        )
        return [*written, *read]


class _Held:
    """A store on disk."""

    def __init__(self, settings: Settings, path: Path, ids: np.ndarray, grads: np.ndarray) -> None:
        self._settings, self._path, self._ids, self._grads = settings, path, ids, grads
        self._store: Any = es.open(path, tables=[tables.spec(settings, tables.without_state())])
        self.bytes_written = 0

    def write(self, number: int) -> Figures:
        for part in data.slices(self._settings):
            self._store.push({"items": (self._ids[part], self._grads[: part.stop - part.start])})
        began = perf_counter()
        result = self._store.checkpoint()
        seconds = perf_counter() - began
        self.bytes_written = result.bytes_written
        return {"ns/row": seconds / self._settings.rows * 1e9}

    def read(self, number: int) -> Figures:
        self._store.close()
        began = perf_counter()
        self._store = es.open(self._path)
        seconds = perf_counter() - began
        assert self._store.stats().tables["items"].rows == self._settings.rows
        return {"ns/row": seconds / self._settings.rows * 1e9}

    def close(self) -> None:
        self._store.close()


class _Flat:
    """A file of as many bytes as the latest checkpoint wrote."""

    def __init__(self, settings: Settings, path: Path, held: _Held) -> None:
        self._settings, self._path, self._held = settings, path, held

    def write(self, number: int) -> Figures:
        content = np.random.default_rng(self._settings.seed).bytes(self._held.bytes_written)
        self._path.unlink(missing_ok=True)
        began = perf_counter()
        with self._path.open("wb") as target:
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
        return {"ns/row": (perf_counter() - began) / self._settings.rows * 1e9}

    def read(self, number: int) -> Figures:
        began = perf_counter()
        content = self._path.read_bytes()
        seconds = perf_counter() - began
        assert content
        return {"ns/row": seconds / self._settings.rows * 1e9}
