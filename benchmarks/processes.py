"""Server processes of a workload: started, waited for, and ended with it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parents[1]
START_S_MAX = 60.0
STOP_S_MAX = 60.0


class Served:
    """A serving process: where it is, and what it has used."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.address = address
        self._process = process

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def cpu_s(self) -> float:
        """Processor time of all its threads so far."""
        times = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(options: Sequence[str], core: int | None = None) -> Iterator[Served]:
    """``embedstore serve`` with these options on a free port, as in life, pinned to a core if one is named. It writes
    no checkpoints meanwhile: what these cost is a workload of its own."""
    command = [sys.executable, "-c", "from embedstore.cli import main; main()", "serve", "--listen", "127.0.0.1:0"]
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    with _running(
        [*pinned, *command, "--checkpoint-interval-s", "3600", "--checkpoint-bytes", str(1 << 40), *options]
    ) as process:
        yield Served(process, _printed(process, re.compile(r"embedstore: serving (?:shard 0/1|follower) on (\S+)")))


@contextmanager
def shard_server(data_dir: Path) -> Iterator[str]:
    """Shard 0 of 1; gives its address."""
    with served(["--shard", "0/1", "--data", str(data_dir)]) as shard:
        yield shard.address


@contextmanager
def raw_server(rows: int, dim: int, pull_overhead: int, push_reply: int, threads: int) -> Iterator[str]:
    """The raw handler; gives its address."""
    sizes = {"rows": rows, "dim": dim, "pull-overhead": pull_overhead, "push-reply": push_reply, "threads": threads}
    options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    with _running([sys.executable, "-m", "benchmarks.raw_server", *options]) as process:
        yield "127.0.0.1:" + _printed(process, re.compile(r"(\d+)"))


@contextmanager
def redis_server() -> Iterator[int]:
    """A Redis that keeps nothing on disk; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]
    with _running(["redis-server", *options]) as process:
        _printed(process, re.compile(r"(Ready to accept connections)"))
        yield port


def redis_absence() -> str | None:
    """Why Redis cannot be measured here, or None."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed"
    try:
        import redis  # noqa: F401
    except ImportError:
        return "the Python package redis is not installed"
    return None


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _printed(process: subprocess.Popen[str], pattern: re.Pattern[str]) -> str:
    """The first group of the first line that matches; RuntimeError when the process ends before it prints one."""
    began = monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        found = pattern.search(line)
        if found:
            return found[1]
        if monotonic() - began > START_S_MAX:
            break
    raise RuntimeError(f"{process.args!r} did not start serving")
