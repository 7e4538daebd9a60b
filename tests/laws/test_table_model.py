"""A Table, its replicas and a plain model of both stay the same through any sequence of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from delta_reader import read_delta
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model_optimizers import initializers, optimizers
from model_table import ModelDelta, ModelTable, chunk_of

from embedstore.errors import DeltaGapError, EmbedstoreError
from embedstore.interface import Origin
from embedstore.spec import Admission, Initializer, MinCount, OnMiss, Optimizer, Probability, TableSpec
from embedstore.table import Table

DIM = 3
CHUNKS = 4
TOMBSTONES_MAX = 8
POOL = [0, 1, 2**64 - 1, 2**63, *range(1000, 1036)]
STREAMS = ("a", "b")

SWEEP_ALL = 1 << 20

admissions = st.sampled_from([None, None, MinCount(1), MinCount(2), MinCount(5), Probability(0.4, seed=3)])
limits = st.fixed_dictionaries(
    {
        "ttl_s": st.sampled_from([None, None, 0.5, 100.0, 900.0]),
        "rows_max": st.sampled_from([None, None, 5 * CHUNKS, 2 * CHUNKS + 1]),
        "bytes_max": st.sampled_from([None, None, 1000 * CHUNKS, 300 * CHUNKS]),
    }
)
key_lists = st.lists(st.sampled_from(POOL), max_size=24)
times = st.one_of(st.none(), st.integers(0, 2_000_000))
seeds = st.integers(0, 2**32 - 1)
NOW_MS = 1_000_000


class TableMachine(RuleBasedStateMachine):
    """One leader, a standby that follows it, and a serving follower that follows the standby."""

    @initialize(
        optimizer=optimizers,
        init=initializers,
        on_miss=st.sampled_from(["zeros", "init"]),
        admission=admissions,
        limits=limits,
    )
    def make(
        self,
        optimizer: Optimizer,
        init: Initializer,
        on_miss: OnMiss,
        admission: Admission | None,
        limits: dict[str, Any],
    ) -> None:
        self.spec = TableSpec(
            "t", DIM, optimizer=optimizer, init=init, on_miss=on_miss, admission=admission, num_chunks=CHUNKS, **limits
        )
        self.next_incarnation = 1
        self.leader, self.model = self.new_table(), ModelTable(self.spec, self.last_incarnations)
        self.standby, self.standby_model = self.new_table(), ModelTable(self.spec, self.last_incarnations)
        self.serving, self.serving_model = (
            self.new_table(embeddings_only=True),
            ModelTable(self.spec, self.last_incarnations),
        )
        self.sent: list[tuple[bytes, ModelDelta]] = []
        self.overflowed = {"leader": [False] * CHUNKS, "standby": [False] * CHUNKS}

    def new_table(self, *, embeddings_only: bool = False) -> Table:
        return Table(
            self.spec, entropy=self.incarnations, embeddings_only=embeddings_only, tombstones_max=TOMBSTONES_MAX
        )

    def incarnations(self, count: int) -> np.ndarray:
        self.last_incarnations = list(range(self.next_incarnation, self.next_incarnation + count))
        self.next_incarnation += count
        return np.array(self.last_incarnations, np.uint64)

    # --- the leader's operations

    @rule(
        keys=key_lists,
        seed=seeds,
        time=times,
        each=st.booleans(),
        lr=st.sampled_from([None, 0.0, 0.25]),
        counted=st.booleans(),
    )
    def push(self, keys: list[int], seed: int, time: int | None, each: bool, lr: float | None, counted: bool) -> None:
        self.push_with(keys, seed, time, each, lr, (), counted=counted)

    def push_with(
        self,
        keys: list[int],
        seed: int,
        time: int | None,
        each: bool,
        lr: float | None,
        origins: Sequence[Origin],
        *,
        counted: bool = False,
    ) -> None:
        rng = np.random.default_rng(seed)
        grads = rng.normal(size=(len(keys), DIM)).astype(np.float32)
        array = rng.integers(0, 2_000_000, len(keys)) if each and time is not None else None
        given = array if array is not None else time
        times_ms = None if time is None else [int(t) for t in (array if array is not None else [time] * len(keys))]
        counts = rng.choice([0, 1, 1, 2, 2**32 - 1], len(keys)).astype(np.uint32) if counted else None
        plain = None if counts is None else counts.tolist()
        ids = np.array(keys, np.uint64)
        options: dict[str, Any] = {"now_ms": NOW_MS, "lr": lr, "origins": origins}
        expected = attempt(lambda: self.model.push(keys, grads, times_ms=times_ms, counts=plain, **options))
        actual = attempt(lambda: self.leader.push(ids, grads, event_times_ms=given, counts=counts, **options))
        assert expected == actual
        self.note_overflow()

    @rule(
        keys=key_lists,
        seed=seeds,
        stream=st.sampled_from(STREAMS),
        shift=st.sampled_from([0, 0, 0, -3, 2]),
        length=st.integers(0, 4),
        both=st.booleans(),
    )
    def push_with_origin(self, keys: list[int], seed: int, stream: str, shift: int, length: int, both: bool) -> None:
        origins = []
        for name in STREAMS if both else (stream,):
            begin = max(0, min(c.watermarks.get(name, 0) for c in self.model.chunks) + (shift if name == stream else 0))
            origins.append(Origin(name, begin, begin + length))
        self.push_with(keys, seed, 5_000, False, None, origins)

    @rule(stream=st.sampled_from(STREAMS), position=st.integers(0, 9))
    def open_stream(self, stream: str, position: int) -> None:
        self.model.open_stream(stream, position)
        self.leader.open_stream(stream, position)

    @rule(keys=key_lists, seed=seeds, time=times)
    def assign(self, keys: list[int], seed: int, time: int | None) -> None:
        rows = np.random.default_rng(seed).normal(size=(len(keys), DIM)).astype(np.float32)
        self.model.assign(keys, rows, now_ms=NOW_MS, time_ms=time)
        self.leader.assign(np.array(keys, np.uint64), rows, now_ms=NOW_MS, event_time_ms=time)
        self.note_overflow()

    @rule(keys=key_lists)
    def delete(self, keys: list[int]) -> None:
        assert self.leader.delete(np.array(keys, np.uint64)) == self.model.delete(keys)
        self.note_overflow()

    @rule(dry_run=st.booleans())
    def sweep(self, dry_run: bool) -> None:
        result = self.leader.sweep(SWEEP_ALL, dry_run=dry_run)
        assert (result.rows_expired, result.complete) == (self.model.sweep(dry_run=dry_run), True)
        self.note_overflow()

    @rule(limits=limits, lr=st.sampled_from([0.5, 0.25]))
    def alter(self, limits: dict[str, Any], lr: float) -> None:
        self.spec = replace(self.spec, optimizer=replace(self.spec.optimizer, lr=lr), **limits)
        for table in (self.leader, self.standby, self.serving):
            table.alter(self.spec)
        for model in (self.model, self.standby_model, self.serving_model):
            model.alter(self.spec)

    def note_overflow(self) -> None:
        for number, chunk in enumerate(self.model.chunks):
            self.overflowed["leader"][number] |= len(chunk.tombstones) > TOMBSTONES_MAX

    @rule()
    def branch(self) -> None:
        self.leader.branch()
        self.model.branch(self.last_incarnations)

    # --- deltas

    @rule(number=st.integers(0, CHUNKS - 1))
    def follow(self, number: int) -> None:
        self.send(number, self.leader, self.model, "leader", self.standby, self.standby_model)

    @rule(number=st.integers(0, CHUNKS - 1))
    def serve(self, number: int) -> None:
        data = self.send(number, self.standby, self.standby_model, "standby", self.serving, self.serving_model)
        assert read_delta(data).states.size == 0

    def send(
        self, number: int, source: Table, model: ModelTable, name: str, target: Table, target_model: ModelTable
    ) -> bytes:
        states = target.chunk_states()
        cursor = (int(states.incarnations[number]), int(states.versions[number]))
        data = source.delta(number, *cursor, embeddings_only=target.embeddings_only)
        read = read_delta(data)
        snapshot = model.snapshot(number, read.from_version)
        self.check_delta(data, snapshot, cursor, overflowed=self.overflowed[name][number])
        target_model.apply(snapshot)
        reached = target_model.chunks[number]
        assert target.apply(data) == (number, reached.incarnation, reached.version)
        if name == "leader":
            self.overflowed["standby"][number] |= len(snapshot.state.tombstones) > TOMBSTONES_MAX
            self.sent.append((data, snapshot))
        return data

    def check_delta(self, data: bytes, snapshot: ModelDelta, cursor: tuple[int, int], *, overflowed: bool) -> None:
        read, state = read_delta(data), snapshot.state
        changed = {key: row for key, row in state.rows.items() if row.version > read.from_version}
        gone = {key: tombstone for key, tombstone in state.tombstones.items() if tombstone[0] > read.from_version}
        assert dict(zip(read.ids.tolist(), read.versions.tolist(), strict=True)) == {
            key: row.version for key, row in changed.items()
        }
        columns = (read.tombstone_ids, read.tombstone_versions, read.tombstone_reasons)
        tombstones = {
            key: (version, reason) for key, version, reason in zip(*(c.tolist() for c in columns), strict=True)
        }
        assert tombstones == (gone if read.from_version else {})
        if not read.embeddings_only:
            counted = dict(entry for block in read.sketch_blocks.values() for entry in block.values())
            assert counted == state.sketch if not read.from_version else counted.items() <= state.sketch.items()
        assert (read.watermarks, read.clock_ms, read.to_version) == (state.watermarks, state.clock_ms, state.version)
        known = (cursor[0] == state.incarnation and cursor[1] <= state.version) or (
            cursor[0] == state.parent[0] and cursor[1] <= state.parent[1]
        )
        if read.from_version:
            assert known and read.from_version == cursor[1]
        elif known and cursor[1]:
            assert overflowed or cursor[1] < state.version

    @precondition(lambda self: self.sent)
    @rule(pick=st.integers(0, 10**6))
    def send_an_old_delta_again(self, pick: int) -> None:
        data, snapshot = self.sent[pick % len(self.sent)]
        expected = attempt(lambda: self.standby_model.apply(snapshot))
        actual = attempt(lambda: self.standby.apply(data))
        if expected is None:
            states = self.standby.chunk_states()
            number = snapshot.chunk
            assert actual == (number, int(states.incarnations[number]), int(states.versions[number]))
        else:
            assert actual == expected

    @rule()
    def restart_from_the_standby(self) -> None:
        restored = self.new_table()
        model = ModelTable(self.spec, self.last_incarnations)
        for number in range(CHUNKS):
            data = self.standby.delta(number)
            restored.apply(data)
            model.apply(self.standby_model.snapshot(number, 0))
        restored.branch()
        model.branch(self.last_incarnations)
        self.leader, self.model = restored, model
        self.overflowed["leader"] = [True] * CHUNKS

    # --- what must hold

    @invariant()
    def every_table_is_its_model(self) -> None:
        if not hasattr(self, "leader"):
            return
        for table, model in (
            (self.leader, self.model),
            (self.standby, self.standby_model),
            (self.serving, self.serving_model),
        ):
            assert_same(table, model)
        stats = self.leader.stats()
        for name in ("dropped_rows", "expired_rows", "evicted_rows"):
            assert getattr(stats, name) == self.model.counters[name], name

    def teardown(self) -> None:
        if not hasattr(self, "leader"):
            return
        for number in range(CHUNKS):
            ids, rows = self.leader.scan_chunk(number)
            expected = self.model.living(self.model.chunks[number])
            assert sorted(ids.tolist()) == sorted(expected)
            for key, embedding in zip(ids.tolist(), rows.embeddings, strict=True):
                np.testing.assert_array_equal(embedding, expected[key].embedding)


def attempt(call: Callable[[], object]) -> object:
    """What a call does, comparable: its result, or the type and arguments of its error."""
    try:
        return call()
    except DeltaGapError:
        return DeltaGapError
    except EmbedstoreError as error:
        return (type(error), getattr(error, "watermarks", None), getattr(error, "stream", None))


def assert_same(table: Table, model: ModelTable) -> None:
    keys = np.array(POOL, np.uint64)
    actual, expected = table.pull_rows(keys), model.pull_rows(POOL)
    for column in ("found", "embeddings", "updates", "first_seen_s", "last_seen_s"):
        np.testing.assert_array_equal(getattr(actual, column), getattr(expected, column), err_msg=column)
    np.testing.assert_array_equal(table.contains(keys), expected.found)
    assert len(table) == len(model)
    states = table.chunk_states()
    assert states.incarnations.tolist() == [chunk.incarnation for chunk in model.chunks]
    assert states.versions.tolist() == [chunk.version for chunk in model.chunks]
    assert states.clocks_ms.tolist() == [chunk.clock_ms for chunk in model.chunks]
    marks: list[dict[str, int]] = [{}] * CHUNKS
    distinct = table.watermarks()
    for watermarks, numbers in distinct:
        for number in numbers:
            marks[number] = watermarks
    assert marks == [chunk.watermarks for chunk in model.chunks]
    assert len(distinct) == len({tuple(sorted(mark.items())) for mark in marks})


TestTableAgainstModel = TableMachine.TestCase
TestTableAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("num_chunks", [1, 2, 256, 65536])
def test_model_and_table_agree_on_the_chunk_of_an_id(num_chunks: int) -> None:
    chunks = {chunk_of(key, num_chunks) for key in POOL}
    assert all(0 <= chunk < num_chunks for chunk in chunks)
    table = Table(TableSpec("t", 1, num_chunks=num_chunks))
    table.assign(np.array(POOL, np.uint64), np.zeros((len(POOL), 1), np.float32), now_ms=0)
    for chunk in chunks:
        ids, _ = table.scan_chunk(chunk)
        assert sorted(ids.tolist()) == sorted(key for key in POOL if chunk_of(key, num_chunks) == chunk)
