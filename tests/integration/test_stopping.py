"""A shard that stops lets requests in flight finish, and waits for nobody else."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Process, free_port
from waiting import until

import embedstore as es
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard

TABLE = es.TableSpec("t", dim=64, optimizer=es.SGD(1.0), num_chunks=4)
IDS = np.arange(20_000, dtype=np.uint64)
ONES = np.ones((len(IDS), TABLE.dim), np.float32)
DRAIN_S = 25.0
PROMPT_S = 10.0
"""Far below the time to drain, with room for a busy machine."""

TIMEOUT_S = 60.0


def fill_up(store: es.RemoteStore) -> None:
    """Push until the system takes no more of what is for a follower that stands still."""
    before = -1
    while True:
        store.push({"t": (IDS, ONES)})
        [follower] = store.stats().follower_states
        if follower.in_flight_bytes and follower.sent_bytes == before:
            return
        before = follower.sent_bytes


@pytest.mark.parametrize("full", [False, True], ids=["nothing on its way", "its connection is full"])
def test_a_shard_that_stops_waits_for_no_follower_that_stands_still(tmp_path: Path, full: bool) -> None:
    address = f"127.0.0.1:{free_port()}"
    serve = ("--listen", address, "--data", str(tmp_path), "--drain-s", f"{DRAIN_S:g}", "--sync-interval-ms", "20")
    with ExitStack() as stack:
        leader = stack.enter_context(Process(*serve))
        store = stack.enter_context(es.connect(address, retry_s=TIMEOUT_S))
        store.create_table(TABLE)
        store.push({"t": (IDS, ONES)})
        follower = stack.enter_context(Process("--listen", "127.0.0.1:0", "--follow", address))
        follower.process.send_signal(signal.SIGSTOP)
        if full:
            fill_up(store)
        began_s = time.monotonic()
        assert leader.terminate(timeout_s=2 * DRAIN_S) == 0
        assert time.monotonic() - began_s < PROMPT_S
        stack.enter_context(Process(*serve))
        store.push({"t": (IDS, ONES)})
        follower.process.send_signal(signal.SIGCONT)
        with es.connect(follower.address) as view:
            until(lambda: bool((view.pull({"t": IDS})["t"] == store.pull({"t": IDS})["t"]).all()), TIMEOUT_S)


def test_a_push_in_flight_finishes_beside_a_follower_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard(ShardOptions("127.0.0.1:0", tables=[TABLE], sync_interval_ms=10, drain_s=TIMEOUT_S))
    shard.start()
    assert shard._store is not None
    arrived, go_on, push = threading.Event(), threading.Event(), shard._store.push

    def slow(*arguments: Any, **options: Any) -> es.PushResult:
        arrived.set()
        assert go_on.wait(TIMEOUT_S)
        return push(*arguments, **options)

    with ExitStack() as stack:
        follower = stack.enter_context(Process("--listen", "127.0.0.1:0", "--follow", shard.address))
        store = stack.enter_context(es.connect(shard.address, timeout_s=TIMEOUT_S))
        monkeypatch.setattr(shard._store, "push", slow)
        results: list[Any] = []
        pushing = threading.Thread(target=lambda: results.append(store.push({"t": (IDS, ONES)})))
        pushing.start()
        assert arrived.wait(TIMEOUT_S)
        follower.process.send_signal(signal.SIGSTOP)
        stopping = threading.Thread(target=shard.stop)
        stopping.start()
        stopping.join(1.5)
        assert stopping.is_alive()
        go_on.set()
        began_s = time.monotonic()
        pushing.join(TIMEOUT_S)
        stopping.join(TIMEOUT_S)
        assert time.monotonic() - began_s < PROMPT_S
        assert [type(result) for result in results] == [es.PushResult]
