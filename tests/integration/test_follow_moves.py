"""Followers go over to other leaders: what they have stays readable, and nothing is lost or kept wrongly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from follow_servers import TIMEOUT_S, content
from moving_shards import COUNTED, MovingShards, local

import embedstore as es
from embedstore.client import RemoteStore
from embedstore.server.follow import FollowerStore

IDS = np.arange(60, dtype=np.uint64)
GONE = es.TableSpec("gone", dim=2, optimizer=es.SGD(lr=1.0), num_chunks=4)


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[MovingShards]:
    with MovingShards(tmp_path, tables=[COUNTED, GONE]) as started:
        yield started


@pytest.fixture
def store(shards: MovingShards) -> Iterator[RemoteStore]:
    with es.connect(shards.addresses) as connected:
        connected.open_stream("s", 0)
        yield connected


@pytest.fixture
def follower(shards: MovingShards) -> Iterator[FollowerStore]:
    with FollowerStore(shards.addresses[:1], sync_interval_ms=20) as started:
        yield started


def push(store: es.Store, position: int) -> dict[str, int]:
    parts = {"counted": (IDS, np.ones((len(IDS), 1))), "gone": (IDS, np.ones((len(IDS), 2)))}
    tables = {name: part for name, part in parts.items() if name in store.tables()}
    store.push(tables, origins=[es.Origin("s", position, position + 1)])
    return {"s": position + 1}


def in_step(follower: FollowerStore, shards: MovingShards, store: RemoteStore, position: int) -> None:
    """Wait until one more push has come through, and compare."""
    addresses = list(shards.addresses)
    assert follower.wait_until(lambda: [leader.address for leader in follower.stats().leaders] == addresses, TIMEOUT_S)
    follower.wait_for(push(store, position), TIMEOUT_S)
    assert set(follower.tables()) == set(store.tables())
    for name in follower.tables():
        assert content(follower, name) == content(store, name)


@pytest.mark.parametrize("leave", [False, True])
def test_a_follower_goes_over_to_a_leader_elsewhere(
    shards: MovingShards, store: RemoteStore, follower: FollowerStore, leave: bool
) -> None:
    follower.wait_for(push(store, 0), TIMEOUT_S)
    before = sum(leader.deltas for leader in follower.stats().leaders)
    for position, shard in enumerate((1, 0, 1), start=1):
        shards.move(shard, leave=leave)
        in_step(follower, shards, store, position)
    chunks = COUNTED.num_chunks + GONE.num_chunks
    assert sum(leader.deltas for leader in follower.stats().leaders) < before + 6 * chunks, "it goes on at its cursors"


def test_a_follower_leaves_a_leader_that_still_feeds_it_but_was_replaced(
    shards: MovingShards, store: RemoteStore, follower: FollowerStore
) -> None:
    follower.wait_for(push(store, 0), TIMEOUT_S)
    shards.reshard(2)  # the old ones go on running, with their calls
    in_step(follower, shards, store, 1)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_rows_stay_readable_while_a_follower_goes_over_to_more_or_fewer_leaders(
    shards: MovingShards, store: RemoteStore, follower: FollowerStore, num_shards: int
) -> None:
    store.put_dense("weights", {"w": np.ones(3)}, {"s": 0})
    follower.wait_for(push(store, 0), TIMEOUT_S)
    assert follower.wait_until(lambda: "weights" in follower.dense_sets(), TIMEOUT_S)
    stop, wrong = threading.Event(), []

    def read() -> None:
        latest = follower.as_of_ms(1 << 62)
        while not stop.is_set():
            counts = set((-follower.pull({"counted": IDS})["counted"][:, 0]).tolist())
            as_of_ms = follower.as_of_ms(1 << 62)
            if not counts <= {1.0, 2.0, 3.0} or not as_of_ms or follower.get_dense("weights").position != {"s": 0}:
                wrong.append((counts, as_of_ms, latest))
            stop.wait(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        shards.reshard(num_shards)
        in_step(follower, shards, store, 1)
        shards.reshard(2)
        in_step(follower, shards, store, 2)
    finally:
        stop.set()
        reader.join()
    assert not wrong


def drop_everywhere(shards: MovingShards) -> None:
    for shard in shards.shards:
        local(shard).drop_table("gone")


def drop_at_one(shards: MovingShards) -> None:
    local(shards.shards[0]).drop_table("gone")


def remake(shards: MovingShards) -> None:
    drop_everywhere(shards)
    for shard in shards.shards:
        local(shard).create_table(es.TableSpec("gone", dim=5, num_chunks=8))


@pytest.mark.parametrize("change", [drop_everywhere, drop_at_one, remake])
def test_no_row_stays_that_the_new_leaders_do_not_have(
    shards: MovingShards, store: RemoteStore, follower: FollowerStore, change: Callable[[MovingShards], None]
) -> None:
    follower.wait_for(push(store, 0), TIMEOUT_S)
    assert len(content(follower, "gone")) == len(IDS)
    for leader in shards.shards:
        leader.stop()  # so that the follower does not see what happens
    shards.shards = [shards._start(shard) for shard in range(2)]
    shards.reshard(3)
    change(shards)
    expected: dict[str, dict[int, tuple[bytes, int]]] = {
        name: {} for name in shards.shards[1]._serving.store().tables()
    }
    for shard in shards.shards:
        for name in shard._serving.store().tables():
            expected[name] |= content(shard._serving.store(), name)
    addresses = list(shards.addresses)
    assert follower.wait_until(
        lambda: (
            [leader.address for leader in follower.stats().leaders] == addresses
            and set(follower.tables()) == set(expected)
            and {name: content(follower, name) for name in expected} == expected
        ),
        TIMEOUT_S,
    )
