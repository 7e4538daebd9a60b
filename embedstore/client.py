"""The store of several shard servers, behind the calls of the embedded one.

Batches are checked, duplicates folded, split by shard, sent side by side and put together again. A call that reaches
several shards raises only when the last of them has answered; repeating a push with the same origins is always safe,
because a shard that has it already skips it. Updates without an origin carry a stream of the client
(:mod:`embedstore.client_streams`). Every method may be called from any thread.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any, Literal, overload

import numpy as np

from embedstore import _native, dense, messages, wire
from embedstore.batches import (
    Answer,
    Lookup,
    Piece,
    check_finite,
    pages_of_lookups,
    pages_of_rows,
    push_part,
    read_pull,
    split_part,
)
from embedstore.client_streams import ClientStreams
from embedstore.errors import (
    LostUpdatesWarning,
    StaleGenerationError,
    UnavailableError,
)
from embedstore.interface import (
    CheckpointResult,
    DenseSet,
    Ids,
    Origin,
    PushResult,
    Rows,
    StoreStats,
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
from embedstore.peers import Call, Patience, Peers, discover
from embedstore.placement import shard_of_dense_set, split
from embedstore.session import Session
from embedstore.spec import TableSpec
from embedstore.table_set import check_tables
from embedstore.v1 import admin_pb2, store_pb2

_native.tune_allocator()

OPEN_ATTEMPTS_MAX = 8


def connect(
    addresses: str | Iterable[str],
    *,
    timeout_s: float = 10.0,
    retry_s: float = 30.0,
    slow_timeout_s: float = 600.0,
) -> RemoteStore:
    """A store on the shard servers at ``addresses`` ("host:port,host:port"); any one member that knows all is enough.

    ``timeout_s``: for one attempt of a call; ``retry_s``: for all attempts together, after which
    :class:`UnavailableError` names the address; ``slow_timeout_s``: for a checkpoint, a dense set or a scan.
    """
    return RemoteStore(discover(addresses, Patience(timeout_s, retry_s)), slow_timeout_s=slow_timeout_s)


class RemoteStore(Session):
    """See the module and :class:`embedstore.interface.Store`."""

    def __init__(self, peers: Peers, *, slow_timeout_s: float = 600.0) -> None:
        super().__init__(peers)
        self._slow = replace(
            peers.patience, timeout_s=slow_timeout_s, retry_s=max(slow_timeout_s, peers.patience.retry_s)
        )
        self._streams = ClientStreams(len(peers))
        self._generations: dict[str, int] = {}

    def __enter__(self) -> RemoteStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and let the connections go; the servers stay. Twice is harmless."""
        self.peers.close()

    # -- reading

    @overload
    def pull(
        self, tables: Mapping[str, Ids], *, meta: Literal[False] = False, dtype: Any = np.float32
    ) -> dict[str, np.ndarray]: ...
    @overload
    def pull(self, tables: Mapping[str, Ids], *, meta: Literal[True], dtype: Any = np.float32) -> dict[str, Rows]: ...
    def pull(
        self, tables: Mapping[str, Ids], *, meta: bool = False, dtype: Any = np.float32
    ) -> dict[str, np.ndarray] | dict[str, Rows]:
        """See :class:`embedstore.interface.Reader`; ``dtype`` float16 halves what travels and what is returned."""
        wire.dtype_code(dtype)
        kind = np.dtype(dtype)
        check_tables(tables)

        def read() -> dict[str, Any]:
            lookups = self._lookups(tables)
            answers = self._look_up(lookups, kind, meta=meta)
            return {
                lookup.spec.name: lookup.meta(found, kind) if meta else lookup.rows(found, kind)
                for lookup, found in zip(lookups, answers, strict=True)
            }

        return self.with_fresh_specs(list(tables), read)

    def contains(self, table: str, ids: Ids) -> np.ndarray:
        """See :class:`embedstore.interface.Reader`."""

        def read() -> np.ndarray:
            lookups = self._lookups({table: ids})
            [found] = self._look_up(lookups, None, meta=True)
            return lookups[0].found(found)

        return self.with_fresh_specs([table], read)

    def _lookups(self, tables: Mapping[str, Ids]) -> list[Lookup]:
        self.peers.check_open()
        return [Lookup(i, self.spec(name), ids, len(self.peers)) for i, (name, ids) in enumerate(tables.items())]

    def _look_up(self, lookups: Sequence[Lookup], dtype: Any, *, meta: bool) -> list[list[Answer]]:
        pages = pages_of_lookups(lookups, dtype)
        calls = [Call(shard, "Pull", self._pull_request(lookups, pieces, dtype, meta=meta)) for shard, pieces in pages]
        answers: list[list[Answer]] = [[] for _ in lookups]
        for (shard, pieces), data in zip(pages, self.answers(calls), strict=True):
            read = partial(read_pull, lookups, pieces, dtype=dtype, meta=meta)
            for piece, answer in self.decoded(shard, read, data):
                answers[piece.table].append((piece, answer))
        return answers

    def _pull_request(self, lookups: Sequence[Lookup], pieces: list[Piece], dtype: Any, *, meta: bool) -> bytes:
        return wire.encode_pull_request(
            self.topology.epoch,
            [wire.TablePull(lookups[piece.table].spec.name, piece.ids, dtype, meta) for piece in pieces],
        )

    def scan(self, table: str) -> Iterator[tuple[np.ndarray, Rows]]:
        """See :class:`embedstore.interface.Reader`."""
        self.peers.check_open()
        self.with_fresh_specs([table], lambda: self.spec(table))
        request = store_pb2.ScanRequest(epoch=self.topology.epoch, table=table).SerializeToString()
        return self._scan(request)

    def _scan(self, request: bytes) -> Iterator[tuple[np.ndarray, Rows]]:
        for shard in range(len(self.peers)):
            for data in self.peers.stream(shard, "Scan", request, self._slow.timeout_s):
                message = self.decoded(shard, store_pb2.ScanResponse.FromString, data)
                yield self.decoded(shard, messages.scan_part_from_proto, message)

    def get_dense(self, dense_set: str) -> DenseSet:
        """See :class:`embedstore.interface.Reader`."""
        self.peers.check_open()
        dense.check_dense_name("dense_set", dense_set)
        request = store_pb2.GetDenseRequest(epoch=self.topology.epoch, name=dense_set)
        shard = shard_of_dense_set(dense_set, len(self.peers))
        data = self.peers.call(shard, "GetDense", request.SerializeToString(), self._slow)
        message = self.decoded(shard, store_pb2.GetDenseResponse.FromString, data)
        _, value = self.decoded(shard, dense.from_proto, message.dense_set)
        return value

    def stats(self) -> StoreStats:
        """Sums over the shards."""
        request = admin_pb2.StatsRequest(epoch=self.topology.epoch)
        answers = self.ask_all("Stats", request, admin_pb2.StatsResponse)
        return messages.merge_stats([messages.stats_from_proto(answer) for answer in answers])

    def watermarks(self) -> dict[str, StreamState]:
        """See :class:`embedstore.interface.Store`; of each stream the lowest positions of all shards."""
        return messages.merge_stream_states(self._watermarks())

    def _watermarks(self) -> list[dict[str, StreamState]]:
        request = store_pb2.WatermarksRequest(epoch=self.topology.epoch)
        answers = self.ask_all("Watermarks", request, store_pb2.WatermarksResponse)
        return [messages.stream_states_from_proto(answer.streams) for answer in answers]

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
        by_shard = self.with_fresh_specs(list(tables), lambda: self._parts(tables))
        if origins:
            return self._push_all(by_shard, origins, event_time_ms)
        shards = [shard for shard in range(len(self.peers)) if by_shard[shard]]

        def request(shard: int, origin: Origin) -> bytes:
            return wire.encode_push_request(self.topology.epoch, by_shard[shard], [origin], None, event_time_ms)

        answers, lost = self._update(shards, "Push", request, store_pb2.PushResponse)
        repeated = bool(answers) and all(answer.repeated_push for answer in answers)
        return PushResult(repeated=repeated, lost_updates=lost)

    def _parts(self, tables: Mapping[str, TablePush | tuple[Ids, Any]]) -> dict[int, list[wire.TablePart]]:
        by_shard: dict[int, list[wire.TablePart]] = defaultdict(list)
        for name, value in tables.items():
            spec = self.spec(name)
            part_of_all = push_part(spec, value, len(self.peers))
            for shard, part in enumerate(split_part(part_of_all, spec, len(self.peers))):
                if part is not None:
                    by_shard[shard].append(part)
        return by_shard

    def _push_all(
        self, by_shard: Mapping[int, list[wire.TablePart]], origins: Sequence[Origin], event_time_ms: int | None
    ) -> PushResult:
        with self._lock:
            generations = {origin.stream: self._generations.get(origin.stream, 0) for origin in origins}
        calls = [
            Call(
                shard,
                "Push",
                wire.encode_push_request(
                    self.topology.epoch, by_shard.get(shard, ()), origins, generations, event_time_ms
                ),
            )
            for shard in range(len(self.peers))
        ]
        outcomes = self.peers.call_all(calls)
        streams: list[Mapping[str, StreamState]] = []
        repeated = True
        for shard, outcome in enumerate(outcomes):
            if not isinstance(outcome, Exception):
                answer = self.decoded(shard, store_pb2.PushResponse.FromString, outcome)
                streams.append(messages.stream_states_from_proto(answer.streams))
                repeated = repeated and answer.repeated_push
        self.raise_worst(outcomes, streams)
        return PushResult(messages.merge_stream_states(streams), repeated=repeated)

    def assign(self, table: str, ids: Ids, rows: Any, *, event_time_ms: int | None = None) -> None:
        """See :class:`embedstore.interface.Store`."""
        self.peers.check_open()
        check_event_time("event_time_ms", event_time_ms)

        def prepare() -> tuple[TableSpec, np.ndarray, np.ndarray]:
            spec = self.spec(table)
            keys = as_ids(ids, f"{table}.ids")
            values = as_rows(rows, len(keys), spec.dim, f"{table}.rows")
            check_finite(f"{table}.rows", values)
            return spec, keys, values

        spec, keys, values = self.with_fresh_specs([table], prepare)
        by_shard = [
            pages_of_rows(positions, len(keys), spec.dim) for positions in split(keys, spec.num_chunks, len(self.peers))
        ]
        for pages in zip_longest(*by_shard):
            by_page = {
                shard: store_pb2.AssignRequest(
                    epoch=self.topology.epoch,
                    table=table,
                    ids=keys[chosen].tobytes(),
                    dim=spec.dim,
                    rows=values[chosen].tobytes(),
                    event_time_ms=event_time_ms,
                )
                for shard, chosen in enumerate(pages)
                if chosen is not None
            }
            self._update(list(by_page), "Assign", partial(_with_origin, by_page), store_pb2.AssignResponse)

    def delete(self, table: str, ids: Ids) -> int:
        """See :class:`embedstore.interface.Store`; after a retried call the count may miss what the first removed."""
        self.peers.check_open()
        spec = self.spec(table)
        keys = as_ids(ids, f"{table}.ids")
        by_shard = {
            shard: store_pb2.DeleteRequest(
                epoch=self.topology.epoch, table=table, ids=(keys if chosen is None else keys[chosen]).tobytes()
            )
            for shard, chosen in enumerate(split(keys, spec.num_chunks, len(self.peers)))
            if len(keys) and (chosen is None or len(chosen))
        }
        answers, _ = self._update(list(by_shard), "Delete", partial(_with_origin, by_shard), store_pb2.DeleteResponse)
        return sum(answer.deleted for answer in answers)

    def _update(
        self, shards: Sequence[int], method: str, request: Callable[[int, Origin], bytes], kind: Any
    ) -> tuple[list[Any], int]:
        """One update without an origin of its own, at these shards; the answers and how many updates were lost."""
        lost = 0
        answers = []
        with self._streams.take(shards) as streams:
            calls = [Call(shard, method, request(shard, streams[shard].origin())) for shard in shards]
            outcomes = self.peers.call_all(calls)
            for shard, outcome in zip(shards, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    continue
                answer = self.decoded(shard, kind.FromString, outcome)
                answers.append(answer)
                news = streams[shard].applied(answer.lost_updates)
                lost += news
                if news:
                    warnings.warn(LostUpdatesWarning(self.peers.address(shard), news), stacklevel=3)
        self.raise_worst(outcomes, [])
        return answers, lost

    def put_dense(self, dense_set: str, tensors: Mapping[str, Any], position: Mapping[str, int]) -> int:
        """See :class:`embedstore.interface.Store`; a set lives whole on one shard."""
        self.peers.check_open()
        dense.check_dense_name("dense_set", dense_set)
        with self._lock:
            generations = {stream: self._generations.get(stream, 0) for stream in position}
        message = dense.to_proto(dense_set, dense.freeze(tensors, position, 0), generations)
        request = store_pb2.PutDenseRequest(epoch=self.topology.epoch, dense_set=message)
        shard = shard_of_dense_set(dense_set, len(self.peers))
        data = self.peers.call(shard, "PutDense", request.SerializeToString(), self._slow)
        return self.decoded(shard, store_pb2.PutDenseResponse.FromString, data).version

    # -- streams and tables

    def open_stream(self, stream: str, position: int) -> StreamState:
        """See :class:`embedstore.interface.Store`: one generation, the next of all shards', at every shard."""
        check_stream_name("stream", stream)
        check_position("position", position)
        for _ in range(OPEN_ATTEMPTS_MAX):
            known = messages.merge_stream_states(self._watermarks()).get(stream)
            generation = (known.generation if known else 0) + 1
            request = store_pb2.OpenStreamRequest(
                epoch=self.topology.epoch, stream=stream, position=position, generation=generation
            )
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
        request = admin_pb2.CheckpointRequest(epoch=self.topology.epoch)
        answers = self.ask_all("Checkpoint", request, admin_pb2.CheckpointResponse, self._slow)
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
        request = admin_pb2.SweepRequest(epoch=self.topology.epoch, table=table, budget_ms=budget_ms, dry_run=dry_run)
        answers = self.ask_all("Sweep", request, admin_pb2.SweepResponse, self._slow)
        return messages.merge_swept([messages.sweep_from_proto(answer) for answer in answers])


def _with_origin(by_shard: Mapping[int, Any], shard: int, origin: Origin) -> bytes:
    message = by_shard[shard]
    message.origin.CopyFrom(store_pb2.Origin(stream=origin.stream, begin=origin.begin, end=origin.end))
    data: bytes = message.SerializeToString()
    return data
