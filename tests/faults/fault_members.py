"""The processes of a :class:`~fault_cluster.Cluster`: each with its command and its log, and serving ones with an
address and a disk of their own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from lossy_proxy import LossyProxy
from processes import free_port

HERE = Path(__file__).resolve().parent


class Unexpected(AssertionError):  # noqa: N818
    """A process ended, or did not end, in a way that no fault explains."""


class Member:
    """One process, its command and its log. ``kind`` is how it is counted."""

    def __init__(self, name: str, kind: str, command: Sequence[str], log: Path) -> None:
        self.name, self.kind, self.command, self.log = name, kind, list(command), log
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._listener: threading.Thread | None = None

    def start(self) -> None:
        """Its words go through a pipe, because a limit on what it can write must not silence it."""
        process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self.process = process
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._listener = threading.Thread(target=self._listen, args=(process,), name=f"log of {self.name}")
        self._listener.start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as pipe, self.log.open("ab", buffering=0) as out:
            while data := pipe.read(1 << 16):
                out.write(data)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> bool:
        """Whether there was a process to signal."""
        if not self.running:
            return False
        assert self.process is not None
        self.process.send_signal(number)
        return True

    def kill(self) -> bool:
        """SIGKILL and wait; False: it did not run."""
        killed = self.send(signal.SIGKILL)
        if self.process is not None and self._listener is not None:
            self.process.wait()
            self._listener.join()
        return killed

    def state(self) -> str:
        """The kernel's word for what it does, or how it ended."""
        if self.process is None or not self.running:
            return f"ended with {self.process.returncode if self.process else None}"
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(line for line in status.splitlines() if line.startswith("State"))

    def output(self) -> str:
        """What it has written since its last start; all of it once it has ended."""
        if self._listener is not None and not self.running:
            self._listener.join()
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")


class Server(Member):
    """A place where shards and standbys can run: an address, the proxy by which all others reach it, and a disk.
    What runs there, if anything, changes; the place does not."""

    def __init__(self, number: int, directory: Path, logs: Path, clock: Path, tables: Path) -> None:
        self.listen = f"127.0.0.1:{free_port()}"
        self.proxy = LossyProxy(self.listen)
        self.data = directory / f"disk-{number}"
        self._clock, self._tables = clock, tables
        super().__init__(f"server-{number}", "shard", [], logs / f"server-{number}.log")

    @property
    def address(self) -> str:
        """Where others reach it."""
        return self.proxy.address

    def serve(self, shard: int, num_shards: int, peers: Sequence[str]) -> None:
        """From the next start on: a shard."""
        self.kind = "shard"
        self._command(shard, num_shards, ["--tables", str(self._tables), "--peers", ",".join(peers)])

    def stand_by(self, shard: int, num_shards: int, leaders: Sequence[str]) -> None:
        """From the next start on: a standby, or what it has become."""
        self.kind = "standby"
        self._command(shard, num_shards, ["--standby", "--follow", ",".join(leaders)])

    def _command(self, shard: int, num_shards: int, more: Sequence[str]) -> None:
        self.command = [sys.executable, str(HERE / "offset_clock.py"), str(self._clock), "serve", *more]
        self.command += ["--listen", self.listen, "--advertise", self.address, "--shard", f"{shard}/{num_shards}"]
        self.command += ["--data", str(self.data), "--checkpoint-interval-s", "0.5", "--sync-interval-ms", "50"]

    def wipe(self) -> None:
        """Its disk is empty again."""
        shutil.rmtree(self.data, ignore_errors=True)
