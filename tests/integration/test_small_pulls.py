"""Pulls of one table from one shard, which take a shorter way than others and must not differ otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import embedstore as es
from embedstore.client import RemoteStore
from embedstore.errors import ClosedError, InvalidArgumentError, TableNotFoundError
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard

ITEMS = es.TableSpec("items", 4, optimizer=es.SGD(lr=1.0), num_chunks=1)
IDS = np.arange(8, dtype=np.uint64)


@pytest.fixture
def shard() -> Iterator[Shard]:
    opened = Shard(ShardOptions("127.0.0.1:0", tables=[ITEMS]))
    opened.start()
    yield opened
    opened.stop()


@pytest.fixture
def store(shard: Shard) -> Iterator[RemoteStore]:
    with es.connect(shard.address, retry_s=5.0) as connected:
        connected.assign("items", IDS, np.arange(32, dtype=np.float32).reshape(8, 4))
        yield connected


def test_every_form_of_ids_reads_the_same(store: RemoteStore) -> None:
    expected = np.arange(32, dtype=np.float32).reshape(8, 4)
    same = [IDS, IDS.astype(np.int64), IDS.astype(">u8"), IDS.astype(np.int32), IDS.tolist(), np.repeat(IDS, 2)[::2]]
    for _ in range(2):  # the server knows the second of each
        for ids in same:
            np.testing.assert_array_equal(store.pull({"items": ids})["items"], expected)
            half = store.pull({"items": ids}, dtype=np.float16)["items"]
            np.testing.assert_array_equal(half, expected.astype(np.float16))
        for repeated in ([3, 3, 3, 1], [0, 1, 2, 3, 4, 5, 6, 7, 7]):
            some = np.array(repeated, np.uint64)
            np.testing.assert_array_equal(store.pull({"items": some})["items"], expected[repeated])
    assert store.pull({"items": IDS[:0]})["items"].shape == (0, 4)


def test_rows_that_are_returned_belong_to_the_caller(store: RemoteStore) -> None:
    first, second = (store.pull({"items": IDS})["items"] for _ in range(2))
    first += 100
    np.testing.assert_array_equal(first, second + 100)
    np.testing.assert_array_equal(store.pull({"items": IDS})["items"], second)


def test_a_refusal_is_asked_for_once(shard: Shard, store: RemoteStore) -> None:
    store.pull({"items": IDS})
    with es.connect(shard.address) as other:
        other.drop_table("items")
    with pytest.raises(TableNotFoundError):
        store.pull({"items": IDS})
    assert shard._measured.refused["Pull", "TableNotFoundError"] == 1


def test_a_table_made_anew_is_read_anew(shard: Shard, store: RemoteStore) -> None:
    store.pull({"items": IDS})
    with es.connect(shard.address) as other:
        other.drop_table("items")
        other.create_table(es.TableSpec("items", 4, optimizer=es.SGD(lr=1.0), num_chunks=4))
    assert not store.pull({"items": IDS})["items"].any()


def test_mistakes_are_named_as_ever(store: RemoteStore) -> None:
    store.pull({"items": IDS})
    for ids in (IDS.reshape(2, 4), IDS.astype(np.float32)):
        with pytest.raises(InvalidArgumentError, match=r"items\.ids"):
            store.pull({"items": ids})
    wrong: list[object] = [7, [("items", IDS)]]
    for tables in wrong:
        with pytest.raises(InvalidArgumentError, match="tables"):
            store.pull(tables)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError, match="dtype"):
        store.pull({"items": IDS}, dtype=np.float64)
    store.close()
    with pytest.raises(ClosedError):
        store.pull({"items": IDS})


def test_pulls_beside_pushes_to_the_same_chunk_see_whole_rows(store: RemoteStore) -> None:
    ids = np.arange(20_000, dtype=np.uint64)
    done = threading.Event()

    def push() -> None:
        try:
            for _ in range(20):
                store.push({"items": (ids, np.ones((len(ids), 4), np.float32))})
        finally:
            done.set()

    store.assign("items", ids, np.zeros((len(ids), 4), np.float32))
    pusher = threading.Thread(target=push)
    pusher.start()
    while not done.is_set():
        rows = store.pull({"items": IDS})["items"]
        assert (rows == rows[:, :1]).all()
    pusher.join()
    assert (store.pull({"items": IDS})["items"] == -20).all()
