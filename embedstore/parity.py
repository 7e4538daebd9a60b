"""Whether a follower has what its leaders have: tables, random rows of both sides, and dense sets, compared.

Rows are drawn from the follower as well as from the leaders, because what only the follower has is as wrong as what it
lacks. A follower that packs its rows has to answer exactly what packing the leader's row gives, because packing has one
result (``native/quantize.h``), so a difference of one bit shows. A row that changes meanwhile is looked at again, and
so is one that differs, until the time is over: the follower may not have it yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from embedstore import dense
from embedstore._native import crc32c
from embedstore.client import RemoteStore
from embedstore.errors import DenseSetNotFoundError, InvalidArgumentError, TableNotFoundError
from embedstore.interface import IDS_PER_CALL_MAX, DenseSet, Rows
from embedstore.peers import is_nowhere
from embedstore.row_formats import as_row_format
from embedstore.session import decoded_from
from embedstore.spec import TableSpec
from embedstore.table import Table
from embedstore.v1 import admin_pb2

PAUSE_S = 0.05
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Parity:
    """What was found of one table. ``different``: ids whose rows are not what they have to be, of which the follower
    has ``missing`` not at all and ``extra`` without the leaders; ``moving``: how many changed whenever they were looked
    at; of finite numbers ``error_max``: the largest difference, which packing makes, ``error_l2``: of all rows
    together, relative. ``problem``: why no rows could be compared; "": they were."""

    table: str
    row_format: str = ""
    rows: int = 0
    equal: int = 0
    moving: int = 0
    different: tuple[int, ...] = ()
    missing: int = 0
    extra: int = 0
    error_max: float = 0.0
    error_l2: float = 0.0
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing was found that differs."""
        return not (self.different or self.problem)


@dataclass(frozen=True)
class DenseParity:
    """What was found of one dense set; the leaders' ``version``, 0: they have none. ``moving``: it was published anew
    whenever it was looked at."""

    dense_set: str
    version: int
    equal: bool
    moving: bool
    problem: str

    @property
    def holds(self) -> bool:
        """Whether nothing was found that differs."""
        return not self.problem


def tables_of_both(leaders: RemoteStore, follower: RemoteStore) -> list[str]:
    """The tables that either side has. :class:`InvalidArgumentError` for a ``follower`` that is none."""
    _check_sides(leaders, follower)
    return sorted(leaders.tables().keys() | follower.tables().keys())


def dense_sets_of_both(leaders: RemoteStore, follower: RemoteStore) -> list[str]:
    """The dense sets that either side has. :class:`InvalidArgumentError` for a ``follower`` that is none."""
    _check_sides(leaders, follower)
    return sorted(_dense_names(leaders) | _dense_names(follower))


def compare(
    leaders: RemoteStore,
    follower: RemoteStore,
    table: str,
    *,
    num_rows: int,
    timeout_s: float,
    pause: Callable[[float], None] = time.sleep,
) -> Parity:
    """Look at about ``num_rows`` random rows of the leaders, and as many of the follower, until all are equal, or the
    time is over.

    :class:`InvalidArgumentError` for a ``follower`` that is none: a standby's address leads to its leaders themselves.
    :class:`TableNotFoundError` when neither side has the table.
    """
    if not 1 <= num_rows <= IDS_PER_CALL_MAX // 2:
        raise InvalidArgumentError("num_rows", f"must be in [1, {IDS_PER_CALL_MAX // 2}], not {num_rows!r}")
    _check_sides(leaders, follower)
    deadline_s = time.monotonic() + timeout_s
    while problem := _difference(leaders, follower, table):
        if time.monotonic() >= deadline_s:
            return Parity(table, problem=problem)
        pause(PAUSE_S)
    return _compare_rows(leaders, follower, table, num_rows, deadline_s, pause)


def _difference(leaders: RemoteStore, follower: RemoteStore, table: str) -> str:
    here, there = leaders.tables().get(table), follower.tables().get(table)
    if here is None and there is None:
        raise TableNotFoundError(table)
    if here is None or there is None:
        return f"the {'leaders have' if here is None else 'follower has'} no such table"
    different = here.first_difference(there)
    return f"the follower's table has another {different}" if different else ""


def _compare_rows(
    leaders: RemoteStore,
    follower: RemoteStore,
    table: str,
    num_rows: int,
    deadline_s: float,
    pause: Callable[[float], None],
) -> Parity:
    spec = leaders.spec(table)
    row_format = _row_format(follower, table)
    ids = waiting = np.union1d(leaders.sample(table, num_rows), follower.sample(table, num_rows))
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
        different = still & ~equal
        if equal.all() or time.monotonic() >= deadline_s:
            break
        waiting = waiting[~equal]
        pause(PAUSE_S)
    return Parity(
        table,
        row_format,
        rows=len(ids),
        equal=len(ids) - int(np.count_nonzero(~equal)),
        moving=int(np.count_nonzero(~still)),
        different=tuple(waiting[different].tolist()),
        missing=int(np.count_nonzero(different & before.found & ~there.found)),
        extra=int(np.count_nonzero(different & ~before.found & there.found)),
        error_max=largest,
        error_l2=float(np.sqrt(errors / squares)) if squares else 0.0,
    )


def compare_dense(
    leaders: RemoteStore,
    follower: RemoteStore,
    dense_set: str,
    *,
    timeout_s: float,
    pause: Callable[[float], None] = time.sleep,
) -> DenseParity:
    """Look at version, position and weights of a dense set until they are equal, or the time is over."""
    _check_sides(leaders, follower)
    deadline_s = time.monotonic() + timeout_s
    while True:
        before, there = _get_dense(leaders, dense_set), _get_dense(follower, dense_set)
        problem = _dense_difference(dense_set, before, there)
        after = _get_dense(leaders, dense_set) if problem else before
        moving = before is not after and (before is None or after is None or before.version != after.version)
        if not problem or time.monotonic() >= deadline_s:
            version = 0 if before is None else before.version
            return DenseParity(dense_set, version, not problem, moving, "" if moving else problem)
        pause(PAUSE_S)


def _dense_difference(name: str, here: DenseSet | None, there: DenseSet | None) -> str:
    if here is None or there is None:
        if here is there:
            return ""
        return f"the {'leaders have' if here is None else 'follower has'} no such dense set"
    if here.version != there.version:
        return f"the follower has version {there.version}, the leaders have {here.version}"
    streams = here.position.keys() | there.position.keys()
    for stream in sorted(streams):
        if here.position.get(stream) != there.position.get(stream):
            return f"the follower stands at another position of {stream}"
    own, others = _checksum(name, here), _checksum(name, there)
    return "" if own == others else f"the follower has other weights (crc32c {others:08x}, not {own:08x})"


def _checksum(name: str, dense_set: DenseSet) -> int:
    ordered = DenseSet(dict(sorted(dense_set.tensors.items())), {}, 0)
    return int(crc32c(dense.to_proto(name, ordered).SerializeToString()))


def _get_dense(store: RemoteStore, dense_set: str) -> DenseSet | None:
    try:
        return store.get_dense(dense_set)
    except DenseSetNotFoundError:
        return None


def _dense_names(store: RemoteStore) -> set[str]:
    answers = store.ask_all("ListTables", admin_pb2.ListTablesRequest(), admin_pb2.ListTablesResponse)
    return {name for answer in answers for name in answer.dense_sets}


def _check_sides(leaders: RemoteStore, follower: RemoteStore) -> None:
    address, here = _topology(leaders)
    there_address, there = _topology(follower)
    if not there.follower:
        raise InvalidArgumentError("follower", f"must be a serving follower: {there_address} answers, a shard")
    own = here.follower and here.address == there.address and not is_nowhere(there.address)
    if own or address == there_address:
        raise InvalidArgumentError("follower", f"{there_address} cannot be compared with itself")


def _topology(store: RemoteStore) -> tuple[str, admin_pb2.TopologyResponse]:
    answer = store.peers.call(0, "Topology", admin_pb2.TopologyRequest().SerializeToString())
    address = store.peers.address(0)
    return address, decoded_from(address, admin_pb2.TopologyResponse.FromString, answer)


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
