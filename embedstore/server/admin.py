"""AdminService: tables, checkpoints and topology of one process. Every method may run in any number of threads."""

from __future__ import annotations

from typing import Any

import grpc

from embedstore import messages
from embedstore.errors import InvalidArgumentError
from embedstore.server.interceptors import Guard
from embedstore.server.serving import Serving
from embedstore.server.takeover import tell
from embedstore.spec import TableSpec
from embedstore.status import topology_from_proto, topology_to_proto
from embedstore.v1 import admin_pb2

SERVICE = "embedstore.v1.AdminService"
ACTIVATE_TIMEOUT_S_MAX = 86_400.0


class AdminService:
    """The methods of the service; see ``admin.proto``."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def handler(self, guard: Guard) -> grpc.GenericRpcHandler[Any, Any]:
        """All methods, ready to be registered."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "CreateTable": guard.unary(admin_pb2.CreateTableRequest, self.create_table),
                "AlterTable": guard.unary(admin_pb2.AlterTableRequest, self.alter_table),
                "DropTable": guard.unary(admin_pb2.DropTableRequest, self.drop_table),
                "DescribeTable": guard.unary(admin_pb2.DescribeTableRequest, self.describe_table),
                "ListTables": guard.unary(admin_pb2.ListTablesRequest, self.list_tables),
                "Sweep": guard.unary(admin_pb2.SweepRequest, self.sweep),
                "Checkpoint": guard.unary(admin_pb2.CheckpointRequest, self.checkpoint),
                "Topology": guard.unary(admin_pb2.TopologyRequest, self.topology),
                "Stats": guard.unary(admin_pb2.StatsRequest, self.stats),
                "Reassign": guard.unary(admin_pb2.ReassignRequest, self.reassign),
                "Activate": guard.unary(admin_pb2.ActivateRequest, self.activate),
            },
        )

    def create_table(self, request: admin_pb2.CreateTableRequest) -> admin_pb2.CreateTableResponse:
        """CreateTable."""
        self._serving.check_epoch(request.epoch)
        store = self._serving.writable()
        return admin_pb2.CreateTableResponse(created=store.create_table(TableSpec.from_proto(request.spec)))

    def alter_table(self, request: admin_pb2.AlterTableRequest) -> admin_pb2.AlterTableResponse:
        """AlterTable."""
        self._serving.check_epoch(request.epoch)
        self._serving.writable().alter_table(TableSpec.from_proto(request.spec))
        return admin_pb2.AlterTableResponse()

    def drop_table(self, request: admin_pb2.DropTableRequest) -> admin_pb2.DropTableResponse:
        """DropTable."""
        self._serving.check_epoch(request.epoch)
        self._serving.writable().drop_table(request.table)
        return admin_pb2.DropTableResponse()

    def describe_table(self, request: admin_pb2.DescribeTableRequest) -> admin_pb2.DescribeTableResponse:
        """DescribeTable."""
        self._serving.check_epoch(request.epoch)
        table = self._serving.store().table(request.table)
        return admin_pb2.DescribeTableResponse(
            spec=table.spec.to_proto(),
            stats=messages.table_stats_to_proto(request.table, table.stats()),
            row_format=table.row_format,
        )

    def list_tables(self, request: admin_pb2.ListTablesRequest) -> admin_pb2.ListTablesResponse:
        """ListTables."""
        self._serving.check_epoch(request.epoch)
        store = self._serving.store()
        return admin_pb2.ListTablesResponse(
            tables=[spec.to_proto() for spec in store.tables().values()], dense_sets=sorted(store.dense_sets())
        )

    def sweep(self, request: admin_pb2.SweepRequest) -> admin_pb2.SweepResponse:
        """Sweep."""
        self._serving.check_epoch(request.epoch)
        budget_ms = request.budget_ms if request.HasField("budget_ms") else None
        store = self._serving.writable()
        return messages.sweep_to_proto(store.sweep(request.table or None, budget_ms=budget_ms, dry_run=request.dry_run))

    def checkpoint(self, request: admin_pb2.CheckpointRequest) -> admin_pb2.CheckpointResponse:
        """Checkpoint."""
        self._serving.check_epoch(request.epoch)
        return messages.checkpoint_to_proto(self._serving.writable().checkpoint())

    def topology(self, request: admin_pb2.TopologyRequest) -> admin_pb2.TopologyResponse:
        """Topology: answered as soon as the port is open."""
        del request
        previous = self._serving.previous_topology()
        return admin_pb2.TopologyResponse(
            topology=topology_to_proto(self._serving.known_topology()),
            shard=self._serving.shard,
            ready=self._serving.ready,
            follower=self._serving.follower,
            standby=self._serving.standby,
            address=self._serving.advertised,
            fenced=self._serving.fenced,
            num_shards=self._serving.num_shards,
            synced=bool(self._serving.synced),
            previous=None if previous is None else topology_to_proto(previous),
        )

    def reassign(self, request: admin_pb2.ReassignRequest) -> admin_pb2.ReassignResponse:
        """Reassign."""
        self._serving.adopt(topology_from_proto(request.topology))
        return admin_pb2.ReassignResponse(fenced=self._serving.fenced)

    def activate(self, request: admin_pb2.ActivateRequest) -> admin_pb2.ActivateResponse:
        """Activate."""
        if not 0 <= request.timeout_s <= ACTIVATE_TIMEOUT_S_MAX:
            problem = f"must be in [0, {ACTIVATE_TIMEOUT_S_MAX:g}], not {request.timeout_s}"
            raise InvalidArgumentError("ActivateRequest.timeout_s", problem)
        topology = topology_from_proto(request.topology) if request.HasField("topology") else None
        takeover = self._serving.takeover
        if takeover is None or self._serving.fenced:
            replaced = self._serving.topology
            record = self._serving.reinstate(topology, force=request.force)
            others = {*record.addresses, *replaced.addresses} - {self._serving.advertised}
            if record != replaced:
                tell(record, others, self._serving.credentials)
        else:
            record = takeover.activate(topology, force=request.force, timeout_s=request.timeout_s)
        return admin_pb2.ActivateResponse(topology=topology_to_proto(record))

    def stats(self, request: admin_pb2.StatsRequest) -> admin_pb2.StatsResponse:
        """Stats."""
        self._serving.check_epoch(request.epoch)
        return messages.stats_to_proto(self._serving.stats())
