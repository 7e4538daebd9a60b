"""What every RPC takes: valid messages to start from, and values that make sense, by the name of their field.

They fit the state that :func:`fuzz_servers.populate` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message

import embedstore as es
from embedstore.placement import chunks_of_ids, shard_of_dense_set
from embedstore.v1 import admin_pb2, spec_pb2, store_pb2, sync_pb2

ITEMS = es.TableSpec("items", dim=2, optimizer=es.SGD(lr=1.0), num_chunks=8)
USERS = es.TableSpec(
    "users",
    dim=3,
    optimizer=es.Adam(lr=0.1, clip_norm=10.0),
    init=es.Uniform(0.1, seed=1),
    on_miss="init",
    admission=es.MinCount(2),
    ttl_s=1000.0,
    rows_max=64,
    num_chunks=4,
)
PROBE = es.TableSpec("probe", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=2)
TABLES = (ITEMS, USERS, PROBE)
STREAM, CLIENT, NEW_CLIENT, STREAM_BEGIN = "s", "client/a", "client/b", 10
EPOCH, NUM_SHARDS = 1, 2
HERE, BESIDE, ELSEWHERE = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"  # where nobody ever answers
CLOCK_MS = 1_700_000_000_000

_KEYS = np.arange(1, 100, dtype=np.uint64)
_SHARDS = chunks_of_ids(_KEYS, NUM_SHARDS)
K = [int(key) for key in _KEYS[_SHARDS == 0]]
"""Ids of shard 0, which is the one that is fuzzed; ``FOREIGN``: one of the other shard."""
FOREIGN = int(_KEYS[_SHARDS == 1][0])
DENSE, OTHER_DENSE = [name for name in map(str, range(20)) if shard_of_dense_set(name, NUM_SHARDS) == 0][:2]

CLIENT_ORIGINS = [
    store_pb2.Origin(stream=name, begin=begin, end=begin + 1)
    for name, begin in ((CLIENT, 1), (NEW_CLIENT, 1), (CLIENT, 3))
]


def ids(*values: int) -> bytes:
    """A column of ids."""
    return np.array(values, "<u8").tobytes()


def floats(*values: float, dtype: str = "<f4") -> bytes:
    """A column of numbers."""
    return np.array(values, dtype).tobytes()


def valid_messages(rpc: str) -> list[bytes]:
    """Messages that a server takes in its first state, whatever else it was sent of them before."""
    return [message.SerializeToString() for message in [*_rows(rpc), *_tables(rpc), *_others(rpc)]]


def _rows(rpc: str) -> Sequence[Message]:
    push = store_pb2.TablePush(table="items", ids=ids(K[0], K[1], K[30]), dim=2, grads=floats(1, 2, 3, 4, 5, 6))
    long = store_pb2.TablePush(
        table="users",
        ids=ids(K[0], K[31]),
        dim=3,
        dtype=store_pb2.DTYPE_FLOAT16,
        grads=floats(1, 2, 3, 4, 5, 6, dtype="<f2"),
        counts=np.array([1, 3], "<u4").tobytes(),
        event_times_ms=np.array([CLOCK_MS, 5], "<i8").tobytes(),
        lr=0.5,
    )
    match rpc:
        case "Pull":
            pull = store_pb2.TablePull(table="items", ids=ids(K[0], K[1], K[32]), meta=True)
            half = store_pb2.TablePull(table="users", ids=ids(K[0], K[4]), dtype=store_pb2.DTYPE_FLOAT16)
            known = store_pb2.TablePull(table="items", ids=ids(K[2]), dtype=store_pb2.DTYPE_NONE, meta=True)
            only = store_pb2.TablePull(table="items", ids=ids(*K[:4]), dtype=store_pb2.DTYPE_FLOAT32)
            several = store_pb2.PullRequest(epoch=EPOCH, tables=[pull, half, known])
            return [several, store_pb2.PullRequest(tables=[only]), store_pb2.PullRequest()]
        case "Push":
            origin = store_pb2.Origin(stream=STREAM, begin=STREAM_BEGIN, end=STREAM_BEGIN + 2, generation=1)
            client, fresh, later = CLIENT_ORIGINS
            return [
                *(store_pb2.PushRequest(tables=[push, long], origins=[each]) for each in (fresh, later)),
                store_pb2.PushRequest(epoch=EPOCH, tables=[push, long], event_time_ms=CLOCK_MS),
                store_pb2.PushRequest(tables=[push], origins=[origin], event_time_ms=CLOCK_MS),
                store_pb2.PushRequest(tables=[long], origins=[client]),
                store_pb2.PushRequest(tables=[push]),
            ]
        case "Assign":
            fields: dict[str, Any] = {"table": "items", "ids": ids(K[0], K[33]), "dim": 2, "rows": floats(1, 2, 3, 4)}
            other: dict[str, Any] = {"table": "users", "ids": ids(K[0], K[33]), "dim": 3, "rows": floats(*range(6))}
            client, fresh, later = CLIENT_ORIGINS
            return [
                *(store_pb2.AssignRequest(origin=each, **other) for each in (fresh, later)),
                store_pb2.AssignRequest(epoch=EPOCH, event_time_ms=CLOCK_MS, **fields),
                store_pb2.AssignRequest(origin=client, **fields),
            ]
        case "Delete":
            client, fresh, later = CLIENT_ORIGINS
            return [
                *(store_pb2.DeleteRequest(table="users", ids=ids(K[2], K[3]), origin=each) for each in (fresh, later)),
                store_pb2.DeleteRequest(epoch=EPOCH, table="items", ids=ids(K[0], K[1])),
                store_pb2.DeleteRequest(table="users", ids=ids(K[0]), origin=client),
            ]
        case "Scan":
            floats_too = store_pb2.ScanRequest(table="users", dtype=store_pb2.DTYPE_FLOAT32)
            return [store_pb2.ScanRequest(epoch=EPOCH, table="items"), floats_too]
    return []


def _tables(rpc: str) -> Sequence[Message]:
    match rpc:
        case "CreateTable":
            specs = [ITEMS.to_proto(), USERS.to_proto(), *_other_specs()]
            return [admin_pb2.CreateTableRequest(epoch=EPOCH, spec=spec) for spec in specs]
        case "AlterTable":
            changed = [ITEMS.to_proto(), USERS.to_proto(), USERS.to_proto(), ITEMS.to_proto()]
            changed[1].optimizer.lr, changed[1].ttl_s, changed[1].rows_max = 0.2, 2000.0, 128
            changed[2].ClearField("ttl_s")
            changed[3].bytes_max = 1 << 20
            return [admin_pb2.AlterTableRequest(epoch=EPOCH, spec=spec) for spec in changed]
        case "DropTable":
            return [admin_pb2.DropTableRequest(epoch=EPOCH, table="items"), admin_pb2.DropTableRequest(table="users")]
        case "DescribeTable":
            return [admin_pb2.DescribeTableRequest(epoch=EPOCH, table=name) for name in ("items", "users")]
        case "Sweep":
            return [
                admin_pb2.SweepRequest(epoch=EPOCH),
                admin_pb2.SweepRequest(table="users", budget_ms=1.0),
                admin_pb2.SweepRequest(table="items", dry_run=True),
            ]
    return []


def _other_specs() -> list[spec_pb2.TableSpec]:
    kinds: list[tuple[es.Optimizer, Any, Any]] = [
        (es.Momentum(lr=0.1), es.Zeros(), None),
        (es.Adagrad(lr=0.1), es.Constant(0.5), es.Probability(0.5, seed=3)),
        (es.RowwiseAdagrad(lr=0.1, weight_decay=0.1), es.Normal(0.1), None),
        (es.RMSProp(lr=0.1), es.TruncatedNormal(0.1, seed=2), es.MinCount(3, memory_bytes=4096)),
        (es.FTRL(lr=0.1, l1=0.1), es.Uniform(0.0), None),
    ]
    return [
        es.TableSpec(f"new-{i}", dim=i + 1, optimizer=rule, init=init, admission=admission, num_chunks=2).to_proto()
        for i, (rule, init, admission) in enumerate(kinds)
    ]


def _others(rpc: str) -> Sequence[Message]:
    record = admin_pb2.TopologyRecord(epoch=EPOCH + 1, addresses=[ELSEWHERE, BESIDE], num_shards=NUM_SHARDS)
    match rpc:
        case "PutDense":
            tensors = [
                store_pb2.Tensor(name="w", dtype="float32", shape=[2, 2], data=floats(1, 2, 3, 4)),
                store_pb2.Tensor(name="n", dtype="int64", shape=[], data=bytes(8)),
            ]
            position = [store_pb2.StreamPosition(stream=STREAM, position=STREAM_BEGIN)]
            placed = store_pb2.DenseSet(name=DENSE, tensors=tensors, position=position, generations=[1])
            return [
                store_pb2.PutDenseRequest(epoch=EPOCH, dense_set=placed),
                store_pb2.PutDenseRequest(dense_set=store_pb2.DenseSet(name=OTHER_DENSE, tensors=tensors[:1])),
            ]
        case "GetDense":
            return [store_pb2.GetDenseRequest(epoch=EPOCH, name=DENSE)]
        case "OpenStream":
            return [
                store_pb2.OpenStreamRequest(epoch=EPOCH, stream=STREAM, position=STREAM_BEGIN),
                store_pb2.OpenStreamRequest(stream="t", position=5, generation=3),
            ]
        case "Watermarks":
            return [store_pb2.WatermarksRequest(epoch=EPOCH)]
        case "ListTables":
            return [admin_pb2.ListTablesRequest(epoch=EPOCH)]
        case "Checkpoint":
            return [admin_pb2.CheckpointRequest(epoch=EPOCH)]
        case "Topology":
            return [admin_pb2.TopologyRequest()]
        case "Stats":
            return [admin_pb2.StatsRequest(epoch=EPOCH)]
        case "Reassign":
            here = admin_pb2.TopologyRecord(epoch=EPOCH + 2, addresses=[HERE, BESIDE], num_shards=NUM_SHARDS)
            return [admin_pb2.ReassignRequest(topology=each) for each in (record, here)]
        case "Activate":
            here = admin_pb2.TopologyRecord(epoch=EPOCH, addresses=[HERE, BESIDE], num_shards=NUM_SHARDS)
            return [admin_pb2.ActivateRequest(topology=here, force=True, timeout_s=1.0)]
        case "Follow":
            return _follow()
    return []


def _follow() -> Sequence[Message]:
    cursors = sync_pb2.TableCursors(
        table="items", chunks=np.arange(3, dtype="<u4").tobytes(), incarnations=ids(1, 2, 3), versions=ids(4, 5, 6)
    )
    standby = sync_pb2.StandbyPlace(shard=0, num_shards=NUM_SHARDS, address=ELSEWHERE)
    applied = sync_pb2.WatermarkSet(positions=[store_pb2.StreamPosition(stream=STREAM, position=STREAM_BEGIN)])
    wants = [
        sync_pb2.FollowWants(tables=[cursors], embeddings_only=True, sync_interval_ms=50, name=ELSEWHERE),
        sync_pb2.FollowWants(only_tables=["users"], dense_checksums={DENSE: 7}, embeddings_only=True),
        sync_pb2.FollowWants(standby=standby),
    ]
    return [
        *(sync_pb2.FollowRequest(epoch=EPOCH, wants=each) for each in wants),
        sync_pb2.FollowRequest(ack=sync_pb2.FollowAck(sequence=0)),
        sync_pb2.FollowRequest(ack=sync_pb2.FollowAck(sequence=0, applied=applied)),
        sync_pb2.FollowRequest(rewind=sync_pb2.FollowRewind(cursors=cursors)),
        sync_pb2.FollowRequest(rewind=sync_pb2.FollowRewind(cursors=cursors, whole_table=True)),
    ]


LIKELY: dict[str, Sequence[Any]] = {
    "epoch": (0, 0, EPOCH, EPOCH, EPOCH + 1),
    "table": (b"items", b"users", b"items", b"nothing"),
    "only_tables": (b"items", b"users", b"nothing"),
    "name": (b"items", b"users", DENSE.encode(), OTHER_DENSE.encode(), b"new-0", b"w"),
    "stream": (b"s", b"t", b"client/a", b"client/b"),
    "ids": (ids(K[0]), ids(*K[:3]), ids(K[5], K[5]), b"", ids(0, 2**64 - 1), ids(K[0], FOREIGN), ids(FOREIGN)),
    "dim": (1, 2, 2, 3, 4096),
    "dtype": (0, 1, 2, 3, b"float32", b"int64", b"float16", b"bool"),
    "grads": (floats(1, 2), floats(1, 2, 3, 4, 5, 6), b""),
    "rows": (floats(1, 2), floats(1, 2, 3, 4, 5, 6), b""),
    "counts": (np.array([1], "<u4").tobytes(), np.array([1, 0, 2**32 - 1], "<u4").tobytes(), b""),
    "event_times_ms": (np.array([5], "<i8").tobytes(), np.array([5, CLOCK_MS, -1], "<i8").tobytes(), b""),
    "event_time_ms": (0, 5, CLOCK_MS, CLOCK_MS + 10**9),
    "begin": (0, 1, STREAM_BEGIN),
    "end": (0, 1, STREAM_BEGIN, STREAM_BEGIN + 5),
    "position": (0, 5, STREAM_BEGIN, STREAM_BEGIN + 5),
    "generation": (0, 1, 2, 3),
    "generations": (0, 1, 2),
    "num_chunks": (1, 2, 4, 8, 16, 3),
    "rows_max": (4, 64, 10**6),
    "bytes_max": (4096, 1 << 20, 1 << 40),
    "count": (1, 2, 100),
    "shape": (1, 2, 0, 4),
    "shard": (0, 0, 1),
    "num_shards": (1, 2, 2),
    "address": (ELSEWHERE.encode(), b"127.0.0.1:4"),
    "addresses": (HERE.encode(), BESIDE.encode(), ELSEWHERE.encode()),
    "sequence": (0, 0, 1),
    "chunks": (np.array([0], "<u4").tobytes(), np.array([0, 1, 2], "<u4").tobytes()),
    "incarnations": (ids(1), ids(1, 2, 3)),
    "versions": (ids(1), ids(1, 2, 3)),
    "sync_interval_ms": (0, 1, 200),
    "on_miss": (0, 1, 2),
    "meta": (0, 1),
    "force": (0, 1),
}
