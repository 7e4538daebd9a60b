"""The store's values as generated messages and back, and what several shards' answers amount to.

Pull and Push go another way (:mod:`embedstore.wire`). Reading checks everything: a bad message is an
:class:`InvalidArgumentError` naming the field. Pure functions, usable from any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from embedstore import dense, freshness
from embedstore.errors import InvalidArgumentError
from embedstore.freshness import Distribution
from embedstore.interface import (
    CheckpointResult,
    FollowerState,
    LeaderState,
    Rows,
    StoreStats,
    StreamState,
    SweepResult,
    TableStats,
)
from embedstore.v1 import admin_pb2, store_pb2

_TABLE_COUNTERS = tuple(each.name for each in fields(TableStats))


def stream_states_to_proto(states: Mapping[str, StreamState]) -> list[store_pb2.StreamState]:
    """Stream states by name as messages."""
    return [
        store_pb2.StreamState(
            stream=stream,
            applied=state.applied,
            durable=state.durable,
            watermarks=state.watermarks,
            generation=state.generation,
        )
        for stream, state in states.items()
    ]


def stream_states_from_proto(messages: Iterable[store_pb2.StreamState]) -> dict[str, StreamState]:
    """Read stream states."""
    return {
        message.stream: StreamState(message.applied, message.durable, tuple(message.watermarks), message.generation)
        for message in messages
    }


def merge_stream_states(shards: Iterable[Mapping[str, StreamState]]) -> dict[str, StreamState]:
    """Where each stream stands over several shards: the lowest positions, every watermark, the highest generation."""
    merged: dict[str, StreamState] = {}
    for states in shards:
        for stream, state in states.items():
            other = merged.get(stream, state)
            merged[stream] = StreamState(
                min(state.applied, other.applied),
                min(state.durable, other.durable),
                tuple(sorted({*state.watermarks, *other.watermarks})),
                max(state.generation, other.generation),
            )
    return merged


def table_stats_to_proto(table: str, stats: TableStats) -> admin_pb2.TableStats:
    """One table's counters as a message."""
    return admin_pb2.TableStats(table=table, **{name: getattr(stats, name) for name in _TABLE_COUNTERS})


def table_stats_from_proto(message: admin_pb2.TableStats) -> TableStats:
    """Read one table's counters."""
    return TableStats(**{name: getattr(message, name) for name in _TABLE_COUNTERS})


def stats_to_proto(stats: StoreStats) -> admin_pb2.StatsResponse:
    """A store's numbers as a message."""
    return admin_pb2.StatsResponse(
        tables=[table_stats_to_proto(name, table) for name, table in stats.tables.items()],
        streams=stream_states_to_proto(stats.streams),
        last_checkpoint_s=stats.last_checkpoint_s,
        uptime_s=stats.uptime_s,
        followers=stats.followers,
        corrupt_chunks=stats.corrupt_chunks,
        standbys=stats.standbys,
        leaders=[
            admin_pb2.LeaderState(
                address=leader.address,
                connected=leader.connected,
                age_s=leader.age_s,
                deltas=leader.deltas,
                reconnects=leader.reconnects,
            )
            for leader in stats.leaders
        ],
        follower_states=[admin_pb2.FollowerState(**asdict(follower)) for follower in stats.follower_states],
        distributions=[
            admin_pb2.Distribution(
                measure=measure, table=table, bounds=found.bounds, counts=found.counts, total=found.total
            )
            for (measure, table), found in stats.distributions.items()
        ],
        dense_sets=[dense.to_proto(name, found) for name, found in stats.dense_sets.items()],
    )


def stats_from_proto(message: admin_pb2.StatsResponse) -> StoreStats:
    """Read a store's numbers."""
    return StoreStats(
        tables={table.table: table_stats_from_proto(table) for table in message.tables},
        streams=stream_states_from_proto(message.streams),
        last_checkpoint_s=message.last_checkpoint_s,
        uptime_s=message.uptime_s,
        followers=message.followers,
        corrupt_chunks=message.corrupt_chunks,
        standbys=tuple(message.standbys),
        leaders=tuple(
            LeaderState(leader.address, leader.connected, leader.age_s, leader.deltas, leader.reconnects)
            for leader in message.leaders
        ),
        follower_states=tuple(
            FollowerState(
                each.peer,
                each.standby,
                each.lag_s,
                each.in_flight_bytes,
                each.sent_bytes,
                each.sent_messages,
                each.calls,
            )
            for each in message.follower_states
        ),
        distributions={
            (each.measure, each.table): Distribution(tuple(each.bounds), tuple(each.counts), each.total)
            for each in message.distributions
        },
        dense_sets=dict(map(dense.from_proto, message.dense_sets)),
    )


def merge_stats(shards: Sequence[StoreStats]) -> StoreStats:
    """Sums over shards; the oldest checkpoint and the shortest uptime."""
    names = dict.fromkeys(name for stats in shards for name in stats.tables)
    tables = {
        name: TableStats(
            **{
                counter: sum(getattr(stats.tables[name], counter) for stats in shards if name in stats.tables)
                for counter in _TABLE_COUNTERS
            }
        )
        for name in names
    }
    return StoreStats(
        tables=tables,
        streams=merge_stream_states(stats.streams for stats in shards),
        last_checkpoint_s=min(stats.last_checkpoint_s for stats in shards),
        uptime_s=min(stats.uptime_s for stats in shards),
        followers=sum(stats.followers for stats in shards),
        standbys=tuple(address for stats in shards for address in stats.standbys),
        corrupt_chunks=sum(stats.corrupt_chunks for stats in shards),
        leaders=tuple(leader for stats in shards for leader in stats.leaders),
        follower_states=tuple(follower for stats in shards for follower in stats.follower_states),
        distributions=freshness.merge(stats.distributions for stats in shards),
        dense_sets={name: found for stats in shards for name, found in stats.dense_sets.items()},
    )


def checkpoint_to_proto(result: CheckpointResult) -> admin_pb2.CheckpointResponse:
    """What a checkpoint wrote, as a message."""
    return admin_pb2.CheckpointResponse(
        chunks_written=result.chunks_written, bytes_written=result.bytes_written, seconds=result.seconds
    )


def sweep_to_proto(swept: Mapping[str, SweepResult]) -> admin_pb2.SweepResponse:
    """What a sweep did, as a message."""
    return admin_pb2.SweepResponse(
        tables=[
            admin_pb2.SweptTable(
                table=table,
                rows_visited=result.rows_visited,
                rows_expired=result.rows_expired,
                rows_moved=result.rows_moved,
                bytes_released=result.bytes_released,
                complete=result.complete,
            )
            for table, result in swept.items()
        ]
    )


def sweep_from_proto(message: admin_pb2.SweepResponse) -> dict[str, SweepResult]:
    """Read what a sweep did."""
    return {
        each.table: SweepResult(
            each.rows_visited, each.rows_expired, each.rows_moved, each.bytes_released, each.complete
        )
        for each in message.tables
    }


def merge_swept(shards: Iterable[Mapping[str, SweepResult]]) -> dict[str, SweepResult]:
    """Sums over shards, by table; complete where every shard was."""
    merged: dict[str, SweepResult] = {}
    for swept in shards:
        for table, result in swept.items():
            merged[table] = merged[table] + result if table in merged else result
    return merged


def scan_part_to_proto(chunk: int, table: str, dim: int, ids: np.ndarray, rows: Rows, part: slice) -> Any:
    """Part of one chunk's rows as a message."""

    def column(values: np.ndarray, dtype: str) -> bytes:
        return np.ascontiguousarray(values[part], dtype).tobytes()

    return store_pb2.ScanResponse(
        chunk=chunk,
        ids=column(ids, "<u8"),
        rows=store_pb2.TableRows(
            table=table,
            dim=dim,
            dtype=store_pb2.DTYPE_FLOAT32,
            rows=column(rows.embeddings, "<f4"),
            found=column(rows.found, "u1"),
            updates=column(rows.updates, "<u4"),
            first_seen_s=column(rows.first_seen_s, "<i8"),
            last_seen_s=column(rows.last_seen_s, "<i8"),
        ),
    )


def scan_part_from_proto(message: store_pb2.ScanResponse) -> tuple[np.ndarray, Rows]:
    """Read part of one chunk's rows: columns of equal length."""

    def column(name: str, data: bytes, dtype: str, width: int = 1) -> np.ndarray:
        if len(data) % (np.dtype(dtype).itemsize * max(width, 1)):
            raise InvalidArgumentError(f"ScanResponse.{name}", f"{len(data)} bytes are no whole entries")
        return np.frombuffer(data, dtype).copy()

    rows = message.rows
    ids = column("ids", message.ids, "<u8")
    embeddings = column("rows.rows", rows.rows, "<f4", rows.dim).reshape(-1, rows.dim)
    value = Rows(
        embeddings,
        column("rows.found", rows.found, "u1").astype(bool),
        column("rows.updates", rows.updates, "<u4"),
        column("rows.first_seen_s", rows.first_seen_s, "<i8"),
        column("rows.last_seen_s", rows.last_seen_s, "<i8"),
    )
    for name in ("embeddings", "found", "updates", "first_seen_s", "last_seen_s"):
        if len(getattr(value, name)) != len(ids):
            raise InvalidArgumentError(f"ScanResponse.rows.{name}", f"must have {len(ids)} entries")
    return ids, value
