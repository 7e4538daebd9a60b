#!/usr/bin/env python3
"""A single Apache Kafka broker (KRaft) on loopback, for development and tests.

``broker.py fetch | start | stop | status``; see README.md beside this file. Needs a JDK 17 or newer, and Maven the
first time; the Python is the standard library's. One broker lives in one data directory: its log, its settings and
ports (kept over restarts, so that clients find it again), its pid file and its output.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARIES = HERE.parents[1] / ".cache" / "kafka"
HOST = "127.0.0.1"
HEAP_MIB = 256
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
PROBE_INTERVAL_S = 0.1
SETTINGS = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.voters=1@{host}:{controller_port}
log.dirs={log_dir}
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=8388608
"""


class BrokerError(Exception):
    """The broker, or what it needs, is not there; the message says what to do."""


@dataclass(frozen=True)
class Broker:
    """The broker that lives, or will live, in ``data``. Start and stop it from one place at a time."""

    data: Path

    @property
    def settings_file(self) -> Path:
        """The broker's own settings."""
        return self.data / "server.properties"

    @property
    def pid_file(self) -> Path:
        """Holds the process id while the broker runs."""
        return self.data / "broker.pid"

    @property
    def output_file(self) -> Path:
        """Everything that the broker printed."""
        return self.data / "broker.log"

    def start(self, port: int | None = None, heap_mib: int = HEAP_MIB, timeout_s: float = START_TIMEOUT_S) -> str:
        """Start the broker unless it runs already, and return ``HOST:PORT`` once it answers.

        ``port`` None: the one of the last time, or a free one. :class:`BrokerError` when it does not come up.
        """
        if self.pid() is not None:
            if port not in (None, self.port()):
                raise BrokerError(f"the broker in {self.data} already runs on port {self.port()}, not {port}")
            return self.address()
        libraries = fetch()
        self._prepare(port, libraries)
        with self.output_file.open("ab") as output:
            process = subprocess.Popen(
                [*_java(libraries, heap_mib), "kafka.Kafka", str(self.settings_file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.data,
                start_new_session=True,
            )
        self.pid_file.write_text(f"{process.pid}\n")
        deadline_s = time.monotonic() + timeout_s
        while not _answers(self.port()):
            try:
                process.wait(PROBE_INTERVAL_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline_s:
                    continue
                process.kill()
                process.wait()
            self.pid_file.unlink()
            raise BrokerError(f"the broker did not come up:\n{self._last_output()}")
        return self.address()

    def stop(self, kill: bool = False, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop the broker in order, or at once (``kill``); False when it was not running."""
        pid = self.pid()
        if pid is None:
            return False
        watched = os.pidfd_open(pid)
        try:
            gone = select.poll()
            gone.register(watched, select.POLLIN)
            signal.pidfd_send_signal(watched, signal.SIGKILL if kill else signal.SIGTERM)
            if not gone.poll(timeout_s * 1000):
                signal.pidfd_send_signal(watched, signal.SIGKILL)
                if not gone.poll(timeout_s * 1000):
                    raise BrokerError(f"process {pid} does not end")
        finally:
            os.close(watched)
        _reap(pid)
        self.pid_file.unlink(missing_ok=True)
        return True

    def pid(self) -> int | None:
        """The process id of the running broker, None when it does not run."""
        try:
            pid = int(self.pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self.settings_file).encode() in command.split(b"\0") else None

    def port(self) -> int:
        """The broker's port, as in its settings."""
        return _ports(self.settings_file)[0]

    def address(self) -> str:
        """``HOST:PORT``."""
        return f"{HOST}:{self.port()}"

    def _prepare(self, port: int | None, libraries: Path) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        log_dir = self.data / "log"
        is_new = not (log_dir / "meta.properties").exists()
        old_port, controller_port = (None, None) if is_new else _ports(self.settings_file)
        text = SETTINGS.format(
            host=HOST,
            port=port or old_port or _free_port(),
            controller_port=controller_port or _free_port(),
            log_dir=log_dir,
        )
        self.settings_file.write_text(text)
        for needed in _ports(self.settings_file):
            _check_free(needed)
        if is_new:
            shutil.rmtree(log_dir, ignore_errors=True)
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            options = [f"--cluster-id={cluster_id}", "--config", str(self.settings_file)]
            _run(
                [*_java(libraries, HEAP_MIB), "kafka.tools.StorageTool", "format", *options],
                "the data directory could not be formatted",
            )

    def _last_output(self) -> str:
        return "\n".join(self.output_file.read_text(errors="replace").splitlines()[-20:])


def fetch(libraries: Path = LIBRARIES) -> Path:
    """The folder with the broker's jars; fetched with Maven the first time, without the network ever after."""
    complete = libraries / hashlib.sha256((HERE / "pom.xml").read_bytes()).hexdigest()[:12]
    if complete.is_dir():
        return complete
    if shutil.which("mvn") is None:
        raise BrokerError("Maven is missing; install it, on Debian: apt-get install maven openjdk-17-jdk-headless")
    libraries.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=libraries) as partial:
        options = ["--batch-mode", "--quiet", f"-DoutputDirectory={partial}/lib", "-DincludeScope=runtime"]
        _run(
            ["mvn", "--file", str(HERE / "pom.xml"), "dependency:copy-dependencies", *options],
            "the broker's artifacts could not be fetched",
        )
        try:
            Path(partial, "lib").rename(complete)
        except OSError:
            if not complete.is_dir():
                raise
    return complete


def _java(libraries: Path, heap_mib: int) -> list[str]:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    if java is None:
        raise BrokerError("Java is missing; install it, on Debian: apt-get install openjdk-17-jdk-headless")
    memory = [f"-Xmx{heap_mib}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    logging = f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"
    return [java, *memory, logging, "-cp", f"{libraries}/*"]


def _run(command: list[str], problem: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BrokerError(f"{problem}:\n{(done.stdout + done.stderr)[-2000:]}")


def _ports(settings_file: Path) -> tuple[int, int]:
    settings = dict(line.split("=", 1) for line in settings_file.read_text().splitlines())
    broker, controller = (int(listener.rpartition(":")[2]) for listener in settings["listeners"].split(","))
    return broker, controller


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BrokerError(f"port {port} cannot be used: {error.strerror}") from error


def _answers(port: int) -> bool:
    """Whether an ApiVersions request is answered: the broker takes requests only when it is ready."""
    request = struct.pack(">hhih", 18, 0, 1, -1)
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return len(connection.recv(4)) == 4
    except OSError:
        return False


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return  # started by another process, which reaps it


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="broker.py", description="A Kafka broker on loopback, for development.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="fetch the broker's artifacts, so that it starts without the network")
    in_data = argparse.ArgumentParser(add_help=False)
    in_data.add_argument("--data", type=Path, required=True, help="the broker's directory")
    start = commands.add_parser("start", parents=[in_data], help="start it and print HOST:PORT when it answers")
    start.add_argument("--port", type=int, help="default: the one of the last time, or a free one")
    start.add_argument("--heap-mib", type=int, default=HEAP_MIB, help="largest Java heap (default %(default)s)")
    stop = commands.add_parser("stop", parents=[in_data], help="stop it and wait until it has ended")
    stop.add_argument("--kill", action="store_true", help="with SIGKILL")
    commands.add_parser("status", parents=[in_data], help="print HOST:PORT and the process id; exit 1 if not running")
    options = parser.parse_args(arguments)
    try:
        if options.command == "fetch":
            text, status = str(fetch()), 0
        else:
            text, status = _control(options)
    except BrokerError as error:
        sys.stderr.write(f"broker.py: {error}\n")
        return 1
    sys.stdout.write(f"{text}\n")
    return status


def _control(options: argparse.Namespace) -> tuple[str, int]:
    broker = Broker(options.data.resolve())
    if options.command == "start":
        return broker.start(options.port, options.heap_mib), 0
    if options.command == "stop":
        return ("stopped" if broker.stop(options.kill) else "not running"), 0
    pid = broker.pid()
    return (f"{broker.address()} pid {pid}", 0) if pid is not None else ("not running", 1)


if __name__ == "__main__":
    sys.exit(main())
