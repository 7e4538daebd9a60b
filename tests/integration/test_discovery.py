"""Who the shards are: one member that knows, or all of them asked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from processes import free_port

import embedstore as es
from embedstore.peers import Patience, parse_addresses
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard

ITEMS = es.TableSpec("items", 1, optimizer=es.SGD(lr=1.0), num_chunks=8)


@contextmanager
def cluster(num_shards: int, *, peers: bool) -> Iterator[list[str]]:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(num_shards)]
    shards = [
        Shard(ShardOptions(address, i, num_shards, tables=[ITEMS], peers=addresses if peers else ()))
        for i, address in enumerate(addresses)
    ]
    for shard in shards:
        shard.start()
    try:
        yield addresses
    finally:
        for shard in shards:
            shard.stop()


def use(store: es.Store) -> None:
    ids = np.arange(40, dtype=np.uint64)
    store.push({"items": (ids, np.ones((40, 1)))})
    assert set(store.pull({"items": ids})["items"][:, 0]) <= {-1.0, -2.0, -3.0}
    assert store.stats().tables["items"].rows == 40


def test_any_one_member_that_knows_is_enough() -> None:
    with cluster(3, peers=True) as addresses:
        for given in ([addresses[1]], f"127.0.0.1:1, {addresses[2]}", addresses[::-1]):
            with es.connect(given) as store:
                assert store.topology.addresses == tuple(addresses)
                use(store)


def test_without_peers_all_are_given_in_any_order() -> None:
    with cluster(3, peers=False) as addresses:
        with es.connect([addresses[2], addresses[0], addresses[1]]) as store:
            assert store.topology.addresses == tuple(addresses)
            use(store)
        with pytest.raises(es.InvalidArgumentError, match="shard 1 of 3 is not among"):
            es.connect([addresses[2], addresses[0]])
        with cluster(2, peers=False) as others, pytest.raises(es.InvalidArgumentError, match="is one of 2 shards"):
            es.connect([*addresses, others[0]])
        with cluster(3, peers=False) as others, pytest.raises(es.InvalidArgumentError, match="are both 0"):
            es.connect([*addresses, others[0]])


@pytest.mark.parametrize("bad", ["", "host", "host:", ":1", "h:0", "h:70000", "h:1,h:1", "h:1,,h:2", []])
def test_addresses_that_cannot_be_are_refused_by_name(bad: str | list[str]) -> None:
    with pytest.raises(es.InvalidArgumentError) as caught:
        parse_addresses(bad)
    assert caught.value.field == "addresses"


def test_patience_is_positive_and_backoff_bounded() -> None:
    with pytest.raises(es.InvalidArgumentError) as caught:
        Patience(timeout_s=0)
    assert caught.value.field == "timeout_s"
    patience = Patience()
    delays = [patience.delay_s(attempt, 0.0) for attempt in range(100)]
    assert delays == sorted(delays)
    assert delays[-1] == patience.backoff_max_s
    assert patience.delay_s(0, 0.999) >= patience.backoff_s / 2


def test_a_stale_spec_is_read_again() -> None:
    with cluster(2, peers=True) as addresses, es.connect(addresses) as one, es.connect(addresses) as two:
        ids = np.arange(10, dtype=np.uint64)
        assert one.pull({"items": ids})["items"].shape == (10, 1)
        two.drop_table("items")
        with pytest.raises(es.TableNotFoundError):
            one.pull({"items": ids})
        two.create_table(es.TableSpec("items", 2, num_chunks=16))
        assert one.pull({"items": ids})["items"].shape == (10, 2)
        two.drop_table("items")
        two.create_table(es.TableSpec("items", 3, num_chunks=8))
        one.push({"items": (ids, np.ones((10, 3)))})
        assert one.contains("items", ids).all()


def test_a_closed_store_says_so() -> None:
    with cluster(1, peers=False) as addresses:
        store = es.connect(addresses)
        store.close()
        store.close()
        for call in (store.tables, store.stats, store.checkpoint, lambda: store.pull({"items": [1]})):
            with pytest.raises(es.ClosedError):
                call()


def test_a_follower_beside_the_shards_is_asked_but_is_no_shard() -> None:
    with cluster(2, peers=False) as addresses:
        follower = Shard(ShardOptions("127.0.0.1:0", follow=addresses))
        follower.start()
        try:
            with es.connect([follower.address, *addresses]) as store:
                assert store.topology.addresses == tuple(addresses)
                use(store)
            assert follower.wait_ready(30)
            with es.connect(follower.address) as reader, pytest.raises(es.ReadOnlyError):
                reader.push({"items": ([1], [[1.0]])})
        finally:
            follower.stop()


@pytest.mark.parametrize("answer", [b"\xff", b"", b"\x0a\x04\x08\x01\x18\x00"])
def test_a_member_that_answers_nonsense_about_its_place_is_named(answer: bytes) -> None:
    handler = grpc.method_handlers_generic_handler(
        "embedstore.v1.AdminService",
        {"Topology": grpc.unary_unary_rpc_method_handler(lambda request, context: answer)},
    )
    server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(es.EmbedstoreError, match=f"{address}: malformed answer"):
            es.connect(address, timeout_s=2.0, retry_s=2.0)
    finally:
        server.stop(0).wait()
