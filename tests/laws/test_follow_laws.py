"""Whatever happens on leaders and on the way, a follower ends up equal to its leaders and is never wrong before.

The leader's feed and the follower's intake are driven directly, with a wire between them that loses, repeats, reorders
and damages messages. Time is a number.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from embedstore.errors import InvalidArgumentError
from embedstore.interface import Origin
from embedstore.placement import chunks_of_ids, chunks_of_shard, shard_of_chunk
from embedstore.server.feed import Feed, Pace
from embedstore.server.intake import Intake
from embedstore.server.replica import Replica
from embedstore.server.shared_deltas import SharedDeltas
from embedstore.spec import SGD, TableSpec
from embedstore.store import LocalStore
from embedstore.v1 import sync_pb2

NUM_SHARDS = 2
NUM_CHUNKS = 4
SPECS = [TableSpec("a", dim=2, optimizer=SGD(1.0), num_chunks=NUM_CHUNKS), TableSpec("b", dim=3, num_chunks=NUM_CHUNKS)]
IDS = np.arange(8, dtype=np.uint64)
INTERVAL_MS = 100


class Wire:
    """One leader, its feed, and the follower's intake of it."""

    def __init__(self, leader: int, store: LocalStore, replica: Replica, time_ms: Time) -> None:
        self.store = store
        self.shared = SharedDeltas(lambda: True)
        self.time_ms = time_ms
        self.intake = Intake(replica, leader, only_tables=(), embeddings_only=True, sync_interval_ms=INTERVAL_MS)
        self.asked_again: list[str] = []
        self.call()

    def call(self) -> None:
        """Begin a call from where the follower stands; what was on the way is lost."""
        pace = Pace(INTERVAL_MS, INTERVAL_MS)
        clock = self.time_ms.now
        wants = self.intake.begin()
        self.feed = Feed(self.store, wants, pace, clock_ms=clock, monotonic_ms=clock, deltas=self.shared)
        self.twin = Feed(self.store, wants, pace, clock_ms=clock, monotonic_ms=clock, deltas=self.shared)
        self.way: list[sync_pb2.FollowResponse] = []
        self.sequence = 0
        self.asked_again.clear()

    def send(self) -> None:
        for message in self.feed.round():
            self.sequence += 1
            message.sequence = self.sequence
            self.way.append(sync_pb2.FollowResponse.FromString(message.SerializeToString()))

    def deliver(self) -> bool:
        """Apply what is on the way; False when the call had to be given up."""
        way, self.way = self.way, []
        try:
            for message in way:
                for rewind in self.intake.take(message):
                    self.feed.rewind(rewind)
        except InvalidArgumentError:
            self.call()
            return False
        return True


class Time:
    """Milliseconds, moved by the test."""

    def __init__(self) -> None:
        self.at_ms = 1_700_000_000_000

    def now(self) -> int:
        return self.at_ms


class LossyReplica(Replica):
    """Remembers which leader was asked again, as its links would."""

    def __init__(self, time_ms: Time) -> None:
        super().__init__(clock_ms=time_ms.now)
        self.wires: list[Wire] = []

    def ask_again(self, leader: int, table: str) -> None:
        if leader < len(self.wires):
            self.wires[leader].intake.begin_afresh(table)
            self.wires[leader].asked_again.append(table)


class Following(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.time = Time()
        self.stores = [
            LocalStore(None, SPECS[:1], shard=shard, num_shards=NUM_SHARDS, clock_ms=self.time.now)
            for shard in range(NUM_SHARDS)
        ]
        self.replica = LossyReplica(self.time)
        self.wires = self.replica.wires
        for shard, store in enumerate(self.stores):
            store.open_stream("s", 0)
            self.wires.append(Wire(shard, store, self.replica, self.time))
        self.position = 0
        self.version = 0
        self.history: dict[tuple[Any, ...], tuple[int, Any, int]] = {}

    def owned(self, ids: np.ndarray, shard: int) -> np.ndarray:
        owned = chunks_of_shard(shard, NUM_SHARDS, NUM_CHUNKS)
        chunks = chunks_of_ids(ids, NUM_CHUNKS)
        return ids[(chunks >= owned.start) & (chunks < owned.stop)]

    @rule(ids=st.lists(st.sampled_from(list(IDS)), max_size=8), table=st.sampled_from(SPECS))
    def push(self, ids: list[Any], table: TableSpec) -> None:
        """One push to every shard, as a trainer makes it."""
        begin, self.position = self.position, self.position + 1
        for shard, store in enumerate(self.stores):
            mine = self.owned(np.array(ids, np.uint64), shard)
            tables = {table.name: (mine, np.ones((len(mine), table.dim), np.float32))} if self.has(shard, table) else {}
            store.push(tables, origins=[Origin("s", begin, self.position)], event_time_ms=self.time.now())

    @rule(shard=st.integers(0, 1), ids=st.lists(st.sampled_from(list(IDS)), max_size=4), table=st.sampled_from(SPECS))
    def delete(self, shard: int, ids: list[Any], table: TableSpec) -> None:
        if self.has(shard, table):
            self.stores[shard].delete(table.name, self.owned(np.array(ids, np.uint64), shard))

    @rule(shard=st.integers(0, 1), ids=st.lists(st.sampled_from(list(IDS)), max_size=4), table=st.sampled_from(SPECS))
    def assign(self, shard: int, ids: list[Any], table: TableSpec) -> None:
        if self.has(shard, table):
            mine = self.owned(np.array(ids, np.uint64), shard)
            rows = np.full((len(mine), table.dim), self.position, np.float32)
            self.stores[shard].assign(table.name, mine, rows)

    @rule(shard=st.integers(0, 1), table=st.sampled_from(SPECS))
    def create_or_drop(self, shard: int, table: TableSpec) -> None:
        if self.has(shard, table):
            self.stores[shard].drop_table(table.name)
        else:
            self.stores[shard].create_table(table)

    @rule(shard=st.integers(0, 1), table=st.sampled_from(SPECS))
    def remake(self, shard: int, table: TableSpec) -> None:
        if self.has(shard, table):
            self.stores[shard].drop_table(table.name)
            self.stores[shard].create_table(table)

    @rule(shard=st.integers(0, 1), lr=st.sampled_from([0.5, 1.0]))
    def alter(self, shard: int, lr: float) -> None:
        if self.has(shard, SPECS[0]):
            self.stores[shard].alter_table(replace(SPECS[0], optimizer=SGD(lr)))

    @rule(shard=st.integers(0, 1))
    def put_dense(self, shard: int) -> None:
        self.version += 1
        tensors = {"w": np.full(3, self.version, np.float32), "v": np.full(2, self.version, np.float32)}
        self.stores[shard].put_dense(f"model{shard}", tensors, {})

    @rule(shard=st.integers(0, 1), pass_ms=st.integers(0, 2 * INTERVAL_MS))
    def send(self, shard: int, pass_ms: int) -> None:
        self.time.at_ms += pass_ms
        self.wires[shard].send()

    @rule(shard=st.integers(0, 1), pass_ms=st.integers(0, INTERVAL_MS))
    def another_follower_is_sent_the_same(self, shard: int, pass_ms: int) -> None:
        """What was made for it may be sent to ours a little later."""
        self.time.at_ms += pass_ms
        list(self.wires[shard].twin.round())

    @rule(shard=st.integers(0, 1))
    def deliver(self, shard: int) -> None:
        self.pass_on_requests()
        self.wires[shard].deliver()

    @rule(shard=st.integers(0, 1), seed=st.integers(0, 2**32 - 1))
    def disturbed_round(self, shard: int, seed: int) -> None:
        """Lose, repeat, swap or damage something that is on the way, and let the rest arrive."""
        self.send(shard, INTERVAL_MS)
        self.disturb(self.wires[shard].way, random.Random(seed))
        self.deliver(shard)

    def disturb(self, way: list[sync_pb2.FollowResponse], rng: random.Random) -> None:
        if not way:
            return
        at = rng.randrange(len(way))
        kind = rng.choice(["lose", "repeat", "swap", "damage", "damage", "damage", "cut", "repeat part"])
        if kind in ("damage", "cut", "repeat part"):
            at = next((i for i, message in enumerate(way) if message.deltas.parts), at)
        parts = way[at].deltas.parts
        if kind == "lose":
            del way[at]
        elif kind == "repeat":
            way.insert(rng.randint(at, len(way)), way[at])
        elif kind == "swap":
            other = rng.randrange(len(way))
            way[at], way[other] = way[other], way[at]
        elif parts and kind == "damage":
            part = rng.choice(parts)
            data = bytearray(part.data)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            part.data = bytes(data)
        elif parts and kind == "cut":
            part = rng.choice(parts)
            part.data = part.data[: rng.randrange(len(part.data))]
        elif parts:
            parts.add().CopyFrom(rng.choice(parts))

    @rule(shard=st.integers(0, 1))
    def cut_off(self, shard: int) -> None:
        self.wires[shard].call()

    @rule(shard=st.integers(0, 1))
    def replace_leader(self, shard: int) -> None:
        """The leader's machine is lost, and an empty one takes its place."""
        tables = list(self.stores[shard].tables().values())
        self.stores[shard].close()
        store = LocalStore(None, tables, shard=shard, num_shards=NUM_SHARDS, clock_ms=self.time.now)
        store.open_stream("s", self.position)
        self.stores[shard] = self.wires[shard].store = store
        self.wires[shard].shared = SharedDeltas(lambda: True)
        self.wires[shard].call()

    def has(self, shard: int, table: TableSpec) -> bool:
        return table.name in self.stores[shard].tables()

    def pass_on_requests(self) -> None:
        for wire in self.wires:
            for table in wire.asked_again:
                cursors = sync_pb2.TableCursors(table=table)
                wire.feed.rewind(sync_pb2.FollowRewind(cursors=cursors, whole_table=True))
            wire.asked_again.clear()

    @invariant()
    def a_dense_set_is_never_mixed(self) -> None:
        if not hasattr(self, "replica"):
            return
        for dense_set in self.replica.dense_sets().values():
            assert len({float(x) for tensor in dense_set.tensors.values() for x in tensor}) == 1

    @invariant()
    def no_chunk_claims_events_that_its_rows_lack(self) -> None:
        """A chunk at a cursor of its leader has the rows and at most the watermarks that the leader had there, and is
        not said to be younger than the moment at which the leader left that cursor."""
        if not hasattr(self, "replica"):
            return
        for store in self.stores:
            for name, table in store.table_map().items():
                for chunk, cursor, watermarks in _states(table):
                    key = name, chunk, *cursor
                    self.history[key] = watermarks.get("s", 0), _content(table, chunk), self.time.now()
        for name, table in self.replica.table_map().items():
            for chunk, cursor, watermarks in _states(table):
                if (name, chunk, *cursor) in self.history:
                    position, content, current_until_ms = self.history[name, chunk, *cursor]
                    assert watermarks.get("s", 0) <= position
                    assert _content(table, chunk) == content
                    leader = shard_of_chunk(chunk, NUM_SHARDS, NUM_CHUNKS)
                    assert self.wires[leader].intake.complete_until_ms <= current_until_ms

    def teardown(self) -> None:
        if not hasattr(self, "replica"):
            return
        for _ in range(20):
            self.time.at_ms += 2 * INTERVAL_MS
            for wire in self.wires:
                self.pass_on_requests()
                wire.send()
                wire.deliver()
        self.check_equal()
        for store in self.stores:
            store.close()

    def check_equal(self) -> None:
        expected = {name for store in self.stores for name in store.tables()}
        assert set(self.replica.tables()) == expected
        for name in expected:
            table = self.replica.table(name)
            claimed = _watermark_of_chunks(table)
            states = table.chunk_states()
            for shard, store in enumerate(self.stores):
                for chunk in chunks_of_shard(shard, NUM_SHARDS, NUM_CHUNKS):
                    leader = store.table_map().get(name)
                    if leader is None:
                        assert _content(table, chunk) == {}
                        continue
                    assert _content(table, chunk) == _content(leader, chunk)
                    assert claimed[chunk] == _watermark_of_chunks(leader)[chunk]
                    assert states.clocks_ms[chunk] == leader.chunk_states().clocks_ms[chunk - leader.chunks.start]
        for shard, store in enumerate(self.stores):
            for name, dense_set in store.dense_sets().items():
                np.testing.assert_array_equal(self.replica.get_dense(name).tensors["w"], dense_set.tensors["w"])
            assert self.wires[shard].intake.complete_until_ms == self.time.now()


def _watermark_of_chunks(table: Any) -> dict[int, dict[str, int]]:
    return {chunk: dict(positions) for positions, chunks in table.watermarks() for chunk in chunks}


def _states(table: Any) -> Iterator[tuple[int, tuple[int, int], dict[str, int]]]:
    states, watermarks = table.chunk_states(), _watermark_of_chunks(table)
    for at, chunk in enumerate(table.chunks):
        yield chunk, (int(states.incarnations[at]), int(states.versions[at])), watermarks[chunk]


def _content(table: Any, chunk: int) -> dict[int, tuple[bytes, int, int]]:
    ids, rows = table.scan_chunk(chunk)
    columns = zip(ids.tolist(), rows.embeddings, rows.updates.tolist(), rows.last_seen_s.tolist(), strict=True)
    return {key: (embedding.tobytes(), updates, seen) for key, embedding, updates, seen in columns}


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, print_blob=True)
