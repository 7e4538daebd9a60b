"""Whatever is done to two shards is what the embedded store would have done, duplicates and pages included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from half_rows import check_halves
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedstore as es
from embedstore import batches
from embedstore.client import RemoteStore
from embedstore.interface import Store
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard

ITEMS = es.TableSpec("items", dim=3, optimizer=es.SGD(lr=0.5), num_chunks=8)
keys = st.lists(st.integers(0, 12) | st.integers(2**64 - 4, 2**64 - 1), max_size=12)
actions = st.sampled_from(["push", "assign", "delete"])


@pytest.fixture(scope="module")
def remote() -> Iterator[RemoteStore]:
    with ExitStack() as stack:
        shards = [Shard(ShardOptions("127.0.0.1:0", i, 2)) for i in range(2)]
        for shard in shards:
            shard.start()
            stack.callback(shard.stop)
        yield stack.enter_context(es.connect([shard.address for shard in shards]))


def apply(store: Store, steps: list[tuple[str, list[int], int]]) -> list[Any]:
    results: list[Any] = []
    for i, (action, ids, seed) in enumerate(steps):
        rng = np.random.default_rng(seed)
        array = np.array(ids, np.uint64)
        rows = rng.integers(-8, 8, (len(ids), 3)).astype(np.float32)
        times = rng.integers(0, 10**6, len(ids)) * 1000
        if action == "push":
            counts = rng.integers(1, 9, len(ids))
            results.append(store.push({"items": es.TablePush(array, rows, counts, times, lr=0.25 * (1 + i % 2))}))
        elif action == "assign":
            store.assign("items", array, rows, event_time_ms=1000 * i)
        else:
            results.append(store.delete("items", array))
    return [result if isinstance(result, int) else None for result in results]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    steps=st.lists(st.tuples(actions, keys, st.integers(0, 99)), max_size=6),
    probe=keys,
    page_bytes=st.sampled_from([1, 64, batches.PAGE_BYTES]),
)
def test_two_shards_equal_one_embedded_store(
    remote: RemoteStore, steps: list[tuple[str, list[int], int]], probe: list[int], page_bytes: int
) -> None:
    for name in remote.tables():
        remote.drop_table(name)
    assert remote.create_table(ITEMS)
    with es.open(None, [ITEMS]) as local, pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "PAGE_BYTES", page_bytes)
        assert apply(remote, steps) == apply(local, steps)
        ids = np.array(probe, np.uint64)
        ours, theirs = (store.pull({"items": ids}, meta=True)["items"] for store in (remote, local))
        for column in ("embeddings", "found", "updates", "first_seen_s", "last_seen_s"):
            np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column), err_msg=column)
        np.testing.assert_array_equal(remote.pull({"items": ids})["items"], theirs.embeddings)
        np.testing.assert_array_equal(remote.contains("items", ids), theirs.found)
        check_halves(remote, {"items": ids})
        scanned = sorted(int(key) for found, _ in remote.scan("items") for key in found)
        assert scanned == sorted(int(key) for found, _ in local.scan("items") for key in found)
        assert remote.stats().tables["items"].rows == local.stats().tables["items"].rows


def test_what_is_pulled_belongs_to_the_caller(remote: RemoteStore) -> None:
    remote.create_table(ITEMS)
    for ids in ([1, 2, 3], [1, 1], [5], []):
        rows = remote.pull({"items": np.array(ids, np.uint64)})["items"]
        assert rows.shape == (len(ids), 3)
        assert rows.flags.writeable and rows.flags.owndata
