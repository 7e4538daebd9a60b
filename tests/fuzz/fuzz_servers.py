"""Servers to be fuzzed, what can be seen of their state, and one way to call them: in this process or over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from message_trees import Shape, shape_of
from server_state import kept, populate
from valid_messages import (
    BESIDE,
    CLOCK_MS,
    ELSEWHERE,
    EPOCH,
    HERE,
    NUM_SHARDS,
    TABLES,
)

from embedstore.credentials import Credentials
from embedstore.peers import CHANNEL_OPTIONS
from embedstore.server import admin, embedding, shard
from embedstore.server.interceptors import Guard
from embedstore.server.leader import SyncServicer
from embedstore.server.options import ShardOptions
from embedstore.server.serving import Serving
from embedstore.status import Topology
from embedstore.store import LocalStore
from embedstore.table import Table
from embedstore.table_set import TableSet
from embedstore.v1 import admin_pb2, store_pb2, sync_pb2

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Rpc:
    """One method, as its descriptor has it."""

    name: str
    path: str
    request: type[Message]
    response: type[Message]
    shape: Shape
    client_streams: bool
    server_streams: bool
    reads: bool


_READS = ("Pull", "Scan", "GetDense", "Watermarks", "DescribeTable", "ListTables", "Topology", "Stats", "Follow")


def all_rpcs() -> list[Rpc]:
    """Every method of the three services."""
    return [
        Rpc(
            method.name,
            f"/{service.full_name}/{method.name}",
            getattr(module, method.input_type.name),
            getattr(module, method.output_type.name),
            shape_of(method.input_type),
            method.client_streaming,
            method.server_streaming,
            method.name in _READS,
        )
        for module in (store_pb2, admin_pb2, sync_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


class Outcome(NamedTuple):
    """How a call ended. ``code`` "": it was answered. ``taken``: how many messages the server read."""

    code: str
    text: str
    kind: str
    name: str
    answers: list[bytes]
    taken: int


class Server(Protocol):
    """What the fuzzer needs of a server. ``costly``: to renew."""

    role: str
    costly: bool
    serving: Serving

    def call(self, rpc: Rpc, messages: Sequence[bytes]) -> Outcome:
        """Send it, and wait for the end."""

    def renew(self) -> None:
        """Another server in the first state takes its place."""

    def restart(self) -> bool:
        """Whether it is the same again after a restart, as far as it keeps anything."""

    def close(self) -> None:
        """Release everything."""


class Nowhere(Credentials):
    """Reaches nobody: a record with any address may be adopted here, and is told to those who are in it."""

    def channel(self, address: str, options: Any = ()) -> grpc.Channel:
        """A channel to a port of this machine where nobody ever answers."""
        return super().channel(HERE, options)


# -- in this process


class _AbortedError(Exception):
    pass


class _Context:
    """What a handler sees of a call."""

    def __init__(self) -> None:
        self.status: Any = None
        self._callbacks: list[Callable[[], object]] = []

    def abort_with_status(self, status: Any) -> None:
        self.status = status
        raise _AbortedError

    def add_callback(self, callback: Callable[[], object]) -> bool:
        self._callbacks.append(callback)
        return True

    def invocation_metadata(self) -> tuple[Any, ...]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def cancel(self) -> None:
        self.end()

    def end(self) -> None:
        """What gRPC does when a call is over."""
        for callback in self._callbacks:
            callback()


class _Details(NamedTuple):
    method: str
    invocation_metadata: tuple[Any, ...] = ()


class LocalServer:
    """The registered handlers, called without any connection. ``role``: leader, fenced or follower."""

    costly = False

    def __init__(self, role: str) -> None:
        self.role = role
        self._handlers: dict[str, Any] = {}
        self.serving: Serving
        self.sync: SyncServicer
        self._guard = Guard(lambda: self.serving.topology, 4)
        self.renew()

    def renew(self) -> None:
        """See :class:`Server`."""
        store: TableSet = LocalStore(None, TABLES, num_shards=NUM_SHARDS, clock_ms=lambda: CLOCK_MS)
        populate(store)  # type: ignore[arg-type]
        follower = self.role == "follower"
        if follower:
            store = _copy(store)
        serving = Serving(
            Topology(EPOCH, (HERE, BESIDE), NUM_SHARDS), 0, follower=follower, advertised=HERE, credentials=Nowhere()
        )
        serving.address = HERE
        self.sync = SyncServicer(store, epoch=lambda: serving.topology.epoch, clock_ms=lambda: CLOCK_MS)
        serving.serve(store, self.sync)
        if self.role == "fenced":
            serving.adopt(Topology(EPOCH + 1, (ELSEWHERE, BESIDE), NUM_SHARDS))
        self.serving = serving
        services = (
            embedding.EmbeddingService(serving).handler(self._guard),
            admin.AdminService(serving).handler(self._guard),
            shard._WhenReady(serving, self._guard, None).handler(),
        )
        for rpc in all_rpcs():
            details: Any = _Details(rpc.path)
            [self._handlers[rpc.path]] = filter(None, (service.service(details) for service in services))

    def call(self, rpc: Rpc, messages: Sequence[bytes]) -> Outcome:
        """See :class:`Server`."""
        handler, context = self._handlers[rpc.path], _Context()
        if rpc.client_streams:
            return self._converse(handler, context, messages)
        answers: list[bytes] = []
        try:
            if rpc.server_streams:
                answers.extend(handler.unary_stream(messages[0], context))
            else:
                answers.append(handler.unary_unary(messages[0], context))
        except _AbortedError:
            status = context.status
            return _refused(status.code.name, status.details, dict(status.trailing_metadata), 1)
        finally:
            context.end()
        return Outcome("", "", "", "", answers, 1)

    def _converse(self, handler: Any, context: Any, messages: Sequence[bytes]) -> Outcome:
        taken, answers, answered = 0, [], threading.Event()

        def requests() -> Iterator[bytes]:
            nonlocal taken
            for message in messages:
                taken += 1
                yield message
            answered.wait(PATIENCE_S)

        try:
            for answer in handler.stream_stream(requests(), context):
                answers.append(answer.SerializeToString())
                answered.set()
        except _AbortedError:
            pass
        finally:
            answered.set()
            context.end()
        for thread in threading.enumerate():
            if thread.name == "follow-reader":
                thread.join(PATIENCE_S)
                assert not thread.is_alive(), "the reader of a call that has ended does not end"
        assert not self.sync.followers, "a call that has ended is still counted"
        if context.status is not None:
            status = context.status
            return _refused(status.code.name, status.details, dict(status.trailing_metadata), taken)
        return Outcome("", "", "", "", answers, taken)

    def restart(self) -> bool:
        """See :class:`Server`."""
        return True

    def close(self) -> None:
        """See :class:`Server`."""


def _copy(store: TableSet) -> TableSet:
    """What a follower of it has."""
    copy = TableSet(clock_ms=lambda: CLOCK_MS)
    for table in store.table_map().values():
        rows = Table(table.spec, chunks=table.chunks, embeddings_only=True)
        for chunk in table.chunks:
            rows.apply(table.delta(chunk, embeddings_only=True))
        copy.add_table(rows)
    for name, dense_set in store.dense_sets().items():
        copy.set_dense(name, dense_set)
    return copy


def _refused(code: str, text: str, metadata: Mapping[str, Any], taken: int) -> Outcome:
    detail = admin_pb2.ErrorDetail()
    status = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b""))
    if status.details:
        detail.ParseFromString(status.details[0].value)
    return Outcome(code, text or "", detail.kind, detail.name, [], taken)


# -- over gRPC


class WireServer:
    """A shard with its data on disk, on a port of this machine."""

    role = "leader"
    costly = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0
        self.shard: Any = None
        self.channel: Any = None
        self.renew()

    @property
    def data(self) -> Path:
        """Where the present one keeps its data."""
        return self._directory / str(self._number)

    def renew(self) -> None:
        """See :class:`Server`."""
        self.close()
        self._number += 1
        self._start(tables=TABLES)
        populate(self.serving.writable())

    def _start(self, **options: Any) -> None:
        self.shard = shard.Shard(
            ShardOptions(
                "127.0.0.1:0",
                num_shards=NUM_SHARDS,
                data=self.data,
                peers=(HERE, BESIDE),
                checkpoint_interval_s=3600.0,
                credentials=Nowhere(),
                **options,
            )
        )
        self.shard.start()
        self.serving: Serving = self.shard._serving
        self.serving.writable()._clock_ms = lambda: CLOCK_MS
        self.channel = grpc.insecure_channel(self.shard.address, options=[*CHANNEL_OPTIONS, *_ANY_LENGTH])

    def call(self, rpc: Rpc, messages: Sequence[bytes]) -> Outcome:
        """See :class:`Server`."""
        kind = f"{'stream' if rpc.client_streams else 'unary'}_{'stream' if rpc.server_streams else 'unary'}"
        method = getattr(self.channel, kind)(rpc.path, None, None)
        try:
            if rpc.client_streams:
                answers = self._converse(method, messages)
            elif rpc.server_streams:
                answers = list(method(messages[0], timeout=PATIENCE_S))
            else:
                answers = [method(messages[0], timeout=PATIENCE_S)]
        except grpc.RpcError as error:
            failed: Any = error
            metadata = dict(failed.trailing_metadata() or ())
            return _refused(failed.code().name, failed.details(), metadata, len(messages))
        return Outcome("", "", "", "", answers, len(messages))

    def _converse(self, method: Any, messages: Sequence[bytes]) -> list[bytes]:
        answers: list[bytes] = []
        answered = threading.Event()

        def requests() -> Iterator[bytes]:
            yield from messages
            answered.wait(PATIENCE_S)

        try:
            for answer in method(requests(), timeout=PATIENCE_S):
                answers.append(answer)
                answered.set()
        finally:
            answered.set()
        return answers

    def restart(self) -> bool:
        """See :class:`Server`."""
        before = kept(self.serving)
        self.close()
        self._start()
        return kept(self.serving) == before

    def close(self) -> None:
        """See :class:`Server`."""
        if self.shard is not None:
            self.channel.close()
            self.shard.stop()
            self.shard = None


_ANY_LENGTH = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
