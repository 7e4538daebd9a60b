"""The doctor finds a row that differs, and only that; packed rows are what packing gives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run

import embedstore as es
from embedstore.parity import compare, compare_dense, dense_sets_of_both
from embedstore.placement import chunks_of_ids
from embedstore.server.shard import Shard

TABLE = es.TableSpec("items", dim=33, optimizer=es.SGD(1.0), init=es.Normal(0.3, seed=1), num_chunks=16)
IDS = np.arange(3000, dtype=np.uint64)
TIMEOUT_S = 20.0
ERROR_L2 = {"fp32": 0.0, "fp16": 0.0003, "int8": 0.0046, "int4": 0.079}


def lines(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
    done = run(["doctor", "parity", "--json", *arguments])
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("rows", ["fp32", "fp16", "int8", "int4"])
def test_random_rows_are_what_packing_gives_while_others_move(start: Callable[..., Shard], rows: str) -> None:
    leaders = [start(tables=[TABLE], shard=i, num_shards=2) for i in range(2)]
    addresses = [shard.address for shard in leaders]
    follower = start(follow=addresses, rows=rows)
    rng = np.random.default_rng(5)
    stop = threading.Event()
    with es.connect(addresses) as store:
        store.push({"items": (IDS, rng.normal(size=(3000, 33)).astype(np.float32))})
        assert follower.wait_ready(TIMEOUT_S)

        def move() -> None:
            while not stop.wait(0.01):
                store.push({"items": (IDS[:20], rng.normal(size=(20, 33)).astype(np.float32))})

        mover = threading.Thread(target=move)
        mover.start()
        try:
            with es.connect(addresses) as here, es.connect(follower.address) as there:
                found = compare(here, there, "items", num_rows=2000, timeout_s=2.0)
        finally:
            stop.set()
            mover.join()
    assert (found.row_format, found.different) == (rows, ())
    assert found.rows - 20 <= found.equal + found.moving <= found.rows
    assert found.rows > 1500
    assert found.error_l2 <= ERROR_L2[rows]
    assert (found.error_l2 > 0) == (rows != "fp32")


def test_a_row_that_differs_is_found_and_named(start: Callable[..., Shard]) -> None:
    leader = start(tables=[TABLE])
    follower = start(follow=[leader.address], rows="int8")
    with es.connect(leader.address) as store:
        store.push({"items": (IDS[:50], np.ones((50, 33), np.float32))})
        assert follower.wait_ready(TIMEOUT_S)
        at = ("--servers", leader.address, "--follower", follower.address, "--keys", "3000")
        [row] = lines(*at)
        assert (row["rows"], row["equal"], row["different"], row["ids"]) == (50, 50, 0, [])
        held: Any = follower._serving.store().table("items")
        held.assign([7], np.full((1, 33), 0.25, np.float32), now_ms=0)
        held.delete([9])
        [row] = lines(*at, "--wait-s", "0.3", code=1)
        assert (row["equal"], row["different"], row["ids"]) == (48, 2, [7, 9])
        assert "does not exist" in run(["doctor", "parity", *at, "--table", "nothing"]).stderr
        told = run(["doctor", "parity", *at, "--wait-s", "0.1"])
        assert (told.returncode, told.stdout.splitlines()[-1]) == (1, "different: items: 2 rows, ids 7, 9")


def test_a_sample_is_random_and_from_every_chunk(start: Callable[..., Shard]) -> None:
    shards = [start(tables=[TABLE], shard=i, num_shards=2) for i in range(2)]
    with es.connect([shard.address for shard in shards]) as store:
        assert len(store.sample("items", 10)) == 0
        store.push({"items": (IDS, np.ones((3000, 33), np.float32))})
        first, second = store.sample("items", 160), store.sample("items", 160)
        assert len(first) == len(set(first.tolist())) == 160
        assert set(first.tolist()) != set(second.tolist())
        np.testing.assert_array_equal(np.bincount(chunks_of_ids(first, 16), minlength=16), [10] * 16)
        assert sorted(store.sample("items", 100_000).tolist()) == IDS.tolist()
        with pytest.raises(es.InvalidArgumentError, match="num_rows"):
            store.sample("items", 0)


@pytest.mark.parametrize("rows", ["fp32", "int8"])
def test_rows_that_have_overflowed_and_small_tables_are_compared_too(start: Callable[..., Shard], rows: str) -> None:
    small = es.TableSpec("items", dim=2, optimizer=es.SGD(1.0), num_chunks=4, rows_max=4, ttl_s=60)
    leader = start(tables=[small])
    follower = start(follow=[leader.address], rows=rows)
    with es.connect(leader.address) as store:
        for _ in range(2):
            store.push({"items": (IDS[:4], np.array([[3e38, 1], [-3e38, 2], [1, 2], [3, 4]], np.float32))})
        assert np.isinf(store.pull({"items": IDS[:4]})["items"]).any()
    assert follower.wait_ready(TIMEOUT_S)
    [row] = lines("--servers", leader.address, "--follower", follower.address)
    assert row["rows"] == row["equal"] > 0
    assert 0 <= row["error_l2"] < 0.01


def test_nobody_is_compared_with_himself(start: Callable[..., Shard], tmp_path: Path) -> None:
    """A standby, and a shard, lead whoever asks for rows to the shards."""
    leader = start(tables=[TABLE])
    standby = start(follow=[leader.address], standby=True, data=tmp_path)
    with es.connect(leader.address) as store:
        store.push({"items": (IDS[:50], np.ones((50, 33), np.float32))})
    until_s = time.monotonic() + TIMEOUT_S
    while not standby._serving.known_topology().addresses:
        assert time.monotonic() < until_s
        time.sleep(0.01)
    for none in (standby, leader):
        done = run(["doctor", "parity", "--servers", leader.address, "--follower", none.address])
        assert (done.returncode, "must be a serving follower" in done.stderr) == (1, True), done.stderr


def a_store(start: Callable[..., Shard], *tables: es.TableSpec, ids: np.ndarray = IDS[:100]) -> Shard:
    """A shard with the same rows and the same dense weights whenever it is asked for."""
    shard = start(tables=tables)
    with es.connect(shard.address) as store:
        for table in tables:
            if len(ids):
                store.push({table.name: (ids, np.ones((len(ids), table.dim), np.float32))}, event_time_ms=1_000)
        if len(ids):
            store.put_dense("model", {"w": np.arange(3.0)}, {})
    return shard


def following(start: Callable[..., Shard], leader: Shard) -> Shard:
    follower = start(follow=[leader.address])
    assert follower.wait_ready(TIMEOUT_S)
    return follower


def test_a_follower_of_others_is_told_from_a_good_one(start: Callable[..., Shard]) -> None:
    """One whose leaders have the same rows, and more, and lack a table."""
    users = replace(TABLE, name="users")
    ours = a_store(start, TABLE, users)
    others = a_store(start, TABLE, replace(TABLE, name="theirs"), ids=IDS[:1000])
    good, wrong = following(start, ours), following(start, others)
    rows = lines("--servers", ours.address, "--follower", good.address)
    assert [(row.get("table"), row.get("equal"), row["problem"]) for row in rows] == [
        ("items", 100, ""),
        ("users", 100, ""),
        (None, True, ""),
    ]
    at = ("--servers", ours.address, "--follower", wrong.address, "--wait-s", "0.2")
    items, theirs, missing, dense = lines(*at, "--keys", "3000", code=1)
    assert (items["equal"], items["different"], items["extra"], items["missing"]) == (100, 900, 900, 0)
    assert all(100 <= each < 1000 for each in items["ids"])
    assert (theirs["table"], theirs["problem"]) == ("theirs", "the leaders have no such table")
    assert (missing["table"], missing["problem"]) == ("users", "the follower has no such table")
    assert dense["equal"] is True
    [row] = lines(*at, "--table", "users", code=1)
    assert row["problem"] == "the follower has no such table"


def test_an_empty_follower_has_not_what_its_leaders_have(start: Callable[..., Shard]) -> None:
    leader, empty = a_store(start, TABLE), following(start, start())
    bare = following(start, a_store(start, TABLE, ids=IDS[:0]))
    at = ("--servers", leader.address, "--wait-s", "0.2")
    items, dense = lines(*at, "--follower", empty.address, code=1)
    assert items["problem"] == "the follower has no such table"
    assert (dense["dense_set"], dense["problem"]) == ("model", "the follower has no such dense set")
    items, dense = lines(*at, "--follower", bare.address, code=1)
    assert (items["different"], items["missing"], items["extra"]) == (100, 100, 0)


def test_tables_of_another_form_differ(start: Callable[..., Shard]) -> None:
    ours, others = a_store(start, TABLE), a_store(start, replace(TABLE, dim=5, num_chunks=8))
    there = following(start, others)
    with es.connect(ours.address) as here, es.connect(there.address) as follower:
        found = compare(here, follower, "items", num_rows=10, timeout_s=0.1)
    assert found.problem == "the follower's table has another dim"


def test_a_follower_is_compared_with_the_one_that_it_follows_and_not_with_itself(start: Callable[..., Shard]) -> None:
    """Beyond a packed follower rows are what that one reads."""
    leader = a_store(start, TABLE)
    packed = start(follow=[leader.address], rows="int4")
    assert packed.wait_ready(TIMEOUT_S)
    last = following(start, packed)
    rows = lines("--servers", packed.address, "--follower", last.address)
    assert [row["equal"] for row in rows] == [100, True]
    for itself in (packed.address, packed.address.replace("127.0.0.1", "localhost")):
        done = run(["doctor", "parity", "--servers", itself, "--follower", packed.address])
        assert (done.returncode, "cannot be compared with itself" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        (es.DenseSet({"w": np.arange(3.0)}, {"topic/0": 5}, 2), "the follower has version 2, the leaders have 1"),
        (es.DenseSet({"w": np.arange(3.0)}, {"topic/0": 4}, 1), "the follower stands at another position of topic/0"),
        (es.DenseSet({"w": np.arange(1.0, 4.0)}, {"topic/0": 5}, 1), "the follower has other weights (crc32c "),
        (es.DenseSet({"v": np.arange(3.0)}, {"topic/0": 5}, 1), "the follower has other weights (crc32c "),
    ],
)
def test_dense_sets_are_compared(start: Callable[..., Shard], there: es.DenseSet, problem: str) -> None:
    leader = a_store(start)
    with es.connect(leader.address) as store:
        store.open_stream("topic/0", 0)
        store.put_dense("other", {"w": np.arange(3.0)}, {"topic/0": 5})
    follower = following(start, leader)
    with es.connect(leader.address) as here, es.connect(follower.address) as reader:
        assert dense_sets_of_both(here, reader) == ["model", "other"]
        found = compare_dense(here, reader, "other", timeout_s=TIMEOUT_S)
        assert (found.equal, found.problem, found.version) == (True, "", 1)
        held: Any = follower._serving.store()
        held.set_dense("other", there)
        held.set_dense("more", there)
        found = compare_dense(here, reader, "other", timeout_s=0.1)
        assert not found.equal
        assert found.problem.startswith(problem)
        assert dense_sets_of_both(here, reader) == ["model", "more", "other"]
        found = compare_dense(here, reader, "more", timeout_s=0.1)
        assert found.problem == "the leaders have no such dense set"


def test_rows_that_have_expired_are_gone_on_both_sides(start: Callable[..., Shard]) -> None:
    """Whether a sweep has come to them, here or there, or not."""
    leader = start(tables=[replace(TABLE, ttl_s=10.0)])
    ones = np.ones((50, 33), np.float32)
    with es.connect(leader.address) as store:
        store.push({"items": (IDS[:50], ones)}, event_time_ms=1_000)
        follower = following(start, leader)
        store.push({"items": (IDS[50:100], ones)}, event_time_ms=60_000)
        with es.connect(follower.address) as there:
            held: Any = follower._serving.store().table("items")
            found = compare(store, there, "items", num_rows=3000, timeout_s=TIMEOUT_S)
            assert (found.problem, found.different) == ("", ())
            assert found.equal == found.rows >= 50
            store.sweep()
            found = compare(store, there, "items", num_rows=3000, timeout_s=TIMEOUT_S)
            assert (found.problem, found.different) == ("", ())
            assert found.equal == found.rows >= 50
            assert held.stats().rows >= 50
