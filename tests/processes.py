"""Serving processes as an operator starts them, always stopped at the end of a test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

READY_TIMEOUT_S = 60.0
COMMAND = (sys.executable, "-m", "embedstore.cli")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Process:
    """``embedstore serve`` with ``arguments``, from its ready line on."""

    def __init__(self, *arguments: str, cwd: Path | None = None) -> None:
        self.arguments = arguments
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDSTORE_")}
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *arguments], stdout=subprocess.PIPE, text=True, env=environment, cwd=cwd
        )
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline().strip()
        if not self.ready_line:
            self.process.wait(READY_TIMEOUT_S)
            raise AssertionError(f"serve {arguments} ended with {self.process.returncode} before it was ready")
        self.address = self.ready_line.rpartition(" ")[2]

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def suspend(self) -> None:
        """SIGSTOP, and wait until it stands still; SIGCONT ends it."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def terminate(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def rest_of_output(self) -> str:
        """What came after the ready line; the process has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read()


def run(arguments: Sequence[str], timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """One ``embedstore`` command to its end."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
