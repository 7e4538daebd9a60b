"""A cluster of real processes, each of which can be killed and started again as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import Process, free_port

import embedstore as es


class Members:
    """Serving processes by name, each of which can be killed and started again as it was."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self._stack = stack
        self._path = path
        self._arguments: dict[str, tuple[str, ...]] = {}
        self.running: dict[str, Process] = {}

    def start(self, name: str, *arguments: str) -> str:
        """Start one at an address of its own."""
        address = f"127.0.0.1:{free_port()}"
        self.start_at(address, name, *arguments)
        return address

    def start_at(self, address: str, name: str, *arguments: str) -> None:
        data = ("--data", str(self._path / name), "--checkpoint-interval-s", "0.2", "--sync-interval-ms", "20")
        self._arguments[name] = ("--listen", address, *data, *arguments)
        self.restart(name)

    def kill(self, name: str) -> None:
        self.running.pop(name).kill()

    def restart(self, name: str) -> None:
        self.running[name] = self._stack.enter_context(Process(*self._arguments[name]))


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    """None yet; they end with the test."""
    with ExitStack() as stack:
        yield Members(stack, tmp_path)


def start_shards(members: Members, count: int, *tables: es.TableSpec) -> list[str]:
    """Shards "old-0" and so on, with these tables; their addresses."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
    for i, address in enumerate(addresses):
        members.start_at(address, f"old-{i}", "--shard", f"{i}/{count}", "--peers", ",".join(addresses))
    with es.connect(addresses[0]) as store:
        for spec in tables:
            store.create_table(spec)
    return addresses


def start_standbys(members: Members, leaders: list[str], count: int, name: str = "new") -> list[str]:
    """A standby for every shard of ``count``: "new-0" and so on; their addresses."""
    follow = ("--follow", ",".join(leaders), "--standby")
    return [members.start(f"{name}-{j}", *follow, "--shard", f"{j}/{count}") for j in range(count)]
