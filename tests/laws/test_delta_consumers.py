"""Any number of consumers, each at a cursor of its own, end up with what the table holds, whenever they ask."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
from delta_reader import read_delta
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from embedstore.deltas import delta_info
from embedstore.interface import Origin
from embedstore.spec import Adagrad, TableSpec
from embedstore.table import Table

DIM, CHUNKS, TOMBSTONES_MAX = 3, 2, 16
SPEC = TableSpec("t", DIM, optimizer=Adagrad(0.1), num_chunks=CHUNKS)
NUM_CONSUMERS = 5
KEYS = st.lists(st.integers(0, 60), min_size=1, max_size=25)


def contents(table: Table, chunk: int) -> tuple[Any, ...]:
    """All of a chunk but the versions, which a consumer may see later than they were."""
    read = read_delta(table.delta(chunk, embeddings_only=True))
    columns = (read.first_seen_s.tolist(), read.last_seen_s.tolist(), read.updates.tolist(), read.embeddings.tolist())
    rows = dict(zip(read.ids.tolist(), zip(*columns, strict=True), strict=True))
    return rows, read.watermarks, read.clock_ms, read.to_version


def states(table: Table, chunk: int) -> dict[int, list[float]]:
    read = read_delta(table.delta(chunk))
    return dict(zip(read.ids.tolist(), read.states.tolist(), strict=True))


class Consumers(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.leader = Table(SPEC, tombstones_max=TOMBSTONES_MAX)
        self.leader.open_stream("s", 0)
        self.position = 0
        # The last one follows the first and not the leader; every second one holds embeddings only.
        self.consumers = [
            Table(SPEC, embeddings_only=number % 2 == 1, tombstones_max=TOMBSTONES_MAX)
            for number in range(NUM_CONSUMERS)
        ]

    @rule(keys=KEYS, seed=st.integers(0, 99))
    def push(self, keys: list[int], seed: int) -> None:
        grads = np.random.default_rng(seed).normal(size=(len(keys), DIM)).astype(np.float32)
        origin = Origin("s", self.position, self.position + 1)
        self.leader.push(np.array(keys, np.uint64), grads, now_ms=10**6 * (1 + seed), origins=[origin])
        self.position += 1

    @rule(keys=KEYS)
    def delete(self, keys: list[int]) -> None:
        self.leader.delete(np.array(keys, np.uint64))

    @rule()
    def branch(self) -> None:
        self.leader.branch()

    @rule(number=st.integers(0, NUM_CONSUMERS - 1), chunk=st.integers(0, CHUNKS - 1))
    def poll(self, number: int, chunk: int) -> None:
        consumer = self.consumers[number]
        source = self.consumers[0] if number == NUM_CONSUMERS - 1 else self.leader
        stands = consumer.chunk_states()
        cursor = int(stands.incarnations[chunk]), int(stands.versions[chunk])
        delta = source.delta(chunk, *cursor, embeddings_only=consumer.embeddings_only)
        consumer.apply(delta)
        assert contents(consumer, chunk)[:3] == contents(source, chunk)[:3]
        again = source.delta(chunk, *delta_cursor(delta), embeddings_only=consumer.embeddings_only)
        assert delta_info(again).num_rows == delta_info(again).num_tombstones == 0 or delta_info(again).full

    def teardown(self) -> None:
        if not hasattr(self, "leader"):
            return
        for number in range(NUM_CONSUMERS):
            for chunk in range(CHUNKS):
                self.poll(number, chunk)
        for chunk in range(CHUNKS):
            for consumer in self.consumers:
                assert contents(consumer, chunk) == contents(self.leader, chunk)
                if not consumer.embeddings_only:
                    assert states(consumer, chunk) == states(self.leader, chunk)


def delta_cursor(delta: bytes) -> tuple[int, int]:
    info = delta_info(delta)
    return info.incarnation, info.to_version


Consumers.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestConsumers = Consumers.TestCase


@given(removed=st.integers(1, 3 * TOMBSTONES_MAX), behind=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_cursor_below_the_tombstone_horizon_gets_the_full_chunk_and_no_other_does(removed: int, behind: int) -> None:
    table = Table(TableSpec("t", DIM, optimizer=Adagrad(0.1), num_chunks=1), tombstones_max=TOMBSTONES_MAX)
    table.push(np.arange(200), np.ones((200, DIM)), now_ms=0)
    early, cursors = Table(table.spec), []
    early.apply(table.delta(0))
    for key in range(removed):
        table.delete(np.array([key], np.uint64))
        cursors.append((int(table.chunk_states().incarnations[0]), int(table.chunk_states().versions[0])))
    first = early.chunk_states()
    delta = table.delta(0, int(first.incarnations[0]), int(first.versions[0]))
    assert delta_info(delta).full == (removed > TOMBSTONES_MAX)
    early.apply(delta)
    assert contents(early, 0) == contents(table, 0)
    recent = cursors[max(0, len(cursors) - 1 - behind)]
    assert not delta_info(table.delta(0, *recent)).full
    assert delta_info(table.delta(0, *recent)).num_tombstones == min(behind, removed - 1)
