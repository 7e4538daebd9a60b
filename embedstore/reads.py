"""The half of a remote store that changes nothing: pulls, scans, dense sets and numbers of all shards.

All methods may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

import numpy as np

from embedstore import _native, dense, messages, wire
from embedstore.batches import (
    Answer,
    Lookup,
    Piece,
    fit_one_page,
    pages_of_lookups,
    read_pull,
    repeats_to_fold,
)
from embedstore.cluster import Cluster
from embedstore.degraded import Defaults, OnUnavailable, Pulled
from embedstore.errors import InvalidArgumentError, UnavailableError
from embedstore.interface import (
    IDS_PER_CALL_MAX,
    DenseSet,
    Ids,
    Rows,
    StoreStats,
    StreamState,
    as_row_dtype,
)
from embedstore.placement import chunks_of_ids, chunks_of_shard, shard_of_chunk, shard_of_dense_set
from embedstore.routes import Call, First, Plan, Reply, Route
from embedstore.row_cache import RowCache
from embedstore.session import Session, decoded, decoded_from, with_epoch
from embedstore.silences import Silences
from embedstore.table_set import check_tables
from embedstore.v1 import admin_pb2, store_pb2

_native.tune_allocator()

_ID_DTYPES = (np.dtype(np.uint64), np.dtype(np.int64))


class RemoteReader(Session):
    """See :class:`embedstore.interface.Reader`; ``on_unavailable``: see :func:`embedstore.client.connect`."""

    def __init__(
        self,
        peers: Cluster,
        *,
        slow_timeout_s: float = 600.0,
        on_unavailable: OnUnavailable = "raise",
        cache: RowCache | None = None,
    ) -> None:
        super().__init__(peers)
        self._cache = cache
        self._defaults = Defaults() if on_unavailable == "default" else None
        self._silences = Silences(peers)
        self._slow = replace(
            peers.patience, timeout_s=slow_timeout_s, retry_s=max(slow_timeout_s, peers.patience.retry_s)
        )

    @overload
    def pull(
        self, tables: Mapping[str, Ids], *, meta: Literal[False] = False, dtype: Any = np.float32
    ) -> Pulled[np.ndarray]: ...
    @overload
    def pull(self, tables: Mapping[str, Ids], *, meta: Literal[True], dtype: Any = np.float32) -> Pulled[Rows]: ...
    def pull(
        self, tables: Mapping[str, Ids], *, meta: bool = False, dtype: Any = np.float32
    ) -> Pulled[np.ndarray] | Pulled[Rows]:
        """See :class:`embedstore.interface.Reader`."""
        first = None
        plain = not meta and self._cache is None and not self._silences and (dtype is np.float32 or dtype is np.float16)
        if plain and type(tables) is dict and len(tables) == 1:
            quick = self._pull_from_one(tables, dtype)
            if isinstance(quick, Pulled):
                return quick
            first = quick
        kind = as_row_dtype(dtype)
        check_tables(tables)

        def read() -> Pulled[Any]:
            nonlocal first
            began, first = first, None
            if self._cache is not None and not meta:
                return self._read_through(self._cache, tables, kind)
            lookups = self._lookups(tables)
            answers, missing = self._look_up(lookups, kind, meta=meta, defaults=self._defaults, first=began)
            values: dict[str, Any] = {}
            for lookup, found in zip(lookups, answers, strict=True):
                values[lookup.spec.name] = lookup.meta(found, kind) if meta else lookup.rows(found, kind)
            unavailable = {lookups[i].spec.name: lookups[i].marked(pieces) for i, pieces in missing.items()}
            return Pulled(values, unavailable)

        return self.with_fresh_specs(list(tables), read)

    def _pull_from_one(self, tables: Mapping[str, Ids], dtype: Any) -> Pulled[np.ndarray] | First | None:
        """Rows of one table from the only shard, as far as one message goes and the first attempt brings it.

        Otherwise that attempt, for the general way to go on with; None: it was not made. What the general way does for
        each call costs more than a small pull itself.
        """
        [(name, ids)] = tables.items()
        if type(ids) is not np.ndarray or ids.ndim != 1 or ids.dtype not in _ID_DTYPES or not ids.flags.c_contiguous:
            return None
        specs_epoch, spec = self._specs_epoch, self._specs.get(name)
        width = 4 if dtype is np.float32 else 2
        if spec is None or not fit_one_page(len(ids), spec.dim * width):
            return None
        folded = _native.repeated(ids.view(np.uint64), repeats_to_fold(len(ids)))
        unique = ids if folded is None else folded[0]
        code = wire.FLOAT32 if width == 4 else wire.FLOAT16

        def request(route: Route) -> bytes | None:
            if len(route.peers) != 1 or route.epoch != specs_epoch:
                return None
            return b"".join((wire.request_head(route.epoch, name, code, False, len(unique)), unique.data))

        first = self.peers.attempt_first(0, "Pull", request)
        if first is None or type(first.outcome) is not bytes:
            return first
        rows = wire.own_rows(first.outcome, name, len(unique), spec.dim, code, width)
        if rows is None:
            return first
        return Pulled({name: rows if folded is None else rows.take(folded[1], axis=0)}, {})

    def _read_through(self, cache: RowCache, tables: Mapping[str, Ids], dtype: np.dtype[Any]) -> Pulled[np.ndarray]:
        """A pull that asks only for what the cache does not have."""
        lookups = self._lookups(tables, distinct=True)
        known = [cache.found(lookup.spec, lookup.unique, dtype) for lookup in lookups]
        asked_ms = cache.now_ms()
        missing = [np.flatnonzero(~found) for _, found in known]
        wanted = [i for i, places in enumerate(missing) if len(places)]
        asked = [
            Lookup(n, lookups[i].spec, np.ascontiguousarray(lookups[i].unique[missing[i]]))
            for n, i in enumerate(wanted)
        ]
        answers, lost = self._look_up(asked, dtype, meta=False, defaults=self._defaults) if asked else ([], {})
        unavailable = {}
        for n, i in enumerate(wanted):
            lookup, (rows, _), fresh = lookups[i], known[i], asked[n].rows(answers[n], dtype)
            rows[missing[i]] = fresh
            sure = np.ones(len(fresh), bool)
            if n in lost:
                sure = ~asked[n].marked(lost[n])
                of_all = np.zeros(len(lookup.unique), bool)
                of_all[missing[i]] = ~sure
                unavailable[lookup.spec.name] = lookup.repeated(of_all)
            cache.keep(lookup.spec, asked_ms, asked[n].unique[sure], fresh[sure])
        values = {lookup.spec.name: lookup.repeated(rows) for lookup, (rows, _) in zip(lookups, known, strict=True)}
        return Pulled(values, unavailable)

    def contains(self, table: str, ids: Ids) -> np.ndarray:
        """See :class:`embedstore.interface.Reader`."""

        def read() -> np.ndarray:
            lookups = self._lookups({table: ids})
            [found], _ = self._look_up(lookups, None, meta=True)
            return lookups[0].found(found)

        return self.with_fresh_specs([table], read)

    def _lookups(self, tables: Mapping[str, Ids], *, distinct: bool = False) -> list[Lookup]:
        self.peers.check_open()
        return [Lookup(i, self.spec(name), ids, distinct=distinct) for i, (name, ids) in enumerate(tables.items())]

    def _look_up(
        self,
        lookups: Sequence[Lookup],
        dtype: Any,
        *,
        meta: bool,
        defaults: Defaults | None = None,
        first: First | None = None,
    ) -> tuple[list[list[Answer]], dict[int, list[Piece]]]:
        """Each table's answers; and by table's index the pieces that got none, and read as ``defaults`` instead."""
        asked: list[tuple[int, list[Piece]]] = []
        passed: list[Piece] = []
        num_shards = len(self.peers)
        silent = self._silences.shards() if defaults is not None and self._silences else ()

        def request(pieces: list[Piece], epoch: int) -> bytes:
            pulls = [wire.TablePull(lookups[piece.table].spec.name, piece.ids, dtype, meta) for piece in pieces]
            return wire.encode_pull_request(epoch, pulls)

        def plan(route: Route) -> list[Call]:
            asked.clear()
            passed.clear()
            for shard, pieces in pages_of_lookups(lookups, dtype, len(route)):
                if shard in silent and len(route) == num_shards:
                    passed.extend(pieces)
                else:
                    asked.append((shard, pieces))
            return [Call(shard, "Pull", request(pieces, route.epoch)) for shard, pieces in asked]

        answers: list[list[Answer]] = [[] for _ in lookups]
        missing: dict[int, list[Piece]] = {}
        replies = self.replies(plan, first=first) if defaults is None else self._replies_but_for_silence(plan, first)
        for reply, (shard, pieces) in zip(replies, asked, strict=True):
            if defaults is not None and isinstance(reply.outcome, UnavailableError):
                self._silences.notice(shard, reply.address)
                passed.extend(pieces)
                continue
            for piece, answer in decoded(reply, partial(read_pull, lookups, pieces, dtype=dtype, meta=meta)):
                answers[piece.table].append((piece, answer))
        for piece in passed:
            assert defaults is not None
            rows = defaults.rows(lookups[piece.table].spec, piece.ids, dtype, meta=meta)
            answers[piece.table].append((piece, rows))
            missing.setdefault(piece.table, []).append(piece)
        return answers, missing

    def _replies_but_for_silence(self, plan: Plan, first: First | None) -> list[Reply]:
        """As :meth:`replies`, and a shard that gives no answer is no error."""
        replies = self.peers.ask(plan, first=first)
        self.raise_worst([reply.outcome for reply in replies if not isinstance(reply.outcome, UnavailableError)])
        return replies

    def scan(self, table: str) -> Iterator[tuple[np.ndarray, Rows]]:
        """See :class:`embedstore.interface.Reader`."""
        self.peers.check_open()
        spec = self.with_fresh_specs([table], lambda: self.spec(table))
        return self._scan(store_pb2.ScanRequest(table=table), spec.num_chunks)

    def sample(self, table: str, num_rows: int) -> np.ndarray:
        """Ids of about so many rows, chosen at random and evenly from all chunks; fewer where a chunk has fewer."""
        self.peers.check_open()
        if not 1 <= num_rows <= IDS_PER_CALL_MAX:
            raise InvalidArgumentError("num_rows", f"must be in [1, {IDS_PER_CALL_MAX}], not {num_rows!r}")
        num_chunks = self.with_fresh_specs([table], lambda: self.spec(table)).num_chunks
        request = store_pb2.ScanRequest(table=table, sample_rows=-(-num_rows // num_chunks))
        found = [ids for ids, _ in self._scan(request, num_chunks)]
        return np.concatenate(found) if found else np.empty(0, np.uint64)

    def _scan(self, request: store_pb2.ScanRequest, num_chunks: int) -> Iterator[tuple[np.ndarray, Rows]]:
        """Shard after shard. When their number changes in between, the next one may begin before the last one ended."""
        done, owned = 0, range(0)

        def plan(route: Route) -> Call:
            nonlocal owned
            shard = shard_of_chunk(done, len(route), num_chunks)
            owned = chunks_of_shard(shard, len(route), num_chunks)
            return Call(shard, "Scan", with_epoch(request, route))

        while done < num_chunks:
            for address, data in self.peers.stream(plan, self._slow.timeout_s):
                message = decoded_from(address, store_pb2.ScanResponse.FromString, data)
                ids, rows = decoded_from(address, messages.scan_part_from_proto, message)
                if owned.start == done:
                    yield ids, rows
                else:
                    new = chunks_of_ids(ids, num_chunks) >= done
                    yield ids[new], rows.take(new)
            done = owned.stop

    def get_dense(self, dense_set: str) -> DenseSet:
        """See :class:`embedstore.interface.Reader`."""
        self.peers.check_open()
        dense.check_dense_name("dense_set", dense_set)
        reply = self._ask_owner(dense_set, "GetDense", store_pb2.GetDenseRequest(name=dense_set))
        message = decoded(reply, store_pb2.GetDenseResponse.FromString)
        _, value = decoded_from(reply.address, dense.from_proto, message.dense_set)
        return value

    def _ask_owner(self, dense_set: str, method: str, request: Any) -> Reply:
        def plan(route: Route) -> list[Call]:
            return [Call(shard_of_dense_set(dense_set, len(route)), method, with_epoch(request, route))]

        [reply] = self.replies(plan, self._slow)
        return reply

    def stats(self) -> StoreStats:
        """Sums over the shards."""
        answers = self.ask_all("Stats", admin_pb2.StatsRequest(), admin_pb2.StatsResponse)
        return messages.merge_stats([messages.stats_from_proto(answer) for answer in answers])

    def watermarks(self) -> dict[str, StreamState]:
        """See :class:`embedstore.interface.Store`; of each stream the lowest positions of all shards. A stream that
        only some of them know is not among them."""
        shards = self._watermarks()
        merged = messages.merge_stream_states(shards)
        return {stream: state for stream, state in merged.items() if all(stream in states for states in shards)}

    def _watermarks(self) -> list[dict[str, StreamState]]:
        answers = self.ask_all("Watermarks", store_pb2.WatermarksRequest(), store_pb2.WatermarksResponse)
        return [messages.stream_states_from_proto(answer.streams) for answer in answers]
