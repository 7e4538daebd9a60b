"""Followers of processes that are killed: they go on answering, say so, and are in step again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from processes import Process, free_port
from waiting import until

import embedstore as es
from embedstore.server.follow import FollowerStore

TABLES = """
[tables.counted]
dim = 1
num_chunks = 8
optimizer = { kind = "sgd", lr = 1.0 }
"""
IDS = np.arange(200, dtype=np.uint64)
TIMEOUT_S = 60.0


class Shards:
    """Two shards with their data, each on a port of its own."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        (directory / "tables.toml").write_text(TABLES)
        self.processes = [self.start(shard) for shard in range(2)]

    def start(self, shard: int) -> Process:
        more = ("--tables", str(self._directory / "tables.toml"), "--peers", ",".join(self.addresses))
        data = str(self._directory / f"data-{shard}")
        arguments = ("--listen", self.addresses[shard], "--shard", f"{shard}/2", "--data", data)
        return self._stack.enter_context(Process(*arguments, "--checkpoint-interval-s", "3600", *more))

    def restart(self, shard: int) -> None:
        self.processes[shard] = self.start(shard)


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Shards]:
    with ExitStack() as stack:
        yield Shards(tmp_path, stack)


def push(store: es.Store, position: int) -> dict[str, int]:
    store.push({"counted": (IDS, np.ones((len(IDS), 1)))}, origins=[es.Origin("s", position, position + 1)])
    return {"s": position + 1}


def counts(store: es.Reader) -> set[float]:
    return set((-store.pull({"counted": IDS})["counted"][:, 0]).tolist())


def test_a_follower_outlives_a_killed_shard_and_is_in_step_when_it_is_back(shards: Shards) -> None:
    follow = ("--follow", shards.addresses[0], "--listen", "127.0.0.1:0", "--sync-interval-ms", "20")
    with (
        es.connect(shards.addresses[0]) as store,
        Process(*follow) as process,
        es.connect(process.address) as remote,
        FollowerStore(process.address, sync_interval_ms=20) as chained,
    ):
        assert process.ready_line == f"embedstore: serving follower on {process.address}"
        store.open_stream("s", 0)
        chained.wait_for(push(store, 0), TIMEOUT_S)
        store.checkpoint()
        chained.wait_for(push(store, 1), TIMEOUT_S)
        assert counts(remote) == counts(chained) == {2.0}
        shards.processes[1].kill()
        until(lambda: [leader.connected for leader in remote.stats().leaders] == [True, False], TIMEOUT_S)
        age_s = remote.stats().leaders[1].age_s
        until(lambda: remote.stats().leaders[1].age_s > age_s + 0.1, TIMEOUT_S)
        assert counts(remote) == {2.0}
        with pytest.raises(es.ReadOnlyError):
            remote.push({"counted": (IDS, np.ones((len(IDS), 1)))})

        shards.restart(1)
        until(lambda: all(leader.connected for leader in remote.stats().leaders), TIMEOUT_S)
        assert [leader.reconnects for leader in remote.stats().leaders] == [0, 1]
        until(lambda: counts(remote) == {1.0, 2.0}, TIMEOUT_S)
        with pytest.raises(es.GapError) as refused:
            push(store, 2)
        assert refused.value.watermarks == {"s": [1, 3]}
        for position in range(1, 4):
            marks = push(store, position)
        chained.wait_for(marks, TIMEOUT_S)
        assert counts(chained) == counts(remote) == {4.0}
        assert process.terminate() == 0


def test_a_follower_that_is_killed_starts_again_from_nothing(shards: Shards) -> None:
    follow = ("--follow", ",".join(shards.addresses), "--listen", f"127.0.0.1:{free_port()}")
    with es.connect(shards.addresses[0]) as store:
        store.open_stream("s", 0)
        push(store, 0)
        for _ in range(2):
            with Process(*follow) as process, es.connect(process.address) as remote:
                assert counts(remote) == {1.0}
                process.kill()
        until(lambda: store.stats().followers == 0, TIMEOUT_S)
