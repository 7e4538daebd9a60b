"""Other libraries, each in a virtual environment of its own (``make bench-peers``) and in a process of its own.

A worker makes the same inputs from the same seed, does its turn when it is told to, and answers with its figures. So
it takes its turns among the contenders of this process, and stands still while another has its turn.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from benchmarks.harness import Absent, Contender, Figures, Settings
from benchmarks.sizes import lack_of_memory

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / "build" / "bench" / "peers"
STOP_S_MAX = 30.0
INSERT_ROWS_MAX = 1_000_000


@dataclass(frozen=True)
class _Task:
    """What a peer does in a workload: the names of its contenders, and the bytes that it takes for all rows."""

    peer: str
    contenders: tuple[str, ...]
    num_bytes: Callable[[int, int], int]


def _dense(floats_per_number: int) -> Callable[[int, int], int]:
    return lambda rows, dim: 4 * rows * dim * floats_per_number


def _map(tables: int) -> Callable[[int, int], int]:
    """Slots are a power of two, and the smaller map lies beside the larger one while it doubles."""
    return lambda rows, dim: (1 << (rows * 10 // 9).bit_length()) * (4 * dim + 16) * 3 // 2 * tables


TASKS: dict[str, tuple[_Task, ...]] = {
    "pull": (
        _Task("fbgemm", ("fbgemm TBE forward, known rows",), _dense(2)),
        _Task("tfra", ("TFRA lookup",), _map(1)),
    ),
    "push Adagrad": (
        _Task("fbgemm", ("fbgemm TBE forward + fused Adagrad", "fbgemm TBE fused Adagrad alone"), _dense(3)),
        _Task("tfra", ("TFRA lookup + Adagrad",), _map(2)),
    ),
    "push row-wise Adagrad": (
        _Task("fbgemm", ("fbgemm TBE forward + fused row-wise", "fbgemm TBE fused row-wise alone"), _dense(2)),
    ),
    "insert": (_Task("tfra", ("TFRA upsert",), _map(1)),),
}


def contenders(settings: Settings, task: str, stack: ExitStack) -> list[Contender | Absent]:
    """The peers' contenders for a task, whose processes end with ``stack``; Absent with the reason otherwise."""
    found: list[Contender | Absent] = []
    for one in TASKS.get(task, ()):
        missing = _absence(one, task, settings)
        worker = None
        if missing is None:
            try:
                worker = _Worker(one.peer, task, settings, stack)
            except WorkerError as error:
                missing = str(error)
        found += [worker.contender(name) if worker else Absent(name, missing or "") for name in one.contenders]
    return found


def _absence(task: _Task, name: str, settings: Settings) -> str | None:
    if not (settings.peers_dir / task.peer / "bin" / "python").exists():
        return "not installed: make bench-peers"
    if name == "insert" and settings.rows > INSERT_ROWS_MAX:
        return f"measured up to {INSERT_ROWS_MAX:,} rows: growing takes too long"
    return lack_of_memory(task.num_bytes(settings.rows, settings.dim))


class WorkerError(Exception):
    """A worker ended; the text is the last line that it said."""


class _Worker:
    """One process of a peer, ready to take turns."""

    def __init__(self, peer: str, task: str, settings: Settings, stack: ExitStack) -> None:
        self._said: IO[str] = TemporaryFile("w+")  # noqa: SIM115 - closed with the stack
        stack.enter_context(self._said)
        command = [str(settings.peers_dir / peer / "bin" / "python"), "-W", "ignore", "-m", "benchmarks.peers.worker"]
        told = {**asdict(settings), "work_dir": str(settings.work_dir), "peers_dir": str(settings.peers_dir)}
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*command, peer, task, json.dumps(told)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        stack.callback(self._stop)
        self._read()

    def contender(self, name: str) -> Contender:
        """Gives the figures of the worker's contender of this name."""

        def run(number: int) -> Figures:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"contender": name, "round": number}) + "\n")
            self._process.stdin.flush()
            figures: dict[str, float] = self._read()
            return figures

        return Contender(name, run)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._said.seek(0)
        said = [text.strip() for text in self._said if text.strip()]
        raise WorkerError(said[-1] if said else f"ended with exit code {self._process.returncode}")

    def _stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
