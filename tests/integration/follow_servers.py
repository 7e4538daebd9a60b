"""Leaders on real sockets for the tests of following."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from embedstore.errors import UnavailableError
from embedstore.peers import CHANNEL_OPTIONS
from embedstore.server.feed import Pace
from embedstore.server.follow import FollowerStore
from embedstore.server.leader import SyncServicer
from embedstore.table_set import TableSet
from embedstore.v1 import admin_pb2, admin_pb2_grpc, sync_pb2_grpc

PACE = Pace(sync_interval_ms=20, heartbeat_ms=50)
TIMEOUT_S = 30.0


class Topology(admin_pb2_grpc.AdminServiceServicer):
    """Says which shard this is, and what it was told of the others."""

    def __init__(self, shard: int, num_shards: int, follower: bool) -> None:
        record = admin_pb2.TopologyRecord(epoch=1, num_shards=num_shards)
        self.response = admin_pb2.TopologyResponse(topology=record, shard=shard, ready=True, follower=follower)

    def Topology(self, request: Any, context: Any) -> admin_pb2.TopologyResponse:  # noqa: N802
        return self.response


class Leader:
    """A server of ``Follow`` and ``Topology`` over a set of tables, on a free port or a given one."""

    def __init__(
        self,
        tables: TableSet,
        *,
        shard: int = 0,
        num_shards: int = 1,
        port: int = 0,
        follower: bool = False,
        **options: Any,
    ) -> None:
        self.tables = tables
        self.sync = SyncServicer(tables, pace=PACE, **options)
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=8 + options.get("followers_max", 16)),
            options=[*CHANNEL_OPTIONS, ("grpc.so_reuseport", 0)],
        )
        sync_pb2_grpc.add_SyncServiceServicer_to_server(self.sync, self._server)
        self._topology = Topology(shard, num_shards, follower)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self._topology, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        assert self.port
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def know(self, addresses: list[str]) -> None:
        """Learn where all shards are."""
        response = admin_pb2.TopologyResponse()
        response.CopyFrom(self._topology.response)
        response.topology.addresses.extend(addresses)
        self._topology.response = response

    def stop(self) -> None:
        """End every call and let the port go."""
        self.sync.close()
        self._server.stop(0).wait()


def content(tables: Any, name: str) -> dict[int, tuple[bytes, int]]:
    """Every row of a table: id -> (embedding, updates)."""
    found: dict[int, tuple[bytes, int]] = {}
    for ids, rows in tables.scan(name):
        columns = zip(ids.tolist(), rows.embeddings, rows.updates.tolist(), strict=True)
        found.update((key, (embedding.tobytes(), updates)) for key, embedding, updates in columns)
    return found


def ones(ids: Any, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and gradients of 1."""
    return np.asarray(ids, np.uint64), np.ones((len(ids), dim), np.float32)


def refused_because(follower: FollowerStore, reason: str) -> None:
    """Wait until the follower names ``reason`` for not being in step."""
    for _ in range(int(TIMEOUT_S / 0.1)):
        try:
            follower.wait_synced(0.1)
        except UnavailableError as error:
            if reason in str(error):
                return
        else:
            raise AssertionError("it is in step")
    raise AssertionError(f"never said {reason!r}")
