"""What only a store of several shards can get wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

import embedstore as es
from embedstore.client import RemoteStore
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard
from embedstore.v1 import admin_pb2

COUNTED = es.TableSpec("counted", 1, optimizer=es.SGD(lr=1.0), num_chunks=8)
IDS = np.arange(30, dtype=np.uint64)
GRADS = np.ones((30, 1), np.float32)


@pytest.fixture
def shards() -> Iterator[list[Shard]]:
    opened = [Shard(ShardOptions("127.0.0.1:0", i, 2, tables=[COUNTED])) for i in range(2)]
    for shard in opened:
        shard.start()
    yield opened
    for shard in opened:
        shard.stop()


@pytest.fixture
def store(shards: list[Shard]) -> Iterator[RemoteStore]:
    with es.connect([shard.address for shard in shards]) as connected:
        yield connected


def counts(store: RemoteStore) -> set[float]:
    return set((-store.pull({"counted": IDS})["counted"][:, 0]).tolist())


def local(shard: Shard) -> Any:
    return shard._serving.writable()


def test_a_push_with_origins_reaches_shards_without_ids(shards: list[Shard], store: RemoteStore) -> None:
    store.open_stream("s", 0)
    result = store.push({}, origins=[es.Origin("s", 0, 5)])
    assert result.streams["s"].applied == 5
    one = next(i for i in range(100) if not local(shards[0]).table("counted").chunks.start and i)
    store.push({"counted": ([one], [[1.0]])}, origins=[es.Origin("s", 5, 6)])
    assert [local(shard).watermarks()["s"].applied for shard in shards] == [6, 6]


def test_a_gap_tells_the_watermarks_of_all_shards(shards: list[Shard], store: RemoteStore) -> None:
    store.open_stream("s", 0)
    store.push({"counted": (IDS, GRADS)}, origins=[es.Origin("s", 0, 4)])
    local(shards[1]).push({}, origins=[es.Origin("s", 4, 7)])
    with pytest.raises(es.GapError) as caught:
        store.push({"counted": (IDS, GRADS)}, origins=[es.Origin("s", 7, 9)])
    assert caught.value.watermarks == {"s": [4, 9]}, "shard 1 has applied it, shard 0 has not"
    for begin, end in ((4, 7), (7, 9)):
        store.push({"counted": (IDS, GRADS * (end - begin))}, origins=[es.Origin("s", begin, end)])
    state = store.watermarks()["s"]
    assert (state.applied, state.watermarks) == (9, (9,))


def test_streams_stand_where_the_slowest_shard_stands(shards: list[Shard], store: RemoteStore) -> None:
    store.open_stream("s", 10)
    local(shards[0]).push({}, origins=[es.Origin("s", 10, 12)])
    state = store.watermarks()["s"]
    assert (state.applied, state.watermarks, state.generation) == (10, (10, 12), 1)


def test_a_stream_that_only_some_shards_know_stands_nowhere(shards: list[Shard], store: RemoteStore) -> None:
    local(shards[0]).open_stream("s", 3)
    assert "s" not in store.watermarks()
    assert store.open_stream("s", 3).generation == 2
    assert store.watermarks()["s"].applied == 3


def test_a_new_writer_takes_over_at_every_shard(shards: list[Shard], store: RemoteStore) -> None:
    store.open_stream("s", 0)
    local(shards[1]).open_stream("s", 0)  # somebody was cut off between two shards
    with es.connect([shard.address for shard in shards]) as other:
        assert other.open_stream("s", 0).generation == 3
        other.push({"counted": (IDS, GRADS)}, origins=[es.Origin("s", 0, 1)])
        with pytest.raises(es.StaleGenerationError):
            store.push({"counted": (IDS, GRADS)}, origins=[es.Origin("s", 1, 2)])
        with pytest.raises(es.StaleGenerationError):
            store.put_dense("weights", {"w": [1.0]}, {"s": 1})
        other.put_dense("weights", {"w": [1.0]}, {"s": 1})
    assert counts(store) == {1.0}


def test_writers_who_open_one_stream_at_once_get_different_generations(shards: list[Shard]) -> None:
    addresses = [shard.address for shard in shards]

    def open_one(_: int) -> int:
        with es.connect(addresses) as mine:
            return mine.open_stream("s", 0).generation

    with ThreadPoolExecutor(4) as pool:
        generations = list(pool.map(open_one, range(4)))
    assert len(set(generations)) == 4
    assert {local(shard).watermarks()["s"].generation for shard in shards} == {max(generations)}


def test_updates_of_many_threads_without_origins_count_once_each(store: RemoteStore) -> None:
    barrier = threading.Barrier(6)

    def work(_: int) -> None:
        barrier.wait()
        for _ in range(15):
            store.push({"counted": (IDS, GRADS)})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert counts(store) == {90.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_gradient_touches_no_shard(shards: list[Shard], store: RemoteStore, bad: float) -> None:
    store.open_stream("s", 0)
    grads = GRADS.copy()
    grads[17, 0] = bad
    with pytest.raises(es.InvalidArgumentError, match="row 17") as caught:
        store.push({"counted": (IDS, grads)}, origins=[es.Origin("s", 0, 1)])
    assert caught.value.field == "counted.grads"
    with pytest.raises(es.InvalidArgumentError, match="row 17"):
        store.assign("counted", IDS, grads)
    assert counts(store) == {0.0}
    assert [local(shard).watermarks()["s"].applied for shard in shards] == [0, 0]


def test_dense_sets_live_whole_on_one_shard(shards: list[Shard], store: RemoteStore) -> None:
    for i in range(8):
        assert store.put_dense(f"set-{i}", {"w": np.full((2, 3), i), "b": np.float32(i)}, {}) == 1
    for i in range(8):
        found = store.get_dense(f"set-{i}")
        assert found.tensors["w"].tolist() == [[i] * 3] * 2
        assert found.tensors["b"].shape == ()
    held = [set(local(shard).dense_versions()) for shard in shards]
    assert not held[0] & held[1]
    assert len(held[0]) + len(held[1]) == 8
    assert held[0] and held[1]


def test_a_drop_that_broke_off_can_be_repeated(shards: list[Shard], store: RemoteStore) -> None:
    local(shards[0]).drop_table("counted")
    store.drop_table("counted")
    with pytest.raises(es.TableNotFoundError):
        store.drop_table("counted")
    assert store.create_table(COUNTED)
    assert not store.create_table(COUNTED)


@pytest.mark.parametrize("answer", [b"", b"\xff", b"\x0a\x7f", b"\x0a\x00", b"\x0a\x09\x0a\x07counted"])
def test_a_server_that_answers_nonsense_is_not_the_callers_fault(answer: bytes) -> None:
    tables = admin_pb2.ListTablesResponse(tables=[COUNTED.to_proto()]).SerializeToString()
    topology = admin_pb2.TopologyResponse(topology=admin_pb2.TopologyRecord(epoch=1, num_shards=1), ready=True)
    answers = {"Topology": topology.SerializeToString(), "ListTables": tables}

    def method(name: str) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answers.get(name, answer))

    services = {"AdminService": ("Topology", "ListTables"), "EmbeddingService": ("Pull",)}
    handlers = [
        grpc.method_handlers_generic_handler(f"embedstore.v1.{service}", {name: method(name) for name in names})
        for service, names in services.items()
    ]
    server = grpc.server(ThreadPoolExecutor(2), handlers=handlers)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with es.connect(address) as store:
        for meta in (False, True):
            with pytest.raises(es.EmbedstoreError, match=f"{address}: malformed answer"):
                store.pull({"counted": [1, 2]}, meta=meta)
    server.stop(0).wait()


def test_a_scan_that_meets_a_closed_channel_is_no_mistake_of_the_caller(store: RemoteStore) -> None:
    pieces = store.scan("counted")
    store.peers._route.peers[0].close()  # as far as another thread's close() may have come
    with pytest.raises(es.EmbedstoreError, match="closed"):
        list(pieces)


def test_what_no_message_holds_is_refused_before_it_is_sent(shards: list[Shard], store: RemoteStore) -> None:
    store.create_table(es.TableSpec("wide", 4096, optimizer=es.SGD(lr=1.0), num_chunks=2))
    tensors = {"w": np.zeros(20_000_000, np.float32)}
    ids = np.arange(9000, dtype=np.uint64)
    rows = np.ones((9000, 4096), np.float32)
    for what, write in (
        ("PutDenseRequest bytes", lambda: store.put_dense("weights", tensors, {})),
        ("PushRequest bytes", lambda: store.push({"wide": (ids, rows)})),
    ):
        with pytest.raises(es.LimitError) as caught:
            write()
        assert (caught.value.field, caught.value.limit) == (what, 64 << 20)
        assert caught.value.value > 64 << 20
    assert store.stats().tables["wide"].rows == 0
    store.assign("wide", ids, rows)
    assert store.stats().tables["wide"].rows == 9000
    assert store.delete("wide", np.arange(1 << 22, dtype=np.uint64)) == 9000


def test_a_set_that_no_answer_holds_is_refused_by_its_size(shards: list[Shard], store: RemoteStore) -> None:
    for shard in shards:
        local(shard).put_dense("weights", {"w": np.zeros(20_000_000, np.float32)}, {})
    with pytest.raises(es.LimitError) as caught:
        store.get_dense("weights")
    assert (caught.value.field, caught.value.limit) == ("GetDenseResponse bytes", 64 << 20)
    assert caught.value.value > 80_000_000
