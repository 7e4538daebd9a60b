"""The demo's processes: started, watched, killed on request, started again, and always stopped.

Every child is known by its process id, runs in a session of its own (so that Ctrl-C reaches only the demo, which then
stops the children in order) and writes to its own log. :class:`Fleet` belongs to one thread.
"""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
POLL_INTERVAL_S = 0.05
LOG_LINES_SHOWN = 15


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to look at."""


@dataclass
class Child:
    """One process and where it writes."""

    name: str
    command: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes]
    log_start: int

    def output(self) -> str:
        """What this start of the process has written so far."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return log.read().decode(errors="replace")

    def death(self) -> str:
        """How it ended, with the last lines that it wrote."""
        code = self.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        tail = "\n".join(f"  | {line}" for line in self.output().splitlines()[-LOG_LINES_SHOWN:])
        return f"{self.name} ended with {how}; its log is {self.log}\n{tail}"


class Fleet:
    """All children of one run; leaving the ``with`` block stops every one that still runs."""

    def __init__(self, log_dir: Path) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = [child.process for child in self._children.values() if child.process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        try:
            for process in running:
                _wait_or_kill(process, deadline)
        finally:
            # Only a second interrupt leaves anything to do here.
            for process in running:
                process.kill()
                process.wait()

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a process, or start it again under its old name with its log going on."""
        log = self._log_dir / f"{name}.log"
        with log.open("ab") as out:
            out.write(f"$ {shlex.join(command)}\n".encode())
            out.flush()
            start = out.tell()
            process = _spawn(command, out)
        self._children[name] = Child(name, command, log, process, start)
        return self._children[name]

    def restart(self, name: str) -> Child:
        """Start an ended process again with the same command."""
        return self.start(name, self._children[name].command)

    def wait_ready(self, name: str, pattern: str, timeout_s: float = READY_TIMEOUT_S) -> re.Match[str]:
        """Wait until a process has written a line that matches; :class:`DemoError` when it ends or is too slow."""
        child = self._children[name]
        deadline = time.monotonic() + timeout_s
        while True:
            match = re.search(pattern, child.output(), re.MULTILINE)
            if match:
                return match
            if child.process.poll() is not None:
                raise DemoError(child.death())
            if time.monotonic() > deadline:
                raise DemoError(f"{name} was not ready after {timeout_s:.0f} s; its log is {child.log}")
            time.sleep(POLL_INTERVAL_S)

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash would."""
        self._children[name].process.kill()

    def discard(self, name: str) -> None:
        """End a process at once and wait for it, as if it had never been."""
        process = self._children[name].process
        process.kill()
        process.wait()

    def returncode(self, name: str) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._children[name].process.poll()

    def death(self, name: str) -> str:
        """How an ended process ended."""
        return self._children[name].death()

    def stop(self, names: Iterable[str]) -> None:
        """SIGTERM these and wait; :class:`DemoError` when one does not end, or not with status 0."""
        names = list(names)
        for name in names:
            self._children[name].process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for name in names:
            child = self._children[name]
            if not _wait_or_kill(child.process, deadline):
                raise DemoError(f"{name} did not stop within {STOP_TIMEOUT_S:.0f} s of SIGTERM; its log is {child.log}")
            if child.process.returncode != 0:
                raise DemoError(child.death())


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(what: str, done: Callable[[], bool], timeout_s: float, check: Callable[[], None]) -> None:
    """Poll ``done`` until it holds; ``check`` may raise in between; :class:`DemoError` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not done():
        check()
        if time.monotonic() > deadline:
            raise DemoError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_INTERVAL_S)


def _spawn(command: Sequence[str], out: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        raise DemoError(f"cannot start {command[0]}: {error}") from error


def _wait_or_kill(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Whether the process ended by itself before the deadline; it has ended in any case."""
    try:
        process.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True
