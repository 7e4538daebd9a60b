"""Whether a follower has what its leaders have: random rows of both, compared.

A follower that packs its rows has to answer exactly what packing the leader's row gives, because packing has one
result (``native/quantize.h``), so a difference of one bit shows. A row that changes meanwhile is looked at again, and
so is one that differs, until the time is over: the follower may not have it yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from embedstore.client import RemoteStore
from embedstore.errors import InvalidArgumentError
from embedstore.interface import Rows
from embedstore.row_formats import as_row_format
from embedstore.session import decoded_from
from embedstore.spec import TableSpec
from embedstore.table import Table
from embedstore.v1 import admin_pb2

PAUSE_S = 0.05
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Parity:
    """What was found of one table. ``different``: ids whose rows are not what they have to be; ``moving``: how many
    changed whenever they were looked at; of finite numbers ``error_max``: the largest difference, which packing makes,
    ``error_l2``: of all rows together, relative."""

    table: str
    row_format: str
    rows: int
    equal: int
    moving: int
    different: tuple[int, ...]
    error_max: float
    error_l2: float


def compare(
    leaders: RemoteStore,
    follower: RemoteStore,
    table: str,
    *,
    num_rows: int,
    timeout_s: float,
    pause: Callable[[float], None] = time.sleep,
) -> Parity:
    """Look at about ``num_rows`` random rows of the leaders until all are equal, or the time is over.

    :class:`InvalidArgumentError` for a ``follower`` that is none: a standby's address leads to its leaders themselves.
    """
    _check_follower(follower)
    spec = leaders.spec(table)
    row_format = _row_format(follower, table)
    ids = waiting = leaders.sample(table, num_rows)
    deadline_s = time.monotonic() + timeout_s
    moving = np.zeros(0, np.uint64)
    squares = errors = largest = 0.0
    while True:
        before = leaders.pull({table: waiting}, meta=True)[table]
        there = follower.pull({table: waiting}, meta=True)[table]
        after = leaders.pull({table: waiting}, meta=True)[table]
        still = _same(before, after)
        expected = _packed(spec, row_format, waiting, before)
        equal = still & _same(expected, there)
        true = before.embeddings[equal].astype(np.float64)
        finite = np.isfinite(true)
        apart = there.embeddings[equal][finite] - true[finite]
        largest = max(largest, float(np.abs(apart).max(initial=0.0)))
        errors += float(np.square(apart).sum())
        squares += float(np.square(true[finite]).sum())
        moving, waiting = waiting[~still], waiting[~equal]
        if not len(waiting) or time.monotonic() >= deadline_s:
            break
        pause(PAUSE_S)
    different = np.setdiff1d(waiting, moving)
    return Parity(
        table,
        row_format,
        len(ids),
        len(ids) - len(waiting),
        len(moving),
        tuple(different.tolist()),
        largest,
        float(np.sqrt(errors / squares)) if squares else 0.0,
    )


def _check_follower(follower: RemoteStore) -> None:
    answer = follower.peers.call(0, "Topology", admin_pb2.TopologyRequest().SerializeToString())
    address = follower.peers.address(0)
    if not decoded_from(address, admin_pb2.TopologyResponse.FromString, answer).follower:
        raise InvalidArgumentError("follower", f"must be a serving follower: {address} answers, a shard")


def _row_format(follower: RemoteStore, table: str) -> str:
    request = admin_pb2.DescribeTableRequest(table=table).SerializeToString()
    answer = follower.peers.call(0, "DescribeTable", request)
    return decoded_from(follower.peers.address(0), admin_pb2.DescribeTableResponse.FromString, answer).row_format


def _packed(spec: TableSpec, row_format: str, ids: np.ndarray, rows: Rows) -> Rows:
    """As a follower with this format answers once it has these rows; those without a row stay as they are."""
    if as_row_format(row_format) == "fp32":
        return rows
    unbounded = replace(spec, num_chunks=1, admission=None, ttl_s=None, rows_max=None, bytes_max=None)
    table = Table(unbounded, embeddings_only=True, rows=as_row_format(row_format))
    packable = np.nan_to_num(rows.embeddings, nan=0.0, posinf=FLOAT16_MAX, neginf=-FLOAT16_MAX)
    table.assign(ids[rows.found], packable[rows.found], now_ms=0)
    return replace(rows, embeddings=table.pull(ids))


def _same(a: Rows, b: Rows) -> np.ndarray:
    """Which rows are equal to the last bit, with what is known of them."""
    same: np.ndarray = (a.embeddings.view(np.uint32) == b.embeddings.view(np.uint32)).all(axis=1)
    for column in ("found", "updates", "first_seen_s", "last_seen_s"):
        same = same & (getattr(a, column) == getattr(b, column))
    return same
