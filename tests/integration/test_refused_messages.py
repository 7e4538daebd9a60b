"""What a server refuses: with the code of the mistake, however large the message, and without any effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status

import embedstore as es
from embedstore import errors, protowire
from embedstore.peers import CHANNEL_OPTIONS
from embedstore.placement import chunks_of_ids
from embedstore.server import interceptors, leader
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard
from embedstore.store import LocalStore
from embedstore.v1 import admin_pb2, admin_pb2_grpc, store_pb2, store_pb2_grpc, sync_pb2, sync_pb2_grpc

FIRST = es.TableSpec("first", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=4)
SECOND = es.TableSpec("second", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=4)
TIMEOUT_S = 20.0
C = grpc.StatusCode
_KEYS = np.arange(100, dtype=np.uint64)
OWN, FOREIGN = (_KEYS[chunks_of_ids(_KEYS, 2) == shard] for shard in (0, 1))
LONG = "x" * (2 << 20)


@pytest.fixture
def half() -> Iterator[LocalStore]:
    """Shard 0 of 2."""
    with LocalStore(None, [FIRST, SECOND], num_shards=2) as store:
        yield store


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    server = Shard(ShardOptions("127.0.0.1:0", data=tmp_path / "data", tables=[FIRST]))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def channel(shard: Shard) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(shard.address, options=CHANNEL_OPTIONS) as opened:
        yield opened


def one(value: float) -> np.ndarray:
    return np.array([[value]], np.float32)


def update(begin: int) -> es.Origin:
    return es.Origin("client/a", begin, begin + 1)


def marks(store: LocalStore) -> list[Any]:
    return [(name, table.watermarks()) for name, table in store.table_map().items()]


REFUSED: list[Callable[[LocalStore, es.Origin], object]] = [
    lambda store, origin: store.push({"none": (OWN[:1], one(1))}, origins=[origin]),
    lambda store, origin: store.push({"first": (OWN[:1], one(np.nan))}, origins=[origin]),
    lambda store, origin: store.push({"second": (FOREIGN[:1], one(1))}, origins=[origin]),
    lambda store, origin: store.assign_from(origin, "second", FOREIGN[:1], one(1)),
    lambda store, origin: store.assign_from(origin, "second", OWN[:1], one(np.inf)),
    lambda store, origin: store.delete_from(origin, "second", FOREIGN[:1]),
    lambda store, origin: store.delete_from(origin, "none", OWN[:1]),
]


@pytest.mark.parametrize("write", REFUSED)
def test_a_refused_write_leaves_its_clients_stream_as_it_was(
    half: LocalStore, write: Callable[[LocalStore, es.Origin], object]
) -> None:
    before = marks(half)
    for origin in (update(0), update(7)):
        with pytest.raises((errors.EmbedstoreError, errors.InvalidArgumentError)):
            write(half, origin)
        assert marks(half) == before and not half._streams.knows("client/a")
    half.push({"first": (OWN[:1], one(1))}, origins=[update(0)])
    before = marks(half)
    with pytest.raises((errors.EmbedstoreError, errors.InvalidArgumentError)):
        write(half, update(4))
    assert marks(half) == before


def test_the_number_of_a_refused_update_is_still_free_in_every_table(half: LocalStore) -> None:
    with pytest.raises(errors.WrongShardError):
        half.assign_from(update(0), "second", FOREIGN[:1], one(5))
    assert not half.assign_from(update(0), "first", OWN[:1], one(5)).repeated
    assert half.pull({"first": OWN[:1]})["first"] == 5


def test_a_range_that_straddles_a_watermark_of_its_client_mends_nothing(half: LocalStore) -> None:
    half.push({"first": (OWN[:1], one(1))}, origins=[update(3)])
    half.table("second").forget_stream("client/a")
    half.table("second").open_stream("client/a", 0)
    before = marks(half)
    with pytest.raises(errors.GapError):
        half.push({"first": (OWN[:1], one(1))}, origins=[es.Origin("client/a", 2, 9)])
    assert marks(half) == before


def code_of(call: Callable[..., object], request: Any) -> tuple[Any, admin_pb2.ErrorDetail]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=TIMEOUT_S)
    failed: Any = caught.value
    status, detail = rpc_status.from_call(failed), admin_pb2.ErrorDetail()
    assert status is not None, failed
    assert status.details[0].Unpack(detail)
    return failed.code(), detail


def test_the_status_of_a_mistake_does_not_depend_on_how_long_its_names_are(channel: grpc.Channel) -> None:
    rows: Any = store_pb2_grpc.EmbeddingServiceStub(channel)
    admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
    spec = FIRST.to_proto()
    spec.name = LONG
    code, detail = code_of(rows.Pull, store_pb2.PullRequest(tables=[{"table": LONG}]))
    assert (code, detail.kind) == (C.NOT_FOUND, "TableNotFoundError")
    code, detail = code_of(rows.OpenStream, store_pb2.OpenStreamRequest(stream=LONG))
    assert (code, detail.name) == (C.INVALID_ARGUMENT, "stream")
    code, detail = code_of(admin.CreateTable, admin_pb2.CreateTableRequest(spec=spec))
    assert (code, detail.name) == (C.INVALID_ARGUMENT, "TableSpec.name")


def test_a_gap_in_thousands_of_streams_arrives_as_a_gap(shard: Shard, channel: grpc.Channel) -> None:
    store = shard._serving.writable()
    names = [f"{number:0512}" for number in range(2100)]
    for name in names:
        store._streams.add(name, 0)
    store.table("first").begin_at(dict.fromkeys(names, 0))
    origins = [store_pb2.Origin(stream=name, begin=5, end=6) for name in names]
    rows: Any = store_pb2_grpc.EmbeddingServiceStub(channel)
    code, detail = code_of(rows.Push, store_pb2.PushRequest(origins=origins))
    assert (code, detail.kind) == (C.FAILED_PRECONDITION, "GapError")
    assert {state.stream for state in detail.streams} <= set(names) and len(detail.streams) > 100


@pytest.mark.parametrize(
    "record",
    [
        {"epoch": 2, "addresses": [LONG], "num_shards": 1},
        {"epoch": 2, "addresses": ["nowhere"], "num_shards": 1},
        {"epoch": 2, "addresses": ["h:1\n"], "num_shards": 1},
        {"epoch": 2, "addresses": ["\0:1"], "num_shards": 1},
        {"epoch": 2, "addresses": [f"h:{port}" for port in range(1, 5000)], "num_shards": 4999},
        {"epoch": 2**63, "addresses": ["h:1"], "num_shards": 1},
    ],
    ids=["long", "no port", "newline", "nul", "too many", "last epoch"],
)
def test_a_record_that_nobody_could_go_by_is_not_adopted(
    shard: Shard, channel: grpc.Channel, record: dict[str, Any]
) -> None:
    admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
    before = shard._serving.topology
    request = admin_pb2.ReassignRequest(topology=admin_pb2.TopologyRecord(**record))
    code, detail = code_of(admin.Reassign, request)
    assert (code, detail.name) == (C.INVALID_ARGUMENT, "TopologyRecord")
    assert shard._serving.topology == before and shard._serving.writable().membership.topology is None


def test_a_standby_that_nobody_could_ask_is_not_remembered(shard: Shard, channel: grpc.Channel) -> None:
    sync: Any = sync_pb2_grpc.SyncServiceStub(channel)
    applied = sync_pb2.WatermarkSet(positions=[store_pb2.StreamPosition(stream="s", position=2**63)])
    for address, name in (("\0", "StandbyPlace.address"), (LONG, "StandbyPlace.address"), ("h:1", "FollowAck.applied")):
        place = sync_pb2.StandbyPlace(shard=0, num_shards=1, address=address)
        requests = [
            sync_pb2.FollowRequest(wants=sync_pb2.FollowWants(standby=place)),
            sync_pb2.FollowRequest(ack=sync_pb2.FollowAck(applied=applied)),
        ]
        code, detail = code_of(lambda each, timeout: list(sync.Follow(iter(each), timeout=timeout)), requests)
        assert (code, detail.name) == (C.INVALID_ARGUMENT, name)
    store = shard._serving.writable()
    assert not store.membership.acquaintances and not store.standbys()


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_takeover_that_cannot_be_waited_for_does_not_begin(shard: Shard, tmp_path: Path, timeout_s: float) -> None:
    options = ShardOptions("127.0.0.1:0", data=tmp_path / "standby", follow=[shard.address], standby=True)
    standby = Shard(options)
    standby.start()
    try:
        with grpc.insecure_channel(standby.address, options=CHANNEL_OPTIONS) as channel:
            admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
            request = admin_pb2.ActivateRequest(timeout_s=timeout_s, force=True)
            code, detail = code_of(admin.Activate, request)
        assert (code, detail.name) == (C.INVALID_ARGUMENT, "ActivateRequest.timeout_s")
        assert standby._serving.standby and not shard._serving.fenced
    finally:
        standby.stop()


def nested(number: int, data: bytes) -> bytes:
    """A field that holds ``data``."""
    return protowire.varint(number << 3 | 2) + protowire.varint(len(data)) + data


MANY = (4 << 20) // 2
TINY: dict[str, tuple[str, bytes]] = {
    "pull": ("EmbeddingService/Pull", nested(2, b"\x20\x01" * 65_000) * 30),
    "push": ("EmbeddingService/Push", nested(2, b"\x18\x01" * 65_000) * 30),
    "origins": ("EmbeddingService/Push", nested(3, b"\x10\x01" * 65_000) * 30),
    "tensors": ("EmbeddingService/PutDense", nested(2, b"\x12\x00" * MANY)),
    "shape": ("EmbeddingService/PutDense", nested(2, nested(2, nested(3, b"\x01" * MANY)))),
    "generations": ("EmbeddingService/PutDense", nested(2, nested(4, b"\x01" * MANY))),
    "addresses": ("AdminService/Reassign", nested(1, b"\x12\x00" * MANY)),
    "unknown": ("AdminService/Stats", b"\x78\x01" * MANY),
}


@pytest.mark.parametrize("what", TINY)
def test_a_message_of_very_many_fields_is_refused_before_they_take_time_and_memory(
    channel: grpc.Channel, what: str
) -> None:
    method, data = TINY[what]
    call: Any = channel.unary_unary(f"/embedstore.v1.{method}", None, None)
    code, detail = code_of(call, data)
    assert (code, detail.kind) == (C.RESOURCE_EXHAUSTED, "LimitError")
    assert detail.name.endswith(" fields")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (nested(2, b"\x0a\x00" * MANY), "FollowRequest fields"),
        (nested(2, b"\x0a\x00" * 70_000), "FollowWants.tables"),
        (nested(2, b"\x12\x00" * 70_000), "FollowWants.only_tables"),
    ],
)
def test_a_follower_that_wants_very_much_is_refused(channel: grpc.Channel, data: bytes, name: str) -> None:
    call: Any = channel.stream_stream("/embedstore.v1.SyncService/Follow", None, None)
    code, detail = code_of(lambda each, timeout: list(call(iter([each]), timeout=timeout)), data)
    assert (code, detail.kind, detail.name) == (C.RESOURCE_EXHAUSTED, "LimitError", name)


def test_large_messages_of_few_fields_are_read(channel: grpc.Channel) -> None:
    rows: Any = store_pb2_grpc.EmbeddingServiceStub(channel)
    keys = np.arange(100_000, dtype="<u8")
    values = np.ones(len(keys), "<f4").tobytes()
    rows.Assign(store_pb2.AssignRequest(table="first", ids=keys.tobytes(), dim=1, rows=values), timeout=TIMEOUT_S)
    tensors = [store_pb2.Tensor(name=str(i), dtype="float32", shape=[1], data=bytes(4)) for i in range(20_000)]
    dense_set = store_pb2.DenseSet(name="many", tensors=tensors)
    rows.PutDense(store_pb2.PutDenseRequest(dense_set=dense_set), timeout=TIMEOUT_S)
    answer = rows.GetDense(store_pb2.GetDenseRequest(name="many"), timeout=TIMEOUT_S)
    assert len(answer.dense_set.tensors) == len(tensors)


def test_a_follower_cannot_heap_up_large_rewinds() -> None:
    call = leader._Call("peer", leader.Window(), lambda: None, lambda *_: None)
    call._take(sync_pb2.FollowRequest(wants=sync_pb2.FollowWants()))
    cursors = sync_pb2.TableCursors(table="t", versions=bytes(leader.REWIND_BYTES_MAX // 2))
    rewind = sync_pb2.FollowRequest(rewind=sync_pb2.FollowRewind(cursors=cursors))
    call._take(rewind)
    with pytest.raises(errors.LimitError, match="rewind bytes"):
        call._take(rewind)
    assert len(call.take_rewinds()) == 1
    call._take(rewind)


def test_whatever_the_limit_a_message_is_read_or_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the limit is reached at a field that holds more."""
    spec = es.TableSpec("t", dim=1, admission=es.MinCount(3), ttl_s=5.0)
    data = admin_pb2.CreateTableRequest(epoch=1, spec=spec.to_proto()).SerializeToString()
    monkeypatch.setattr(interceptors, "UNCOUNTED_BYTES_MAX", 0)
    refused = []
    for limit in range(40):
        monkeypatch.setattr(interceptors, "PARTS_MAX", limit)
        try:
            assert interceptors.parse(admin_pb2.CreateTableRequest, data).spec.name == "t"
        except es.LimitError as error:
            assert (error.field, error.value, error.limit) == ("CreateTableRequest fields", limit + 1, limit)
            refused.append(limit)
    assert 10 < len(refused) < 40
    assert refused == list(range(len(refused)))
