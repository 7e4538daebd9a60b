"""The product's own ``embedtrain stream`` over two shards and a topic, for tests that kill or stop it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import Process, free_port

import embedstore as es

WAIT_S = 90.0
CONFIG = """
[model]
dim = 8
layers = 1
heads = 2
length = 4
[train]
batch_events = 32
head_negatives = 30
tail_negatives = 20
[tables]
num_chunks = 8
[run]
threads = 1
cut_interval_s = 0.3
poll_timeout_s = 0.1
retry_max_s = 0.3
rebuild_events = 1000
"""


class Shards:
    """Two shards with data, which keep their addresses over kills."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.processes = [self._start(number) for number in range(2)]

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *error: Any) -> None:
        for process in self.processes:
            process.__exit__(*error)

    def _start(self, number: int) -> Process:
        data = ("--data", str(self.data(number)), "--checkpoint-interval-s", "0.3")
        return Process("--listen", self.addresses[number], "--shard", f"{number}/2", *data)

    def data(self, number: int) -> Path:
        return self.directory / f"shard-{number}"

    def kill(self, number: int) -> None:
        self.processes[number].__exit__(None, None, None)

    def start(self, number: int) -> None:
        self.processes[number] = self._start(number)

    def connect(self) -> Any:
        return es.connect(self.addresses, timeout_s=5.0, retry_s=30.0)


class Embedtrain:
    """One start of ``embedtrain stream``; its state directory and its files are named after ``name``."""

    def __init__(self, directory: Path, name: str, events: str, addresses: list[str], *more: str) -> None:
        self.directory, self.name = directory, name
        (directory / "config.toml").write_text(CONFIG)
        command = [sys.executable, "-c", "from trainer.cli import main; main()", "stream", "--events", events]
        command += ["--store", "grpc://" + ",".join(addresses), "--config", str(directory / "config.toml")]
        command += ["--state", str(directory / name), "--summary", str(directory / f"{name}.json")]
        command += ["--metrics", str(directory / f"{name}.jsonl"), *more]
        with (directory / f"{name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def __enter__(self) -> Embedtrain:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> str:
        """Wait for an end of its own that is none in order; what it said last."""
        assert self.process.wait(WAIT_S) == 1, self.log()
        return self.log().strip().splitlines()[-1]

    def terminate(self) -> dict[str, Any]:
        """SIGTERM; its summary."""
        self.process.terminate()
        assert self.process.wait(WAIT_S) == 0, self.log()
        summary: dict[str, Any] = json.loads((self.directory / f"{self.name}.json").read_text())
        return summary

    def log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text(errors="replace")


def applied(store: Any) -> int:
    """Positions of Kafka streams that every chunk has."""
    states = store.watermarks()
    return sum(state.applied for stream, state in states.items() if stream.startswith("kafka/"))


def until(done: Callable[[], bool], what: Callable[[], str]) -> None:
    """Ask processes, which tell nobody when they change, again and again."""
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.05)
