"""What every call of a remote store needs: the shards, the tables' specs, and one error out of several answers.

Specs are remembered, because they decide how ids are split; one that turns out stale is read again, and so are all when
other shards have taken over. All methods may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from embedstore.cluster import Cluster
from embedstore.errors import (
    EmbedstoreError,
    GapError,
    InvalidArgumentError,
    TableNotFoundError,
    UnavailableError,
    WrongShardError,
)
from embedstore.interface import StreamState
from embedstore.peers import Deadline, Patience
from embedstore.routes import Call, First, Plan, Reply, Route
from embedstore.spec import TableSpec
from embedstore.status import Topology
from embedstore.v1 import admin_pb2

_STALE_SPEC = (TableNotFoundError, WrongShardError, InvalidArgumentError)
T = TypeVar("T")


class Session:
    """The base of a remote store; see the module."""

    def __init__(self, peers: Cluster) -> None:
        self.peers = peers
        self._lock = threading.Lock()
        self._specs: dict[str, TableSpec] = {}
        self._specs_epoch = 0

    @property
    def topology(self) -> Topology:
        """The shards this store goes by now."""
        return self.peers.topology

    def tables(self) -> dict[str, TableSpec]:
        """The spec of every table by name."""
        epoch = self.topology.epoch
        reply = self._any_reply("ListTables", admin_pb2.ListTablesRequest())
        message = decoded(reply, admin_pb2.ListTablesResponse.FromString)
        specs = {spec.name: decoded_from(reply.address, TableSpec.from_proto, spec) for spec in message.tables}
        with self._lock:
            self._specs, self._specs_epoch = dict(specs), epoch
        return specs

    def _any_reply(self, method: str, request: Any) -> Reply:
        """The answer of the first shard that gives one."""
        for shard in range(len(self.peers)):

            def plan(route: Route, shard: int = shard) -> list[Call]:
                return [Call(shard % len(route), method, with_epoch(request, route))]

            [reply] = self.peers.ask(plan)
            if not isinstance(reply.outcome, UnavailableError):
                break
        self.raise_worst([reply.outcome])
        return reply

    def spec(self, table: str) -> TableSpec:
        """The spec of a table; :class:`TableNotFoundError`."""
        spec = self._specs.get(table) if self._specs_epoch == self.topology.epoch else None
        if spec is None:
            spec = self.tables().get(table)
            if spec is None:
                raise TableNotFoundError(table)
        return spec

    def forget(self, tables: Iterable[str]) -> None:
        """Read the specs of these tables again before they are next used."""
        with self._lock:
            for table in tables:
                self._specs.pop(table, None)

    def with_fresh_specs(self, tables: Sequence[str], action: Callable[[], T]) -> T:
        """Do something that changes nothing; once more if it failed over a spec that is no longer true."""
        before = [self._specs.get(table) for table in tables]
        try:
            return action()
        except _STALE_SPEC:
            if not any(before):
                raise
            self.forget(tables)
            known = self.tables()
            if [known.get(table) for table in tables] == before:
                raise
        return action()

    def create_table(self, spec: TableSpec) -> bool:
        """See :class:`embedstore.interface.Store`."""
        answers = self.ask_all(
            "CreateTable", admin_pb2.CreateTableRequest(spec=spec.to_proto()), admin_pb2.CreateTableResponse
        )
        return any(answer.created for answer in answers)

    def alter_table(self, spec: TableSpec) -> None:
        """See :class:`embedstore.interface.Store`."""
        self.forget([spec.name])
        self.ask_all("AlterTable", admin_pb2.AlterTableRequest(spec=spec.to_proto()), admin_pb2.AlterTableResponse)

    def drop_table(self, table: str) -> None:
        """See :class:`embedstore.interface.Store`. A shard without it, after a drop that broke off, is passed over."""
        self.forget([table])
        replies = self.peers.ask(_to_all("DropTable", admin_pb2.DropTableRequest(table=table)))
        outcomes = [reply.outcome for reply in replies]
        if not all(isinstance(outcome, TableNotFoundError) for outcome in outcomes):
            outcomes = [b"" if isinstance(outcome, TableNotFoundError) else outcome for outcome in outcomes]
        self.raise_worst(outcomes)

    def ask_all(self, method: str, request: Any, kind: Any, patience: Patience | None = None) -> list[Any]:
        """The same question to every shard; their answers in order."""
        return [decoded(reply, kind.FromString) for reply in self.replies(_to_all(method, request), patience)]

    def replies(self, plan: Plan, patience: Patience | None = None, first: First | None = None) -> list[Reply]:
        """The answers to all calls of ``plan``, or the worst error."""
        replies = self.peers.ask(plan, Deadline(patience) if patience else None, first=first)
        for reply in replies:
            if not isinstance(reply.outcome, bytes):
                self.raise_worst([reply.outcome for reply in replies])
        return replies

    def raise_worst(
        self, outcomes: Sequence[bytes | Exception], streams: Sequence[Mapping[str, StreamState]] = ()
    ) -> None:
        """Raise what the caller must know first: a refusal, then silence, then a gap with all shards' watermarks."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if not errors:
            return
        gaps = [error for error in errors if isinstance(error, GapError)]
        others = [error for error in errors if not isinstance(error, GapError)]
        if others:
            if any(isinstance(error, _STALE_SPEC) for error in others):
                self.forget(list(self._specs))
            raise min(others, key=lambda error: isinstance(error, UnavailableError))
        merged: dict[str, set[int]] = defaultdict(set)
        for gap in gaps:
            for stream, positions in gap.watermarks.items():
                merged[stream].update(positions)
        for states in streams:
            for stream, state in states.items():
                merged[stream].update(state.watermarks)
        raise GapError({stream: sorted(positions) for stream, positions in merged.items()})


def decoded(reply: Reply, decode: Callable[[bytes], T]) -> T:
    """An answer read by ``decode``; one that cannot be read is the shard's fault, not the caller's."""
    assert isinstance(reply.outcome, bytes)
    return decoded_from(reply.address, decode, reply.outcome)


def decoded_from(address: str, decode: Callable[[Any], T], data: Any) -> T:
    """As :func:`decoded`, of what came from ``address``."""
    try:
        return decode(data)
    except (ValueError, DecodeError) as error:
        raise EmbedstoreError(f"{address}: malformed answer: {error}") from error


def with_epoch(request: Any, route: Route) -> bytes:
    """The request as the sender of this route's epoch sends it."""
    request.epoch = route.epoch
    data: bytes = request.SerializeToString()
    return data


def _to_all(method: str, request: Any) -> Plan:
    def plan(route: Route) -> list[Call]:
        data = with_epoch(request, route)
        return [Call(shard, method, data) for shard in range(len(route))]

    return plan
