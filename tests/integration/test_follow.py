"""Followers over real connections: they become equal to their leaders, stay so, and say so."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from follow_servers import TIMEOUT_S, Leader, content, ones, refused_because

from embedstore.errors import (
    DenseSetNotFoundError,
    InvalidArgumentError,
    ReadOnlyError,
    TableNotFoundError,
    UnavailableError,
)
from embedstore.interface import Origin, Reader
from embedstore.placement import chunks_of_ids, split
from embedstore.server.follow import FollowerStore, follow
from embedstore.server.link import Retry
from embedstore.server.table_feed import TableFeed
from embedstore.spec import SGD, Adagrad, TableSpec
from embedstore.store import LocalStore
from embedstore.table import Table

ITEMS = TableSpec("items", dim=4, optimizer=SGD(1.0), num_chunks=16)
USERS = TableSpec("users", dim=8, optimizer=Adagrad(0.1), num_chunks=8)
RETRY = Retry(first_s=0.01, longest_s=0.1, silence_s=5.0)


class Cluster:
    """Shards in memory behind real servers, and followers of them; ``close`` ends all."""

    def __init__(self, num_shards: int, tables: list[TableSpec]) -> None:
        self.num_shards = num_shards
        self.stores = [LocalStore(None, tables, shard=i, num_shards=num_shards) for i in range(num_shards)]
        self.leaders = [Leader(s, shard=i, num_shards=num_shards) for i, s in enumerate(self.stores)]
        self.followers: list[FollowerStore] = []
        self.position = 0
        for store in self.stores:
            store.open_stream("s", 0)

    @property
    def addresses(self) -> list[str]:
        return [leader.address for leader in self.leaders]

    def follow(self, addresses: list[str] | None = None, **options: Any) -> FollowerStore:
        options = {"sync_interval_ms": 20, "retry": RETRY, **options}
        self.followers.append(FollowerStore(addresses or self.addresses, **options))
        return self.followers[-1]

    def push(self, tables: dict[str, Any]) -> dict[str, int]:
        """A push to every shard; returns the watermarks after it."""
        begin, self.position = self.position, self.position + 1
        for shard, store in enumerate(self.stores):
            part = {}
            for name, given in tables.items():
                spec, ids = store.tables()[name], np.asarray(given, np.uint64)
                mine = split(ids, spec.num_chunks, self.num_shards)[shard]
                part[name] = ones(ids if mine is None else ids[mine], spec.dim)
            store.push(part, origins=[Origin("s", begin, self.position)])
        return {"s": self.position}

    def rows(self, name: str) -> dict[int, Any]:
        return {key: row for store in self.stores for key, row in content(store, name).items()}

    def close(self) -> None:
        for follower in self.followers:
            follower.close()
        for leader in self.leaders:
            leader.stop()
        for store in self.stores:
            store.close()


@pytest.fixture
def cluster() -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(num_shards: int = 1, tables: list[TableSpec] | None = None) -> Cluster:
        made.append(Cluster(num_shards, [ITEMS] if tables is None else tables))
        return made[-1]

    yield make
    for each in made:
        each.close()


def until(follower: FollowerStore, done: Callable[[], bool]) -> None:
    """Wait for a change of the follower after which ``done()`` holds."""
    assert follower.wait_until(done, TIMEOUT_S), "not in time"


def test_a_follower_has_what_two_shards_have(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(2, [ITEMS, USERS])
    shards.push({"items": range(500), "users": range(100)})
    follower = shards.follow()
    follower.wait_for(shards.push({"items": range(250, 750)}), TIMEOUT_S)
    assert follower.tables() == {"items": ITEMS, "users": USERS}
    for name in ("items", "users"):
        assert content(follower, name) == shards.rows(name)
    assert isinstance(follower, Reader)
    np.testing.assert_array_equal(follower.pull({"items": [0, 300, 9999]})["items"][:, 0], [-1, -2, 0])


def test_any_sequence_of_changes_arrives(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(2, [ITEMS])
    follower = shards.follow()
    seed = 20_240_501
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    for step in range(60):
        ids = rng.integers(0, 200, rng.integers(0, 40)).astype(np.uint64)
        kind = rng.integers(0, 5)
        if kind < 3:
            shards.push({"items": ids})
            continue
        for shard, store in enumerate(shards.stores):
            mine = split(ids, ITEMS.num_chunks, 2)[shard]
            assert mine is not None
            if kind == 3:
                store.delete("items", ids[mine])
            else:
                store.assign("items", ids[mine], np.full((len(mine), 4), step, np.float32))
    follower.wait_for(shards.push({"items": [1]}), TIMEOUT_S)
    until(follower, lambda: content(follower, "items") == shards.rows("items"))


def test_every_chunk_shows_exactly_the_events_of_its_watermark_while_pushes_go_on(
    cluster: Callable[..., Cluster],
) -> None:
    """Row k counts the pushes that had it; so rows and watermark of a chunk can be compared at any instant."""
    shards = cluster(2)
    follower = shards.follow(sync_interval_ms=5)
    follower.wait_synced(TIMEOUT_S)
    seed = 11
    print(f"seed {seed}")
    chosen = np.random.default_rng(seed).random((400, 64)) < 0.1
    totals = np.vstack([np.zeros((1, 64)), np.cumsum(chosen, axis=0)])
    pushing = threading.Thread(target=lambda: [shards.push({"items": np.flatnonzero(each)}) for each in chosen])
    pushing.start()
    looked_at: set[tuple[int, int]] = set()
    while pushing.is_alive() or not looked_at >= {(chunk, len(chosen)) for chunk in range(ITEMS.num_chunks)}:
        for chunk in range(ITEMS.num_chunks):
            instant = Table(ITEMS, embeddings_only=True)
            instant.apply(follower.table("items").delta(chunk))
            [watermark] = [at["s"] for at, chunks in instant.watermarks() if chunk in chunks]
            ids, rows = instant.scan_chunk(chunk)
            counted = dict(zip(ids.tolist(), -rows.embeddings[:, 0], strict=True))
            owned = [
                key for key in range(64) if chunks_of_ids(np.array([key], np.uint64), ITEMS.num_chunks)[0] == chunk
            ]
            assert {key: counted.get(key, 0.0) for key in owned} == {key: totals[watermark, key] for key in owned}
            looked_at.add((chunk, watermark))
    pushing.join()
    assert len(looked_at) > 2 * ITEMS.num_chunks, "too few instants to mean anything"


def test_one_member_is_enough_when_it_knows_the_others(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(2, [ITEMS])
    shards.push({"items": range(100)})
    late = shards.follow(shards.addresses[:1])
    refused_because(late, "not all are known")
    for leader in shards.leaders:
        leader.know(shards.addresses)
    follower = shards.follow(shards.addresses[:1])
    follower.wait_synced(TIMEOUT_S)
    late.wait_synced(TIMEOUT_S)
    assert len(follower.stats().leaders) == 2
    assert content(follower, "items") == content(late, "items") == shards.rows("items")


def test_only_what_changed_is_sent(cluster: Callable[..., Cluster]) -> None:
    shards = cluster()
    marks = shards.push({"items": range(2000)})
    follower = shards.follow()
    follower.wait_for(marks, TIMEOUT_S)
    [before] = follower.stats().leaders
    assert before.deltas == ITEMS.num_chunks
    follower.wait_for(shards.push({"items": [7]}), TIMEOUT_S)
    [after] = follower.stats().leaders
    assert after.deltas == before.deltas + 1, "one chunk changed; the others moved their watermarks in a heartbeat"
    assert content(follower, "items") == shards.rows("items")


def test_a_heartbeat_does_not_repeat_what_the_deltas_said() -> None:
    with LocalStore(None, [ITEMS]) as store:
        for stream in ("b", "a" * 300, "\u00e9\u4e16"):
            store.open_stream(stream, 7)
        store.push({"items": ones(range(100), 4)}, origins=[Origin("b", 7, 9)], event_time_ms=1_700_000_000_000)
        feed = TableFeed(store.table("items"), None, embeddings_only=True)
        for index in feed.due(0, 1, 1, 1):
            feed.delta(index, 0, 1, 1)
        assert feed.heartbeat() is None
        store.push({}, origins=[Origin("b", 9, 10)])
        said = feed.heartbeat()
        assert said is not None
        assert len(said.chunks) == 4 * ITEMS.num_chunks
        assert feed.heartbeat() is None


class Busy(Table):
    """A table on which a push always comes between two looks."""

    position = 0

    def watermarks(self) -> list[tuple[dict[str, int], list[int]]]:
        begin, self.position = self.position, self.position + 1
        self.push(*ones([7], 4), now_ms=1, origins=[Origin("s", begin, self.position)])
        return super().watermarks()


def test_a_heartbeat_claims_nothing_for_a_chunk_that_moves_under_its_eyes() -> None:
    table = Busy(ITEMS)
    table.open_stream("s", 0)
    feed = TableFeed(table, None, embeddings_only=True)
    [busy] = chunks_of_ids(np.array([7], np.uint64), ITEMS.num_chunks).tolist()
    for now_ms in range(3):
        for index in feed.due(now_ms, 1, 1, 1):
            feed.delta(index, now_ms, 1, 1)
        said = feed.heartbeat()
        assert said is not None
        claimed = np.frombuffer(said.chunks, "<u4").tolist()
        assert claimed == [chunk for chunk in table.chunks if chunk != busy]


def test_a_cut_connection_resumes_at_its_cursors(cluster: Callable[..., Cluster]) -> None:
    shards = cluster()
    follower = shards.follow()
    follower.wait_for(shards.push({"items": range(2000)}), TIMEOUT_S)
    [before] = follower.stats().leaders
    shards.leaders[0].stop()
    until(follower, lambda: not follower.stats().leaders[0].connected)
    marks = shards.push({"items": [7]})
    assert len(follower.pull({"items": range(2000)})["items"]) == 2000
    shards.leaders[0] = Leader(shards.stores[0], port=shards.leaders[0].port)
    follower.wait_for(marks, TIMEOUT_S)
    [after] = follower.stats().leaders
    assert (after.deltas, after.reconnects) == (before.deltas + 1, 1)
    assert content(follower, "items") == shards.rows("items")


def test_a_leader_that_is_gone_leaves_answers_that_grow_older(cluster: Callable[..., Cluster]) -> None:
    shards = cluster()
    follower = shards.follow()
    assert follower.stats().leaders == () or follower.stats().leaders[0].age_s == float("inf")
    follower.wait_for(shards.push({"items": range(100)}), TIMEOUT_S)
    rows = content(follower, "items")
    shards.leaders[0].stop()
    until(follower, lambda: not follower.stats().leaders[0].connected)
    age_s = follower.stats().leaders[0].age_s
    assert age_s < TIMEOUT_S
    until(follower, lambda: follower.stats().leaders[0].age_s > age_s + 0.2)
    assert content(follower, "items") == rows


def test_a_leader_that_lost_everything_leaves_no_phantom_rows(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(2)
    follower = shards.follow()
    follower.wait_for(shards.push({"items": range(1000)}), TIMEOUT_S)
    shards.leaders[0].stop()
    shards.stores[0].close()
    shards.stores[0] = LocalStore(None, [ITEMS], shard=0, num_shards=2)
    shards.stores[0].open_stream("s", shards.position)
    shards.leaders[0] = Leader(shards.stores[0], shard=0, num_shards=2, port=shards.leaders[0].port)
    follower.wait_for(shards.push({"items": range(5)}), TIMEOUT_S)
    assert content(follower, "items") == shards.rows("items")
    assert 0 < len(content(follower, "items")) < 1000


def test_tables_come_go_and_come_back_different(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(2, [])
    follower = shards.follow()
    follower.wait_synced(TIMEOUT_S)
    assert follower.tables() == {}
    for spec in (ITEMS, replace(ITEMS, dim=6)):
        for store in shards.stores:
            store.create_table(spec)
        until(follower, lambda: "items" in follower.tables())
        follower.wait_for(shards.push({"items": range(100)}), TIMEOUT_S)
        until(follower, lambda: content(follower, "items") == shards.rows("items"))
        assert follower.tables() == {"items": spec}
        for store in shards.stores:
            store.drop_table("items")
        until(follower, lambda: follower.tables() == {})
    with pytest.raises(TableNotFoundError):
        follower.pull({"items": [1]})


def test_a_table_made_anew_between_two_looks_has_no_row_of_the_old_one(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(2)
    follower = shards.follow()
    follower.wait_for(shards.push({"items": range(500)}), TIMEOUT_S)
    for store in shards.stores:
        store.drop_table("items")
        store.create_table(ITEMS)
    shards.push({"items": range(5)})
    until(follower, lambda: "items" in follower.tables() and content(follower, "items") == shards.rows("items"))


def test_a_changed_learning_rate_changes_nothing_else(cluster: Callable[..., Cluster]) -> None:
    shards = cluster()
    follower = shards.follow()
    follower.wait_for(shards.push({"items": range(100)}), TIMEOUT_S)
    before = follower.table("items")
    altered = replace(ITEMS, optimizer=SGD(0.5))
    shards.stores[0].alter_table(altered)
    until(follower, lambda: follower.tables() == {"items": altered})
    assert follower.table("items") is before


def test_only_the_tables_that_were_asked_for_come(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(1, [ITEMS, USERS])
    shards.push({"items": range(10), "users": range(10)})
    follower = shards.follow(only_tables=["users"])
    follower.wait_synced(TIMEOUT_S)
    assert set(follower.tables()) == {"users"}


def test_a_chain_of_followers_ends_in_the_same_rows_and_ages(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(2)
    first = shards.follow()
    first.wait_synced(TIMEOUT_S)
    relay = Leader(first, follower=True)
    try:
        second = shards.follow([relay.address])
        second.wait_for(shards.push({"items": range(300)}), TIMEOUT_S)
        assert content(second, "items") == shards.rows("items")
        second.wait_for(shards.push({"items": range(100)}), TIMEOUT_S)
        assert content(second, "items") == shards.rows("items")
        for leader in shards.leaders:
            leader.stop()
        until(first, lambda: not any(state.connected for state in first.stats().leaders))
        [state] = second.stats().leaders
        until(second, lambda: second.stats().leaders[0].age_s > state.age_s + 0.2)
        assert second.stats().leaders[0].connected, "its own leader is there; it is the rows that grow old"
    finally:
        relay.stop()


def test_a_standby_of_a_serving_follower_is_refused(cluster: Callable[..., Cluster]) -> None:
    shards = cluster()
    first = shards.follow()
    first.wait_synced(TIMEOUT_S)
    relay = Leader(first, follower=True)
    try:
        standby = shards.follow([relay.address], embeddings_only=False)
        refused_because(standby, "embeddings_only")
    finally:
        relay.stop()


def test_an_incomplete_follower_feeds_nobody(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(2)
    half = shards.follow(shards.addresses[:1])
    relay = Leader(half, follower=True)
    try:
        second = shards.follow([relay.address])
        refused_because(second, "not ready")
    finally:
        relay.stop()


def test_a_standby_has_the_optimizer_state_too(cluster: Callable[..., Cluster]) -> None:
    shards = cluster(1, [USERS])
    standby = shards.follow(embeddings_only=False)
    standby.wait_for(shards.push({"users": range(50)}), TIMEOUT_S)
    theirs, mine = shards.stores[0].table("users"), standby.table("users")
    for table in (theirs, mine):
        table.push(*ones(range(50), 8), now_ms=1_700_000_000_000)
    np.testing.assert_array_equal(
        mine.pull(np.arange(50, dtype=np.uint64)), theirs.pull(np.arange(50, dtype=np.uint64))
    )


def test_a_dense_set_arrives_whole_and_again_with_each_version(cluster: Callable[..., Cluster]) -> None:
    shards = cluster()
    follower = shards.follow()
    follower.wait_synced(TIMEOUT_S)
    with pytest.raises(DenseSetNotFoundError):
        follower.get_dense("model")
    torn = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            found = follower.dense_sets().get("model")
            if found is not None and len({float(t.flat[0]) for t in found.tensors.values()}) != 1:
                torn.append(found.version)

    reader = threading.Thread(target=read)
    reader.start()
    for version in (1, 2, 3):
        tensors = {"w": np.full((1024, 1024), version, np.float32), "b": np.full(3, version, np.float32)}
        shards.stores[0].put_dense("model", tensors, {"s": version})
        until(follower, partial(_has_version, follower, version))
    stop.set()
    reader.join()
    found = follower.get_dense("model")
    assert not torn
    assert (found.version, found.position) == (3, {"s": 3})
    np.testing.assert_array_equal(found.tensors["w"], np.full((1024, 1024), 3, np.float32))


def _has_version(follower: FollowerStore, version: int) -> bool:
    return follower.dense_versions().get("model") == version


def test_a_chunk_larger_than_a_message_arrives_in_parts(cluster: Callable[..., Cluster]) -> None:
    wide = TableSpec("wide", dim=256, optimizer=SGD(1.0), num_chunks=1)
    shards = cluster(1, [wide])
    marks = shards.push({"wide": range(6000)})
    follower = shards.follow()
    follower.wait_for(marks, TIMEOUT_S)
    assert content(follower, "wide") == shards.rows("wide")
    assert follower.stats().leaders[0].deltas == 1


def test_a_follower_takes_no_writes(cluster: Callable[..., Cluster]) -> None:
    follower: Any = cluster().follow()
    writes: list[Callable[[], Any]] = [
        lambda: follower.push({"items": ones([1], 4)}),
        lambda: follower.assign("items", [1], np.ones((1, 4))),
        lambda: follower.delete("items", [1]),
        lambda: follower.put_dense("model", {}, {}),
        lambda: follower.open_stream("s", 0),
        lambda: follower.create_table(ITEMS),
        lambda: follower.alter_table(ITEMS),
        lambda: follower.drop_table("items"),
    ]
    for write in writes:
        with pytest.raises(ReadOnlyError):
            write()


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError, match="addresses"):
        follow("localhost")
    with pytest.raises(InvalidArgumentError, match="sync_interval_ms"):
        follow("localhost:1", sync_interval_ms=0)
    with pytest.raises(InvalidArgumentError, match="only_tables"):
        follow("localhost:1", only_tables="items")


def test_a_follower_of_nobody_says_so_and_closes() -> None:
    with follow("127.0.0.1:1") as follower:
        with pytest.raises(UnavailableError, match="not all are known"):
            follower.wait_synced(0.2)
        with pytest.raises(UnavailableError, match=r"not all are known.*first copy is not complete \(wait_synced\)"):
            follower.pull({"items": [1]})
        assert follower.stats().leaders == ()
    follower.close()


def test_close_leaves_no_thread_and_no_follower_behind(cluster: Callable[..., Cluster]) -> None:
    shards = cluster()
    follower = shards.follow()
    follower.wait_synced(TIMEOUT_S)
    assert shards.stores[0].stats().followers == 1
    follower.close()
    tables = shards.stores[0]
    while tables.stats().followers:
        tables.wait_changed(tables.tick(), TIMEOUT_S)
    for thread in threading.enumerate():
        if thread.name.startswith("follow-"):
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), thread.name


def test_no_call_outlives_its_follower(cluster: Callable[..., Cluster]) -> None:
    # One that the end of the interpreter finds waits in its destructor, sometimes for ever.
    group = cluster(2, [ITEMS])
    gc.collect()
    gc.disable()
    try:
        follower = group.follow()
        follower.wait_synced(TIMEOUT_S)
        follower.close()
        assert not [each for each in gc.get_objects() if issubclass(type(each), grpc.Call)]
    finally:
        gc.enable()
