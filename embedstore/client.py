"""The store of several shard servers, behind the calls of the embedded one.

Batches are checked, duplicates folded, split by shard, sent side by side and put together again. A call that reaches
several shards raises only when the last of them has answered; repeating a push with the same origins is always safe,
because a shard that has it already skips it. Updates without an origin carry a stream of the client
(:mod:`embedstore.updates`). When other shards take over, calls go on there (:mod:`embedstore.cluster`). Every method
may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from embedstore import _native, dense, messages, wire
from embedstore.batches import (
    CheckedPush,
    Keys,
    check_finite,
    push_part,
)
from embedstore.cluster import Cluster, discover
from embedstore.credentials import Credentials
from embedstore.degraded import OnUnavailable, check_on_unavailable
from embedstore.errors import ReadOnlyError, StaleGenerationError, UnavailableError
from embedstore.interface import (
    CheckpointResult,
    Ids,
    Origin,
    PushResult,
    StreamState,
    SweepResult,
    TablePush,
    as_ids,
    as_rows,
    check_position,
    check_stream_name,
    check_sweep,
)
from embedstore.origins import check_event_time, check_origins
from embedstore.peers import Patience
from embedstore.reads import RemoteReader
from embedstore.routes import Call, Route
from embedstore.row_cache import RowCache, check_cache
from embedstore.session import decoded, decoded_from
from embedstore.table_set import check_tables
from embedstore.updates import Update, send
from embedstore.v1 import admin_pb2, store_pb2

_native.tune_allocator()

OPEN_ATTEMPTS_MAX = 8


def connect(
    addresses: str | Iterable[str],
    *,
    timeout_s: float = 10.0,
    retry_s: float = 30.0,
    slow_timeout_s: float = 600.0,
    credentials: Credentials | None = None,
    on_unavailable: OnUnavailable = "raise",
    max_age_ms: int | None = None,
    cache_rows_max: int | None = None,
) -> RemoteStore:
    """A store on the shard servers at ``addresses`` ("host:port,host:port"); any one member that knows all is enough.

    ``timeout_s``: for one attempt of a call; ``retry_s``: for all attempts together, after which
    :class:`UnavailableError` names the address; ``slow_timeout_s``: for a checkpoint, a dense set or a scan.
    ``credentials``: TLS and token; those of the environment when not given
    (:meth:`embedstore.credentials.Credentials.from_environment`). ``on_unavailable="default"``: a pull whose patience
    with a shard has ended reads that shard's ids as the table's default, and says which (:class:`Pulled`).
    ``max_age_ms``: keep rows that were pulled for so long, at most ``cache_rows_max`` (262,144) of each table and
    dtype, and serve pulls from them; such a store only reads.
    """
    check_on_unavailable(on_unavailable)
    cache = check_cache(max_age_ms, cache_rows_max)
    credentials = Credentials.from_environment() if credentials is None else credentials
    cluster = discover(addresses, Patience(timeout_s, retry_s), credentials)
    kind = RemoteStore if cache is None else CachedStore
    return kind(cluster, slow_timeout_s=slow_timeout_s, on_unavailable=on_unavailable, cache=cache)


class RemoteStore(RemoteReader):
    """See the module and :class:`embedstore.interface.Store`."""

    def __init__(
        self,
        peers: Cluster,
        *,
        slow_timeout_s: float = 600.0,
        on_unavailable: OnUnavailable = "raise",
        cache: RowCache | None = None,
    ) -> None:
        super().__init__(peers, slow_timeout_s=slow_timeout_s, on_unavailable=on_unavailable, cache=cache)
        self._generations: dict[str, int] = {}

    def __enter__(self) -> RemoteStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and let the connections go; the servers stay. Twice is harmless."""
        self.peers.close()
        self._silences.close()

    # -- writing

    def push(
        self,
        tables: Mapping[str, TablePush | tuple[Ids, Any]],
        *,
        origins: Sequence[Origin] = (),
        event_time_ms: int | None = None,
    ) -> PushResult:
        """See :class:`embedstore.interface.Store`. Shards are all-or-nothing each; see the module about several."""
        self.peers.check_open()
        check_tables(tables)
        origins = tuple(origins)
        check_origins(origins)
        check_event_time("event_time_ms", event_time_ms)
        push = self.with_fresh_specs(list(tables), lambda: self._checked(tables))
        if origins:
            return self._push_all(push, origins, event_time_ms)

        def request(part: CheckedPush, epoch: int, origin: Origin) -> bytes:
            return wire.encode_push_request(epoch, part.tables(), [origin], None, event_time_ms)

        answers, lost = send(self, Update("Push", request, store_pb2.PushResponse.FromString), push)
        repeated = bool(answers) and all(answer.repeated_push for answer in answers)
        return PushResult(repeated=repeated, lost_updates=lost)

    def _checked(self, tables: Mapping[str, TablePush | tuple[Ids, Any]]) -> CheckedPush:
        num_shards = len(self.peers)
        specs = [(self.spec(name), value) for name, value in tables.items()]
        parts = [(spec, push_part(spec, value, num_shards)) for spec, value in specs]
        return CheckedPush(parts, finite=num_shards > 1)

    def _push_all(self, push: CheckedPush, origins: Sequence[Origin], event_time_ms: int | None) -> PushResult:
        with self._lock:
            generations = {origin.stream: self._generations.get(origin.stream, 0) for origin in origins}

        def plan(route: Route) -> list[Call]:
            by_shard = push.split(len(route))
            tables = [by_shard[shard].tables() if shard in by_shard else [] for shard in range(len(route))]
            requests = [
                wire.encode_push_request(route.epoch, parts, origins, generations, event_time_ms) for parts in tables
            ]
            return [Call(shard, "Push", request) for shard, request in enumerate(requests)]

        first = self.peers.attempt_first(0, "Push", lambda route: plan(route)[0].request if len(route) == 1 else None)
        if first is not None and type(first.outcome) is bytes:
            answers = [decoded_from(first.route.address(0), store_pb2.PushResponse.FromString, first.outcome)]
            streams = [messages.stream_states_from_proto(answers[0].streams)]
        else:
            replies = self.peers.ask(plan, first=first)
            answers = [
                decoded(reply, store_pb2.PushResponse.FromString)
                for reply in replies
                if isinstance(reply.outcome, bytes)
            ]
            streams = [messages.stream_states_from_proto(answer.streams) for answer in answers]
            self.raise_worst([reply.outcome for reply in replies], streams)
        repeated = all(answer.repeated_push for answer in answers)
        return PushResult(messages.merge_stream_states(streams), repeated=repeated)

    def assign(self, table: str, ids: Ids, rows: Any, *, event_time_ms: int | None = None) -> None:
        """See :class:`embedstore.interface.Store`."""
        self.peers.check_open()
        check_event_time("event_time_ms", event_time_ms)

        def prepare() -> Keys:
            spec = self.spec(table)
            keys = as_ids(ids, f"{table}.ids")
            values = as_rows(rows, len(keys), spec.dim, f"{table}.rows")
            check_finite(f"{table}.rows", values)
            return Keys(spec, keys, values)

        def request(part: Keys, epoch: int, origin: Origin) -> bytes:
            assert part.rows is not None
            message = store_pb2.AssignRequest(
                epoch=epoch,
                table=table,
                ids=part.ids.tobytes(),
                dim=part.spec.dim,
                rows=part.rows.tobytes(),
                origin=_origin_to_proto(origin),
                event_time_ms=event_time_ms,
            )
            return message.SerializeToString()

        for page in self.with_fresh_specs([table], prepare).pages():
            send(self, Update("Assign", request, store_pb2.AssignResponse.FromString), page)

    def delete(self, table: str, ids: Ids) -> int:
        """See :class:`embedstore.interface.Store`; after a retried call the count may miss what the first removed."""
        self.peers.check_open()
        keys = Keys(self.spec(table), as_ids(ids, f"{table}.ids"))

        def request(part: Keys, epoch: int, origin: Origin) -> bytes:
            message = store_pb2.DeleteRequest(
                epoch=epoch, table=table, ids=part.ids.tobytes(), origin=_origin_to_proto(origin)
            )
            return message.SerializeToString()

        answers, _ = send(self, Update("Delete", request, store_pb2.DeleteResponse.FromString), keys)
        return sum(answer.deleted for answer in answers)

    def put_dense(self, dense_set: str, tensors: Mapping[str, Any], position: Mapping[str, int]) -> int:
        """See :class:`embedstore.interface.Store`; a set lives whole on one shard."""
        self.peers.check_open()
        dense.check_dense_name("dense_set", dense_set)
        with self._lock:
            generations = {stream: self._generations.get(stream, 0) for stream in position}
        message = dense.to_proto(dense_set, dense.freeze(tensors, position, 0), generations)
        reply = self._ask_owner(dense_set, "PutDense", store_pb2.PutDenseRequest(dense_set=message))
        return decoded(reply, store_pb2.PutDenseResponse.FromString).version

    # -- streams and tables

    def open_stream(self, stream: str, position: int) -> StreamState:
        """See :class:`embedstore.interface.Store`: one generation, the next of all shards', at every shard."""
        check_stream_name("stream", stream)
        check_position("position", position)
        for _ in range(OPEN_ATTEMPTS_MAX):
            known = messages.merge_stream_states(self._watermarks()).get(stream)
            generation = (known.generation if known else 0) + 1
            request = store_pb2.OpenStreamRequest(stream=stream, position=position, generation=generation)
            try:
                answers = self.ask_all("OpenStream", request, store_pb2.OpenStreamResponse)
            except StaleGenerationError:  # another writer was faster, or a retried call had been answered
                continue
            with self._lock:
                self._generations[stream] = generation
            states = [messages.stream_states_from_proto([answer.state]) for answer in answers]
            return messages.merge_stream_states(states)[stream]
        raise UnavailableError(self.peers.address(0), f"stream {stream!r} is being opened by others all the time")

    def checkpoint(self) -> CheckpointResult:
        """See :class:`embedstore.interface.Store`: every shard's, side by side."""
        answers = self.ask_all("Checkpoint", admin_pb2.CheckpointRequest(), admin_pb2.CheckpointResponse, self._slow)
        return CheckpointResult(
            sum(answer.chunks_written for answer in answers),
            sum(answer.bytes_written for answer in answers),
            max(answer.seconds for answer in answers),
        )

    def sweep(
        self, table: str | None = None, *, budget_ms: float | None = None, dry_run: bool = False
    ) -> dict[str, SweepResult]:
        """See :class:`embedstore.interface.Store`: every shard's, side by side; sums over them."""
        check_sweep(budget_ms, dry_run)
        request = admin_pb2.SweepRequest(table=table, budget_ms=budget_ms, dry_run=dry_run)
        answers = self.ask_all("Sweep", request, admin_pb2.SweepResponse, self._slow)
        return messages.merge_swept([messages.sweep_from_proto(answer) for answer in answers])


class CachedStore(RemoteStore):
    """One with ``max_age_ms``: whatever would change the store is refused."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        self.peers.check_open()
        raise ReadOnlyError("a store with max_age_ms only reads: it would not see what it writes")

    push = assign = delete = put_dense = open_stream = _refuse
    create_table = alter_table = drop_table = checkpoint = sweep = _refuse


def _origin_to_proto(origin: Origin) -> store_pb2.Origin:
    return store_pb2.Origin(stream=origin.stream, begin=origin.begin, end=origin.end)
