"""Whatever records arrive, the epoch never goes back; wherever the shards go, every update counts exactly once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_shards import MovingShards, local

import embedstore as es
from embedstore.cluster import Cluster
from embedstore.discovery import is_complete
from embedstore.peers import Patience
from embedstore.status import Topology

IDS = np.arange(24, dtype=np.uint64)
GRADS = np.ones((24, 1), np.float32)

addresses = st.lists(st.sampled_from(["a:1", "b:1", "c:1", "c", "", " a:1", "b:0"]), max_size=3).map(tuple)
records = st.builds(Topology, st.integers(0, 6), addresses, st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(records, max_size=8))
def test_the_epoch_never_goes_back_and_only_complete_records_count(offered: list[Topology]) -> None:
    first = Topology(2, ("first:1",), 1)
    cluster = Cluster(first, first.addresses, (), Patience())
    try:
        present = first
        for record in offered:
            taken = cluster.adopt(record)
            assert taken == (is_complete(record) and record.epoch > present.epoch)
            present = record if taken else present
            assert cluster.topology == present
            assert len(cluster) == len(present.addresses) == present.num_shards
            assert [cluster.address(shard) for shard in range(len(cluster))] == list(present.addresses)
    finally:
        cluster.close()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_of_records_that_arrive_at_once_the_newest_stays(epochs: list[int]) -> None:
    cluster = Cluster(Topology(1, ("a:1",), 1), ("a:1",), (), Patience())
    try:
        with ThreadPoolExecutor(4) as pool:
            taken = list(pool.map(lambda epoch: cluster.adopt(Topology(epoch, (f"a:{epoch}",), 1)), epochs))
        assert cluster.topology.epoch == max([1, *epochs])
        assert sum(taken) <= len(set(epochs))
        assert cluster._routes == [cluster._route]
    finally:
        cluster.close()


@pytest.mark.parametrize("run", range(2))
def test_every_update_counts_once_while_shards_move(tmp_path: Path, run: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"run {run}: seed {seed}")
    rng = random.Random(seed)
    stop = threading.Event()
    with MovingShards(tmp_path) as shards, es.connect(shards.addresses, timeout_s=5.0, retry_s=60.0) as store:
        store.open_stream("s", 0)

        def push_with_origins() -> int:
            position = 0
            while not stop.is_set():
                store.push({"counted": (IDS, GRADS)}, origins=[es.Origin("s", position, position + 1)])
                position += 1
            return position

        def push_without() -> int:
            pushes = 0
            while not stop.is_set():
                store.push({"counted": (IDS, GRADS)})
                pushes += 1
            return pushes

        def read() -> int:
            latest = np.zeros(len(IDS))
            while not stop.is_set():
                found = -store.pull({"counted": IDS})["counted"][:, 0]
                assert (found >= latest).all(), f"a count went back (seed {seed})"
                latest = found
            return 0

        steps: list[Callable[[], object]] = [
            lambda: shards.move(rng.randrange(2)),
            lambda: shards.move(rng.randrange(2), leave=True, tell=False),
            lambda: shards.restart(rng.randrange(2)),
            shards.bump,
        ]
        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(each) for each in (push_with_origins, push_without, push_without, read)]
            try:
                for _ in range(8):
                    rng.choice(steps)()
                    shards.tell()
                    store.watermarks()  # nobody finds shards that have all gone elsewhere in one moment
                    stop.wait(rng.uniform(0.0, 0.3))
            finally:
                stop.set()
            total = sum(each.result(90) for each in work)
        counts = -store.pull({"counted": IDS})["counted"][:, 0]
        assert set(counts.tolist()) == {float(total)}, f"seed {seed}"
        assert store.topology == shards.record
        assert total > 20
        assert sum(local(shard).stats().tables["counted"].rows for shard in shards.shards) == len(IDS)
