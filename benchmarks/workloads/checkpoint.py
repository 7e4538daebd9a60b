"""Durability, against the disk itself."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

import embedstore as es
from benchmarks import data, tables
from benchmarks.harness import Contender, Figures, Line, Settings, race

FLAT = "one flat file of the same bytes"
READ = "the same bytes read into fresh memory"
WITHOUT = "without a checkpoint"
BUSY = "beside another process that loops"
PULL_IDS = 1024
PULLS = 1000
PULLS_PER_PUSH = 4
READ_BYTES = 1 << 20


def checkpoint(settings: Settings) -> list[Line]:
    """A checkpoint of rows that all changed, a restart, and pulls while checkpoints are written."""
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
        pulled = race(
            settings,
            "checkpoint",
            "pulls beside pushes",
            [Contender("with checkpoints", held.pull_beside)],
            [Contender(WITHOUT, held.pull), Contender(BUSY, held.pull_beside_a_loop)],
            budgets={("p99 ms", WITHOUT): 2.0, ("p99 ms not queued", WITHOUT): 2.0},
        )
        read = [line for warm in (True, False) for line in _restart(settings, held, warm)]
        return [*written, *pulled, *read]


def _restart(settings: Settings, held: _Held, warm: bool) -> list[Line]:
    return race(
        settings,
        "checkpoint",
        "restart" if warm else "restart, file cache empty",
        [Contender("open", lambda _: held.read(warm))],
        [Contender(READ, lambda _: held.read_bytes(warm))],
        limits={"ns/row": 500.0} if warm else None,
        warm_up=False,
    )


class _Held:
    """A store on disk."""

    def __init__(self, settings: Settings, path: Path, ids: np.ndarray, grads: np.ndarray) -> None:
        self._settings, self._path, self._ids, self._grads = settings, path, ids, grads
        self._store: Any = es.open(path, tables=[tables.spec(settings, tables.without_state())])
        self.bytes_written = 0

    def write(self, number: int) -> Figures:
        self._change_all()
        began = perf_counter()
        result = self._store.checkpoint()
        seconds = perf_counter() - began
        self.bytes_written = result.bytes_written
        return {"ns/row": seconds / self._settings.rows * 1e9}

    def _change_all(self) -> None:
        for part in data.slices(self._settings):
            self._store.push({"items": (self._ids[part], self._grads[: part.stop - part.start])})

    def pull(self, number: int, go_on: Callable[[], bool] = lambda: False) -> Figures:
        """How long single pulls take while one of ``PULLS_PER_PUSH`` is followed by a push, in one thread.

        Also without the time in which the thread could run and got no processor: what is left is the store's doing.
        """
        generator = np.random.default_rng((self._settings.seed, number + 1))
        taken_ms: list[float] = []
        not_queued_ms: list[float] = []
        with Path("/proc/thread-self/schedstat").open("rb", buffering=0) as schedstat:
            while len(taken_ms) < PULLS or go_on():
                ids = self._ids[generator.integers(0, len(self._ids), PULL_IDS)]
                queued_ms, began = _queued_ms(schedstat), perf_counter()
                self._store.pull({"items": ids})
                taken_ms.append((perf_counter() - began) * 1e3)
                not_queued_ms.append(taken_ms[-1] - (_queued_ms(schedstat) - queued_ms))
                if len(taken_ms) % PULLS_PER_PUSH == 0:
                    pushed = np.unique(ids)[: len(self._grads)]
                    self._store.push({"items": (pushed, self._grads[: len(pushed)])})
        return {
            "p50 ms": float(np.percentile(taken_ms, 50)),
            "p99 ms": float(np.percentile(taken_ms, 99)),
            "p99 ms not queued": float(np.percentile(not_queued_ms, 99)),
        }

    def pull_beside(self, number: int) -> Figures:
        """The same while another thread writes a checkpoint of rows that all changed, until it is written."""
        self._change_all()
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._store.checkpoint)
            figures = self.pull(number, lambda: not writing.done())
            writing.result()
        return figures

    def pull_beside_a_loop(self, number: int) -> Figures:
        """The same while another process does nothing, but that all the time: what the system's scheduler takes."""
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
            try:
                return self.pull(number)
            finally:
                loop.kill()

    def read(self, warm: bool) -> Figures:
        """Close, and open again."""
        self._store.close()
        self._prepare(warm)
        began = perf_counter()
        self._store = es.open(self._path)
        seconds = perf_counter() - began
        assert self._store.stats().tables["items"].rows == self._settings.rows
        return self._rate(seconds)

    def read_bytes(self, warm: bool) -> Figures:
        """What no restart can do without: the bytes of all segments go to memory that nobody has touched, on all
        processors."""
        self._prepare(warm)
        with ThreadPoolExecutor(os.cpu_count()) as pool, ExitStack() as stack:
            began = perf_counter()
            parts = []
            for file in self._segments():
                opened = stack.enter_context(file.open("rb", buffering=0))
                size = file.stat().st_size
                room = memoryview(_fresh(size))
                parts += [(opened.fileno(), room[at : at + READ_BYTES], at) for at in range(0, size, READ_BYTES)]
            assert all(pool.map(lambda part: os.preadv(part[0], [part[1]], part[2]), parts))
            return self._rate(perf_counter() - began)

    def _prepare(self, warm: bool) -> None:
        """Have the system keep the segments in memory, or forget them."""
        for file in self._segments():
            with file.open("rb", buffering=0) as opened:
                if not warm:
                    os.fsync(opened.fileno())
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while warm and opened.read(READ_BYTES):
                    pass

    def _segments(self) -> list[Path]:
        return sorted((self._path / "segments").iterdir())

    def _rate(self, seconds: float) -> Figures:
        return {
            "ns/row": seconds / self._settings.rows * 1e9,
            "million rows/s": self._settings.rows / seconds / 1e6,
        }

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


def _queued_ms(schedstat: FileIO) -> float:
    """How long this thread has waited for a processor in all its life."""
    schedstat.seek(0)
    return int(schedstat.read().split()[1]) / 1e6


def _fresh(size: int) -> mmap.mmap:
    """Memory as a table gets it: on huge pages where the system has them."""
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
