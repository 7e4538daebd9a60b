"""One serving process: a shard with its data, or a follower.

Its life: the port opens (Topology and health answer, everything else is UNAVAILABLE), the store recovers or
synchronises, requests are answered, and at the end the process says that it is not serving, stops accepting, ends its
followers' calls, lets what is in flight finish and writes a last checkpoint.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from embedstore import _native
from embedstore.errors import EmbedstoreError, InvalidArgumentError, UnavailableError
from embedstore.recovery import Recovery
from embedstore.server import admin, embedding
from embedstore.server.doors import Door, Entrance
from embedstore.server.feed import Pace
from embedstore.server.follow import FollowerStore, follow
from embedstore.server.follow_places import follow_calls_max
from embedstore.server.followers import own_name
from embedstore.server.interceptors import Guard, parse
from embedstore.server.leader import SyncServicer
from embedstore.server.membership import newest_record, watch_members
from embedstore.server.metrics import Exposition, Requests, serve_metrics
from embedstore.server.options import ShardOptions
from embedstore.server.scrapes import ScrapeServer
from embedstore.server.security import TokenCheck, Tokens, server_credentials
from embedstore.server.serving import EPOCH_FIRST, Serving
from embedstore.server.standby import Standby
from embedstore.server.takeover import Takeover
from embedstore.status import METADATA_BYTES_MAX, Topology
from embedstore.store import LocalStore, is_store
from embedstore.table_set import TableSet
from embedstore.v1 import sync_pb2
from embedstore.wire import MESSAGE_BYTES_MAX

_native.tune_allocator()

log = logging.getLogger("embedstore.server")
SYNC_SERVICE = "embedstore.v1.SyncService"
SERVICES = (embedding.SERVICE, admin.SERVICE, SYNC_SERVICE)
CUT_OFF_S = 2.0
LEAVE_S = 0.5
"""When no request is left, followers and others that are connected have as long to take leave."""

LOOK_S = 0.1
WATCH_DOORS_S = 1.0
_numbers = itertools.count()
STREAMS_PER_CONNECTION_MAX = 128
OPEN_CALLS_MAX = 32
"""Calls at once of the health and the reflection service."""
SPARE_THREADS = 32
"""For calls that are about to be refused, or are being cut off."""
QUEUED_MAX = 4096
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two processes on one port would share its clients at random
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A connection to a process that stands still, or is gone, is closed, and its calls' threads are free again.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
)


class Shard:
    """A serving process, from :meth:`start` to :meth:`stop`; both are for one thread, requests come in many.

    ``progress`` is told within :meth:`start` how far the recovery is; what it raises ends the start.
    """

    def __init__(self, options: ShardOptions, *, progress: Callable[[Recovery], None] | None = None) -> None:
        self.options = options
        self._progress = progress
        self._serving = Serving(
            Topology(EPOCH_FIRST, tuple(options.peers), options.num_shards),
            options.shard,
            follower=bool(options.follow),
            standby=options.standby,
            advertised=options.advertise or (options.peers[options.shard] if options.peers else ""),
            credentials=options.credentials,
        )
        self._tokens = Tokens(options.tokens) if options.tokens is not None else None
        self._health = health.HealthServicer(experimental_non_blocking=False)
        self._stop = threading.Event()
        self._store: LocalStore | FollowerStore | None = None
        self._standby: Standby | None = None
        self._sync: SyncServicer | None = None
        self._background: list[threading.Thread] = []
        self._ready = threading.Event()
        self._measured = Requests()
        self._metrics: ScrapeServer | None = None
        self._requests = f"request-{next(_numbers)}"
        self._door = Door(options.requests_max, self._measured)
        self._open_door = Door(OPEN_CALLS_MAX, self._measured, all_may_go=True)
        self._threads_max = options.requests_max + follow_calls_max(options.followers_max)
        self._threads_max += OPEN_CALLS_MAX + SPARE_THREADS
        self._pool = ThreadPoolExecutor(self._threads_max, thread_name_prefix=self._requests)
        self._guard = Guard(lambda: self._serving.topology, options.workers, self._measured)
        self._server = self._new_server()

    @property
    def address(self) -> str:
        """host:port as it was opened; known after :meth:`start`."""
        return self._serving.address

    @property
    def metrics_address(self) -> str:
        """host:port of the metrics as it was opened; "" without."""
        host = self.options.metrics_listen.rpartition(":")[0]
        return "" if self._metrics is None else f"{host}:{self._metrics.server_address[1]}"

    @property
    def doing(self) -> str:
        """What this process is, in words, the last of which is its address."""
        shard = f"shard {self._serving.shard}/{self.options.num_shards}"
        if self._serving.standby:
            return f"standing by for {shard} on {self.address}"
        if self._serving.fenced:
            return f"replaced, sending callers to {self._serving.successors} from {self.address}"
        return f"serving {'follower' if self._serving.follower else shard} on {self.address}"

    def start(self) -> None:
        """Open the port, then the data. An error (:class:`EmbedstoreError`, :class:`InvalidArgumentError`) leaves
        neither open. A shard is ready when this returns; a follower after :meth:`wait_ready`."""
        self._open_port()
        try:
            self._open_metrics()
            self._open_store()
        except BaseException:
            self._stop.set()
            self._server.stop(0).wait()
            self._close_metrics()
            raise

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until requests are answered."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """Drain, write a last checkpoint, release everything. Requests that take over ``drain_s`` are cut off, and so
        is, as soon as there are none, whoever does not let go of his connection; the log tells where a request is that
        does not even end then."""
        self._stop.set()
        self._health.enter_graceful_shutdown()
        if self._sync is not None:
            self._sync.close()
        self._drain()
        cut_off_s = time.monotonic() + CUT_OFF_S
        # Not for ever: gRPC never lets go of a streaming call that sent several messages it could not read, nor of a
        # connection that takes nothing of what was begun to be sent.
        if not self._server.stop(0).wait(CUT_OFF_S):
            log.warning("some connections could not be cut off")
        self._end_requests(cut_off_s)
        for thread in self._background:
            thread.join()
        self._close_metrics()
        if self._standby is not None:
            self._standby.close()
        if self._store is not None:
            self._store.close()

    def _drain(self) -> None:
        """Accept nothing any more and let requests end. gRPC would wait for an answer on every connection, too, also
        from a process that stands still."""
        deadline_s = time.monotonic() + self.options.drain_s
        stopped = self._server.stop(self.options.drain_s)
        leave_s = time.monotonic() + LEAVE_S
        while not stopped.wait(min(LOOK_S, max(deadline_s - time.monotonic(), 0.0))):
            now_s = time.monotonic()
            if self._guard.busy:
                leave_s = now_s + LEAVE_S
            if now_s >= min(leave_s, deadline_s):
                return

    def _end_requests(self, deadline_s: float) -> None:
        """Let the threads of requests go, and log where those are that do not end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for thread in threading.enumerate():
            if not thread.name.startswith(f"{self._requests}_") or thread is threading.current_thread():
                continue
            thread.join(max(0.0, deadline_s - time.monotonic()))
            frame = sys._current_frames().get(thread.ident or 0)
            if thread.is_alive() and frame is not None:
                log.warning("a request does not end:\n%s", "".join(traceback.format_stack(frame)).rstrip())

    # -- opening

    def _new_server(self) -> grpc.Server:
        server = grpc.server(
            self._pool,
            interceptors=[TokenCheck(self._tokens, self._measured)] if self._tokens is not None else [],
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=self._threads_max + QUEUED_MAX,
        )
        guard = self._guard
        Entrance(server, self._door).add_generic_rpc_handlers(
            (embedding.EmbeddingService(self._serving).handler(guard), admin.AdminService(self._serving).handler(guard))
        )
        server.add_generic_rpc_handlers((_WhenReady(self._serving, guard, self._tokens).handler(),))
        beside: Any = Entrance(server, self._open_door)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, beside)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), beside)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        return server

    def _set_health(self, status: Any) -> None:
        for service in ("", *SERVICES):
            self._health.set(service, status)

    def _open_port(self) -> None:
        listen = self.options.listen
        secure = server_credentials(self.options.credentials, mtls=self.options.mtls)
        try:
            port = self._server.add_secure_port(listen, secure) if secure else self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise UnavailableError(listen, "cannot listen there; is the port in use?") from error
        if not port:
            raise UnavailableError(listen, "cannot listen there; is the port in use?")
        self._serving.address = f"{listen.rpartition(':')[0]}:{port}"
        self._server.start()
        self._in_background("doors", self._watch_doors)

    def _open_metrics(self) -> None:
        options = self.options
        if options.metrics_listen:
            exposition = Exposition(self._serving, self._measured)
            self._metrics = serve_metrics(options.metrics_listen, [exposition], options.credentials, mtls=options.mtls)

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.stop()

    def _open_store(self) -> None:
        options = self.options
        if options.standby and not (options.data and is_store(options.data)):
            self._stand_by()
        elif options.follow and not options.standby:
            follower = follow(
                ",".join(options.follow),
                rows=options.rows,
                sync_interval_ms=options.sync_interval_ms,
                credentials=options.credentials,
                name=own_name(self._serving.advertised),
            )
            self._store = follower
            self._serving.receive(follower)
            self._in_background("await-sync", lambda: self._await_sync(follower))
        else:
            store = LocalStore(
                options.data,
                options.tables,
                shard=options.shard,
                num_shards=options.num_shards,
                **self._store_options(),
                progress=self._progress,
            )
            self._store = store
            if options.standby and store.membership.topology is None:
                raise InvalidArgumentError("data", f"{options.data} was left by a takeover that did not end: remove it")
            record = newest_record(self._serving.topology, store, options.follow, options.credentials)
            self._serving.become_shard(record, options.shard)
            self._lead(store)

    def _stand_by(self) -> None:
        options = self.options
        standby = Standby(
            options.follow,
            options.shard,
            options.num_shards,
            self._serving.advertised,
            sync_interval_ms=options.sync_interval_ms,
            credentials=options.credentials,
        )
        self._standby = standby
        self._serving.receive(standby)

        def lead(store: LocalStore) -> None:
            self._store = store
            self._lead(store)

        self._serving.takeover = Takeover(standby, self._serving, options.data, lead, self._store_options())
        self._ready.set()

    def _store_options(self) -> dict[str, Any]:
        return {"durability": self.options.durability, "keep_checkpoints": self.options.keep_checkpoints}

    def _lead(self, store: LocalStore) -> None:
        self._serve(store)
        self._in_background("checkpoints", lambda: self._checkpoints(store))
        self._in_background("members", lambda: watch_members(self._serving, store, self.options.follow, self._stop))

    def _in_background(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._background.append(thread)
        thread.start()

    def _serve(self, store: TableSet) -> None:
        options = self.options
        self._sync = SyncServicer(
            store,
            pace=Pace(options.sync_interval_ms, options.heartbeat_interval_ms),
            followers_max=options.followers_max,
            epoch=lambda: self._serving.topology.epoch,
            refused=partial(self._measured.refuse, "Follow"),
        )
        self._serving.serve(store, self._sync)
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._ready.set()

    # -- in the background

    def _watch_doors(self) -> None:
        while not self._stop.wait(WATCH_DOORS_S):
            self._door.end_overdue()
            self._open_door.end_overdue()

    def _checkpoints(self, store: LocalStore) -> None:
        """One whenever the interval has passed since the last, or enough has changed."""
        due_s = time.monotonic() + self.options.checkpoint_interval_s
        while not self._stop.wait(min(LOOK_S, max(due_s - time.monotonic(), 0.0))):
            if time.monotonic() < due_s and store.changed_bytes() < self.options.checkpoint_bytes:
                continue
            try:
                store.checkpoint()
            except EmbedstoreError as error:  # nothing is lost, and the next round tries again
                log.error("checkpoint failed: %s", error)
                self._stop.wait(LOOK_S)
            due_s = time.monotonic() + self.options.checkpoint_interval_s

    def _await_sync(self, store: FollowerStore) -> None:
        while not self._stop.is_set():
            if store.wait_until(lambda: store.synced or self._stop.is_set(), 0.5) and store.synced:
                self._serve(store)
                return


class _WhenReady:
    """Follow, once there is something to follow."""

    def __init__(self, serving: Serving, guard: Guard, tokens: Tokens | None) -> None:
        self._serving = serving
        self._guard = guard
        self._tokens = tokens

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, ready to be registered. Requests are read here, so that a malformed one is refused as any other
        mistake."""
        method = grpc.stream_stream_rpc_method_handler(self.follow, None, sync_pb2.FollowResponse.SerializeToString)
        return grpc.method_handlers_generic_handler(SYNC_SERVICE, {"Follow": method})

    def follow(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        """See sync.proto."""
        try:
            sync = self._serving.sync()
        except UnavailableError as error:
            self._guard.refuse(error, context, "Follow")
        return sync.Follow((self._checked(data, context) for data in requests), context)

    def _checked(self, data: bytes, context: grpc.ServicerContext) -> Any:
        """Durable waits for standbys, so not everyone who may read may be one."""
        request = parse(sync_pb2.FollowRequest, data)
        if self._tokens is not None and request.wants.HasField("standby"):
            self._tokens.require("admin", context.invocation_metadata())
        return request
