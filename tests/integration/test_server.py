"""A shard's services, seen by an ordinary generated client: same bytes, right codes, fields named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

import embedstore as es
from embedstore import errors
from embedstore.recovery import Recovery
from embedstore.server.interceptors import Guard
from embedstore.server.options import ShardOptions
from embedstore.server.serving import Serving
from embedstore.server.shard import Shard
from embedstore.status import Topology
from embedstore.store import LocalStore
from embedstore.v1 import admin_pb2, admin_pb2_grpc, store_pb2, store_pb2_grpc
from embedstore.wire import MESSAGE_BYTES_MAX

ITEMS = es.TableSpec("items", dim=2, optimizer=es.SGD(lr=1.0), num_chunks=8)
OTHER = es.TableSpec("other", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=8)
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
TIMEOUT_S = 20.0


class Client:
    """The generated stubs of one shard."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.channel = grpc.insecure_channel(shard.address, options=UNLIMITED)
        self.rows: Any = store_pb2_grpc.EmbeddingServiceStub(self.channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(self.channel)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    shard = Shard(ShardOptions("127.0.0.1:0", data=tmp_path / "data", tables=[ITEMS, OTHER]))
    shard.start()
    opened = Client(shard)
    yield opened
    opened.channel.close()
    shard.stop()


def ids(*values: int) -> bytes:
    return np.array(values, "<u8").tobytes()


def floats(*values: float, dtype: str = "<f4") -> bytes:
    return np.array(values, dtype).tobytes()


def push(**changes: Any) -> store_pb2.TablePush:
    values: dict[str, Any] = {"table": "items", "ids": ids(7), "dim": 2, "grads": floats(1, 1)}
    return store_pb2.TablePush(**(values | changes))


def test_a_generated_client_pushes_and_pulls_many_tables(client: Client) -> None:
    client.rows.Push(
        store_pb2.PushRequest(
            epoch=1,
            tables=[
                push(ids=ids(1, 2, 1), grads=floats(1, 2, 3, 4, 5, 6), counts=np.array([1, 2, 3], "<u4").tobytes()),
                push(table="other", dim=1, grads=floats(2, dtype="<f2"), dtype=store_pb2.DTYPE_FLOAT16, lr=3.0),
            ],
            event_time_ms=5_000,
        ),
        timeout=TIMEOUT_S,
    )
    answer = client.rows.Pull(
        store_pb2.PullRequest(
            tables=[
                store_pb2.TablePull(table="items", ids=ids(2, 1, 9), meta=True),
                store_pb2.TablePull(table="other", ids=ids(7), dtype=store_pb2.DTYPE_FLOAT16),
                store_pb2.TablePull(table="items", ids=ids(1)),
                store_pb2.TablePull(table="items", ids=ids(1, 9), dtype=store_pb2.DTYPE_NONE, meta=True),
                store_pb2.TablePull(table="items"),
            ]
        ),
        timeout=TIMEOUT_S,
    )
    first, half, plain, known, empty = answer.tables
    assert (first.table, first.dim, first.dtype) == ("items", 2, store_pb2.DTYPE_FLOAT32)
    assert first.rows == floats(-3, -4, -6, -8, 0, 0)
    assert first.found == b"\1\1\0"
    assert first.updates == np.array([1, 1, 0], "<u4").tobytes()
    assert first.last_seen_s == first.first_seen_s == np.array([5, 5, 0], "<i8").tobytes()
    assert (half.rows, half.dtype) == (floats(-6, dtype="<f2"), store_pb2.DTYPE_FLOAT16)
    assert plain.rows == floats(-6, -8) and not plain.found
    assert not known.rows and known.found == b"\1\0"
    assert not empty.rows and empty.dim == 2


def test_a_push_answers_where_its_streams_stand(client: Client) -> None:
    opened = client.rows.OpenStream(store_pb2.OpenStreamRequest(stream="s", position=10), timeout=TIMEOUT_S).state
    assert (opened.generation, opened.applied, list(opened.watermarks)) == (1, 10, [10])
    origin = store_pb2.Origin(stream="s", begin=10, end=15, generation=1)
    for repeated in (False, True):
        answer = client.rows.Push(store_pb2.PushRequest(tables=[push()], origins=[origin]), timeout=TIMEOUT_S)
        assert answer.repeated_push is repeated
        assert [(s.stream, s.applied, s.durable) for s in answer.streams] == [("s", 15, 10)]
    client.admin.Checkpoint(admin_pb2.CheckpointRequest(), timeout=TIMEOUT_S)
    [state] = client.rows.Watermarks(store_pb2.WatermarksRequest(), timeout=TIMEOUT_S).streams
    assert (state.applied, state.durable) == (15, 15)


def refused(call: Callable[[], Any], code: grpc.StatusCode, kind: str, name: str = "") -> admin_pb2.ErrorDetail:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    failed: Any = caught.value
    assert failed.code() is code, failed
    assert "Traceback" not in failed.details()
    detail = detail_of(failed)
    assert detail.kind.startswith(kind)
    assert name in detail.name, detail
    return detail


def detail_of(failed: Any) -> admin_pb2.ErrorDetail:
    detail = admin_pb2.ErrorDetail()
    assert rpc_status.from_call(failed).details[0].Unpack(detail)
    return detail


C = grpc.StatusCode
ORIGIN: dict[str, Any] = {"stream": "s", "begin": 0, "end": 1, "generation": 1}


@pytest.mark.parametrize(
    ("request_", "code", "kind", "name"),
    [
        (store_pb2.PushRequest(tables=[push(table="no")]), C.NOT_FOUND, "TableNotFoundError", "no"),
        (store_pb2.PushRequest(tables=[push(), push(table="no")]), C.NOT_FOUND, "TableNotFoundError", "no"),
        (store_pb2.PushRequest(tables=[push(ids=b"1234567")]), C.INVALID_ARGUMENT, "InvalidArgumentError", "ids"),
        (store_pb2.PushRequest(tables=[push(grads=floats(1))]), C.INVALID_ARGUMENT, "InvalidArgumentError", "grads"),
        (
            store_pb2.PushRequest(tables=[push(), push(table="other")]),
            C.INVALID_ARGUMENT,
            "InvalidArgumentError",
            "tables[1].dim",
        ),
        (store_pb2.PushRequest(tables=[push(), push()]), C.INVALID_ARGUMENT, "InvalidArgumentError", "tables[1].table"),
        (
            store_pb2.PushRequest(tables=[push(), push(table="other", dim=1, grads=floats(float("nan")))]),
            C.INVALID_ARGUMENT,
            "InvalidArgumentError",
            "other.grads",
        ),
        (
            store_pb2.PushRequest(tables=[push(grads=floats(1, float("inf")))]),
            C.INVALID_ARGUMENT,
            "InvalidArgumentError",
            "items.grads",
        ),
        (store_pb2.PushRequest(tables=[push(lr=-1.0)]), C.INVALID_ARGUMENT, "InvalidArgumentError", "lr"),
        (store_pb2.PushRequest(event_time_ms=-1), C.INVALID_ARGUMENT, "InvalidArgumentError", "event_time_ms"),
        (store_pb2.PushRequest(epoch=2, tables=[push()]), C.FAILED_PRECONDITION, "StaleEpochError", ""),
        (
            store_pb2.PushRequest(tables=[push()], origins=[store_pb2.Origin(stream="new", end=1)]),
            C.FAILED_PRECONDITION,
            "UnknownStreamError",
            "new",
        ),
        (
            store_pb2.PushRequest(tables=[push()], origins=[store_pb2.Origin(**(ORIGIN | {"begin": 1}))]),
            C.FAILED_PRECONDITION,
            "GapError",
            "",
        ),
        (
            store_pb2.PushRequest(tables=[push()], origins=[store_pb2.Origin(**(ORIGIN | {"generation": 0}))]),
            C.FAILED_PRECONDITION,
            "StaleGenerationError",
            "s",
        ),
    ],
)
def test_a_refused_push_has_its_code_its_field_and_touches_nothing(
    client: Client, request_: store_pb2.PushRequest, code: Any, kind: str, name: str
) -> None:
    client.rows.OpenStream(store_pb2.OpenStreamRequest(stream="s"), timeout=TIMEOUT_S)
    detail = refused(lambda: client.rows.Push(request_, timeout=TIMEOUT_S), code, kind, name)
    if kind == "GapError":
        assert [(state.stream, list(state.watermarks)) for state in detail.streams] == [("s", [0])]
    if kind == "StaleEpochError":
        assert (detail.topology.epoch, detail.topology.num_shards) == (1, 1)
    stats = client.admin.Stats(admin_pb2.StatsRequest(), timeout=TIMEOUT_S)
    assert sum(table.rows for table in stats.tables) == 0
    assert [(s.stream, s.applied) for s in stats.streams] == [("s", 0)]


def test_other_calls_name_what_is_wrong(client: Client) -> None:
    rows, admin = client.rows, client.admin
    nan = store_pb2.AssignRequest(table="items", ids=ids(1), dim=2, rows=floats(1, float("nan")))
    dense = store_pb2.DenseSet(name="d", tensors=[store_pb2.Tensor(name="w", dtype="float32", shape=[2], data=b"1")])
    spec = ITEMS.to_proto()
    cases: list[tuple[Any, Message, Any, str, str]] = [
        (rows.Pull, store_pb2.PullRequest(tables=[{"table": "x"}]), C.NOT_FOUND, "TableNotFoundError", "x"),
        (rows.Pull, store_pb2.PullRequest(tables=[{"table": "items", "ids": b"1"}]), C.INVALID_ARGUMENT, "Inv", "ids"),
        (rows.Pull, store_pb2.PullRequest(epoch=9), C.FAILED_PRECONDITION, "StaleEpochError", ""),
        (rows.Assign, nan, C.INVALID_ARGUMENT, "InvalidArgumentError", "items.rows"),
        (rows.Assign, store_pb2.AssignRequest(table="items", dim=3), C.INVALID_ARGUMENT, "Inv", "dim"),
        (rows.Assign, store_pb2.AssignRequest(table="items", dim=2, ids=ids(1)), C.INVALID_ARGUMENT, "Inv", "rows"),
        (rows.Delete, store_pb2.DeleteRequest(table="items", ids=b"1"), C.INVALID_ARGUMENT, "Inv", "ids"),
        (rows.Delete, store_pb2.DeleteRequest(table="x"), C.NOT_FOUND, "TableNotFoundError", "x"),
        (rows.PutDense, store_pb2.PutDenseRequest(dense_set=dense), C.INVALID_ARGUMENT, "Inv", "tensors"),
        (rows.GetDense, store_pb2.GetDenseRequest(name="x"), C.NOT_FOUND, "DenseSetNotFoundError", "x"),
        (rows.OpenStream, store_pb2.OpenStreamRequest(), C.INVALID_ARGUMENT, "Inv", "stream"),
        (admin.DropTable, admin_pb2.DropTableRequest(table="x"), C.NOT_FOUND, "TableNotFoundError", "x"),
        (admin.DescribeTable, admin_pb2.DescribeTableRequest(table="x"), C.NOT_FOUND, "TableNotFoundError", "x"),
        (admin.CreateTable, admin_pb2.CreateTableRequest(), C.INVALID_ARGUMENT, "InvalidArgumentError", "TableSpec"),
    ]
    for call, request, code, kind, name in cases:
        refused(partial(call, request, timeout=TIMEOUT_S), code, kind, name)
    spec.dim = 3
    changed = admin_pb2.CreateTableRequest(spec=spec)
    detail = refused(lambda: admin.CreateTable(changed, timeout=TIMEOUT_S), C.ALREADY_EXISTS, "TableExistsError")
    assert detail.problem.startswith("dim ")
    spec.bytes_max, spec.name = 5, "tiny"
    tiny = admin_pb2.CreateTableRequest(spec=spec)
    argument = "InvalidArgumentError"
    refused(lambda: admin.CreateTable(tiny, timeout=TIMEOUT_S), C.INVALID_ARGUMENT, argument, "TableSpec.bytes_max")


@pytest.mark.parametrize("method", ["EmbeddingService/Pull", "EmbeddingService/Push", "EmbeddingService/Assign"])
def test_malformed_bytes_are_the_callers_fault(client: Client, method: str) -> None:
    call = client.channel.unary_unary(f"/embedstore.v1.{method}", None, None)
    for data in (b"\x12\x7f", b"\xff", b"\x12\x02\xff\xff", b"\x07"):
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=TIMEOUT_S)
        assert caught.value.code() is C.INVALID_ARGUMENT, caught.value


def test_ids_of_another_shard_bring_the_topology(tmp_path: Path) -> None:
    peers = ("127.0.0.1:1", "127.0.0.1:2")
    shard = Shard(ShardOptions("127.0.0.1:0", 0, 2, None, [ITEMS], peers=peers))
    shard.start()
    client = Client(shard)
    table = store_pb2.TablePull(table="items", ids=np.arange(50, dtype="<u8").tobytes())
    pull = store_pb2.PullRequest(tables=[table])
    detail = refused(lambda: client.rows.Pull(pull, timeout=TIMEOUT_S), C.FAILED_PRECONDITION, "WrongShardError")
    assert (tuple(detail.topology.addresses), detail.topology.num_shards) == (peers, 2)
    sets = [store_pb2.GetDenseRequest(name=f"set-{i}") for i in range(20)]
    kinds = set()
    for request in sets:
        with pytest.raises(grpc.RpcError) as caught:
            client.rows.GetDense(request, timeout=TIMEOUT_S)
        kinds.add(caught.value.code())
    assert kinds == {C.FAILED_PRECONDITION, C.NOT_FOUND}
    client.channel.close()
    shard.stop()


def test_limits_are_resource_exhausted(client: Client) -> None:
    big = store_pb2.PullRequest(tables=[{"table": "items", "ids": bytes(8 << 22) + bytes(8)}])
    refused(lambda: client.rows.Pull(big, timeout=TIMEOUT_S), C.RESOURCE_EXHAUSTED, "LimitError", "ids")
    wide = store_pb2.PullRequest(tables=[{"table": "items", "ids": bytes(2 << 20), "meta": True}] * 16)
    detail = refused(lambda: client.rows.Pull(wide, timeout=TIMEOUT_S), C.RESOURCE_EXHAUSTED, "LimitError", "bytes")
    assert detail.numbers["limit"] == MESSAGE_BYTES_MAX
    over = store_pb2.PushRequest(tables=[push(grads=bytes(MESSAGE_BYTES_MAX))])
    with pytest.raises(grpc.RpcError) as caught:
        client.rows.Push(over, timeout=TIMEOUT_S)
    assert caught.value.code() is C.RESOURCE_EXHAUSTED


def test_health_and_reflection(client: Client) -> None:
    health: Any = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", "embedstore.v1.EmbeddingService", "embedstore.v1.AdminService", "embedstore.v1.SyncService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = reflection.ServerReflectionInfo(iter([request]), timeout=TIMEOUT_S)
    names = {service.name for service in answer.list_services_response.service}
    assert {"embedstore.v1.EmbeddingService", "embedstore.v1.AdminService", "embedstore.v1.SyncService"} <= names


def test_before_it_is_ready_only_topology_answers() -> None:
    serving = Serving(Topology(1, (), 2), 1)
    serving.address = "h:1"
    with pytest.raises(errors.UnavailableError, match="recovers"):
        serving.store()
    assert not serving.ready
    server = Shard(ShardOptions("127.0.0.1:0", 1, 2))
    server._open_port()
    client = Client(server)
    answer = client.admin.Topology(admin_pb2.TopologyRequest(), timeout=TIMEOUT_S)
    assert (answer.shard, answer.ready, answer.topology.num_shards) == (1, False, 2)
    health: Any = health_pb2_grpc.HealthStub(client.channel)
    check = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert check.status == health_pb2.HealthCheckResponse.NOT_SERVING
    refused(lambda: client.rows.Pull(store_pb2.PullRequest(), timeout=TIMEOUT_S), C.UNAVAILABLE, "UnavailableError")
    client.channel.close()
    server.stop()


def test_calls_of_malformed_messages_do_not_keep_a_shard_from_stopping() -> None:
    shard = Shard(ShardOptions("127.0.0.1:0", drain_s=0.1))
    shard.start()
    client = Client(shard)
    for service, method, code in (
        ("embedstore.v1.SyncService", "Follow", C.INVALID_ARGUMENT),
        ("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", C.INTERNAL),
    ):
        call: Any = client.channel.stream_stream(f"/{service}/{method}", None, None)
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([b"\xff\xff"] * 5), timeout=TIMEOUT_S))
            status: Any = caught.value
            assert status.code() is code
    stopping = threading.Thread(target=shard.stop)
    stopping.start()
    stopping.join(TIMEOUT_S)
    assert not stopping.is_alive()
    client.channel.close()


def test_a_bug_in_a_handler_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def broken(data: bytes) -> bytes:
        raise KeyError("inner secret")

    handler: Any = Guard(lambda: Topology(1, (), 1), 1).raw(broken)
    aborted: list[Any] = []

    class Context:
        def add_callback(self, callback: Callable[[], None]) -> bool:
            return True

        def abort_with_status(self, status: Any) -> None:
            aborted.append(status)
            raise RuntimeError("aborted")

    with pytest.raises(RuntimeError, match="aborted"):
        handler.unary_unary(b"", Context())
    assert aborted[0].code is C.INTERNAL
    assert "secret" not in aborted[0].details
    assert "inner secret" in caplog.text


def test_while_it_recovers_a_shard_says_that_it_is_not_serving(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "data", [ITEMS]) as store:
        store.push({"items": (np.arange(100, dtype=np.uint64), np.ones((100, 2), np.float32))})
    recovering, go_on = threading.Event(), threading.Event()

    def hold(recovery: Recovery) -> None:
        recovering.set()
        assert go_on.wait(TIMEOUT_S)

    shard = Shard(ShardOptions("127.0.0.1:0", data=tmp_path / "data"), progress=hold)
    starting = threading.Thread(target=shard.start)
    starting.start()
    try:
        assert recovering.wait(TIMEOUT_S)
        opened = Client(shard)
        health_stub = health_pb2_grpc.HealthStub(opened.channel)
        check = partial(health_stub.Check, health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert check().status == health_pb2.HealthCheckResponse.NOT_SERVING
        topology = opened.admin.Topology(admin_pb2.TopologyRequest(), timeout=TIMEOUT_S)
        assert (topology.ready, topology.shard, topology.topology.num_shards) == (False, 0, 1)
        with pytest.raises(grpc.RpcError) as caught:
            opened.rows.Pull(store_pb2.PullRequest(), timeout=TIMEOUT_S)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        go_on.set()
        starting.join()
    assert check().status == health_pb2.HealthCheckResponse.SERVING
    assert opened.admin.Topology(admin_pb2.TopologyRequest(), timeout=TIMEOUT_S).ready
    opened.channel.close()
    shard.stop()
