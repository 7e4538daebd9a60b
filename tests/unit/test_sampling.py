"""Measuring how fresh rows are changes nothing for those whose rows they are, and remembers no more than there is."""

from __future__ import annotations

from typing import Any

import numpy as np

import embedstore as es
from embedstore.freshness import SAMPLED_TABLES_MAX, SERVED_ROW_AGE, TIME_TO_FIRST_EMBEDDING, Probe
from embedstore.interface import TablePush
from embedstore.placement import chunks_of_ids
from embedstore.server.arrivals import Arrivals
from embedstore.server.sampling import Sampler
from embedstore.store import LocalStore
from embedstore.v1 import sync_pb2

SPEC = es.TableSpec("t", dim=2, optimizer=es.SGD(1.0), num_chunks=8)
IDS = np.arange(8, dtype=np.uint64)
GRADS = np.ones((8, 2), np.float32)


def test_a_table_that_is_dropped_meanwhile_fails_no_call() -> None:
    store = LocalStore(None, [SPEC])
    sampler, table = Sampler(), store.table("t")
    pushes = {"t": TablePush(IDS, GRADS)}
    missing = sampler.missing(store, pushes)
    store.push({"t": (IDS, GRADS)})
    store.drop_table("t")
    sampler.trained(store, pushes, 1_700_000_000_000, missing)
    store.sample_served(table, IDS)
    assert sampler.missing(store, {"u": TablePush(IDS, GRADS)}) == {}


def test_what_is_wrong_with_a_push_is_left_for_the_push_to_say() -> None:
    store = LocalStore(None, [SPEC], shard=0, num_shards=2)
    sampler = Sampler()
    assert sampler.missing(store, {"t": TablePush(IDS, GRADS)}) == {}
    sampler = Sampler()
    store.close()
    store = LocalStore(None, [SPEC])
    assert list(sampler.missing(store, {"t": TablePush(IDS, GRADS)})) == ["t"]


def test_tables_that_come_and_go_leave_nothing_behind() -> None:
    store = LocalStore(None, [SPEC])
    for i in range(SAMPLED_TABLES_MAX + 5):
        store.freshness.is_due(SERVED_ROW_AGE, f"t{i}")
    assert len(store.freshness._due_s) <= SAMPLED_TABLES_MAX
    store.freshness.observe_ms(SERVED_ROW_AGE, "t", 1)
    store.create_table(es.TableSpec("u", dim=2))
    store.freshness.observe_ms(SERVED_ROW_AGE, "u", 1)
    store.drop_table("t")
    assert list(store.freshness.read()) == [(SERVED_ROW_AGE, "u")]


def test_ids_that_are_held_elsewhere_are_not_looked_for() -> None:
    """A standby of one shard of two hears of all ids of the one shard that there is now."""
    held: Any = LocalStore(None, [SPEC], shard=1, num_shards=2)
    arrivals = Arrivals(held, lambda: 1_700_000_000_000)
    mine = IDS[chunks_of_ids(IDS, 8) >= 4]
    assert 0 < len(mine) < len(IDS)
    held.push({"t": (mine, GRADS[: len(mine)])})
    probes = [Probe("t", int(id_), 1_700_000_000_000) for id_ in [*IDS, 0, 2**64 - 1]] + [Probe("gone", 1, 1)]
    message = sync_pb2.Probes(probes=[sync_pb2.Probe(table=t, id=i, event_time_ms=ms) for t, i, ms in probes])
    arrivals.look_for(message)
    found = held.freshness.read()[TIME_TO_FIRST_EMBEDDING, "t"].num_values
    assert found >= len(mine)


def test_the_age_of_served_rows_is_true_on_average() -> None:
    """A row knows its last event to the second."""
    now_ms = 1_700_000_100_000
    store = LocalStore(None, [SPEC], clock_ms=lambda: now_ms)
    ages_ms = range(0, 4000, 40)
    for i, age_ms in enumerate(ages_ms):
        ids = np.array([i], np.uint64)
        store.push({"t": (ids, GRADS[:1])}, event_time_ms=now_ms - age_ms)
        store.observe_served(store.table("t"), ids)
    found = store.freshness.read()[SERVED_ROW_AGE, "t"]
    assert found.num_values == len(ages_ms)
    assert abs(found.total - sum(ages_ms) / 1000) <= 0.05 * len(ages_ms)


def test_rows_that_were_never_told_a_time_have_no_age() -> None:
    store = LocalStore(None, [SPEC])
    ids = np.array([1], np.uint64)
    store.push({"t": (ids, GRADS[:1])})
    store.observe_served(store.table("t"), ids)
    assert (SERVED_ROW_AGE, "t") not in store.freshness.read()
