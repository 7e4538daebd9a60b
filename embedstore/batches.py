"""Batches on their way to shards: checked, duplicates folded, split, and put together again.

Everything that a shard could refuse in a batch is looked for here first, because a batch for several shards must not be
applied by one and refused by another. Pure functions over arrays, usable from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from embedstore import _native
from embedstore.errors import InvalidArgumentError
from embedstore.interface import Rows, TablePush, as_array, as_ids, as_rows
from embedstore.placement import split
from embedstore.rules import is_finite
from embedstore.spec import TableSpec
from embedstore.wire import TablePart, TableRows, decode_pull_response, dtype_code, match_rows, own_rows

PAGE_BYTES = 32 << 20
"""Largest answer, and largest part of an assign, that one request asks for."""
_META_BYTES = 21
_COUNT_MAX = (1 << 32) - 1


class Piece(NamedTuple):
    """The ids of one table that one request carries; ``positions`` of them among the table's unique ids, None: all."""

    table: int
    shard: int
    ids: np.ndarray
    positions: np.ndarray | None


Answer = tuple[Piece, TableRows]


def repeats_to_fold(num_ids: int) -> int:
    """So many repeats among ids are worth asking for each id only once."""
    return 1 + num_ids // 8


class Lookup:
    """One table's part of a pull: ids to ask for, and how their rows become the answer.

    Repeated ids are asked for once; a few are not worth a copy of all rows, and stay, unless they must be ``distinct``.
    """

    def __init__(self, index: int, spec: TableSpec, ids: Any, *, distinct: bool = False) -> None:
        self.spec = spec
        self.index = index
        self.ids = as_ids(ids, f"{spec.name}.ids")
        folded = _native.repeated(self.ids, 1 if distinct else repeats_to_fold(len(self.ids)))
        self.repeats = folded is not None
        self.unique, self._inverse = self.ids, self.ids
        if folded is not None:
            self.unique, self._inverse, _ = folded

    def pieces(self, bytes_per_row: int, num_shards: int) -> Iterator[Piece]:
        """The unique ids by shard, in pages whose answer stays within bounds."""
        page = max(1, PAGE_BYTES // max(1, bytes_per_row + _META_BYTES))
        for shard, positions in enumerate(split(self.unique, self.spec.num_chunks, num_shards)):
            num_ids = len(self.unique) if positions is None else len(positions)
            if 0 < num_ids <= page:
                ids = self.unique if positions is None else self.unique[positions]
                yield Piece(self.index, shard, ids, positions)
                continue
            for begin in range(0, num_ids, page):
                chosen = np.arange(begin, min(begin + page, num_ids)) if positions is None else positions
                chosen = chosen if positions is None else chosen[begin : begin + page]
                yield Piece(self.index, shard, self.unique[chosen], chosen)

    def rows(self, answers: Sequence[Answer], dtype: Any) -> np.ndarray:
        """Rows of all ids, in their order: [n, dim], writable."""
        pieces = [(piece, answer.rows) for piece, answer in answers]
        if len(pieces) == 1 and pieces[0][0].positions is None:
            [(_, rows)] = pieces
            assert rows is not None
            if self.repeats:
                return rows.take(self._inverse, axis=0)
            return rows if rows.flags.writeable else rows.copy()
        return self._spread(np.empty((len(self.unique), self.spec.dim), dtype), pieces)

    def meta(self, answers: Sequence[Answer], dtype: Any) -> Rows:
        """What is known of all ids, in their order."""
        columns = {"found": bool, "updates": np.uint32, "first_seen_s": np.int64, "last_seen_s": np.int64}
        values = {
            name: self._spread(
                np.zeros(len(self.unique), kind), [(piece, getattr(answer.meta, name)) for piece, answer in answers]
            )
            for name, kind in columns.items()
        }
        return Rows(self.rows(answers, dtype), **values)

    def found(self, answers: Sequence[Answer]) -> np.ndarray:
        """Which of all ids have a row, in their order: bool [n]."""
        found = [(piece, answer.meta.found) for piece, answer in answers if answer.meta is not None]
        return self._spread(np.zeros(len(self.unique), bool), found)

    def marked(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Which of all ids are of these pieces: bool [n]."""
        return self._spread(np.zeros(len(self.unique), bool), [(piece, True) for piece in pieces])

    def _spread(self, out: np.ndarray, answers: Sequence[tuple[Piece, Any]]) -> np.ndarray:
        for piece, values in answers:
            out[slice(None) if piece.positions is None else piece.positions] = values
        return self.repeated(out)

    def repeated(self, values: np.ndarray) -> np.ndarray:
        """Values of the unique ids, for all ids in their order."""
        return values.take(self._inverse, axis=0) if self.repeats else values


def fit_one_page(num_ids: int, bytes_per_row: int) -> bool:
    """Whether there are ids, and one answer holds all their rows."""
    return 0 < num_ids * (bytes_per_row + _META_BYTES) <= PAGE_BYTES


def pages_of_lookups(lookups: Sequence[Lookup], dtype: Any, num_shards: int) -> list[tuple[int, list[Piece]]]:
    """All pieces of a pull, together in requests as far as their answers stay within bounds: (shard, pieces) each."""
    if num_shards == 1 and len(lookups) == 1:
        [lookup] = lookups
        if fit_one_page(len(lookup.unique), 0 if dtype is None else lookup.spec.dim * dtype.itemsize):
            return [(0, [Piece(lookup.index, 0, lookup.unique, None)])]
    pages: list[tuple[int, list[Piece]]] = []
    filling: dict[int, tuple[list[Piece], int]] = {}
    for lookup in lookups:
        row_bytes = 0 if dtype is None else lookup.spec.dim * dtype.itemsize
        for piece in lookup.pieces(row_bytes, num_shards):
            size = len(piece.ids) * (row_bytes + _META_BYTES)
            pieces, filled = filling.get(piece.shard, ([], 0))
            if not pieces or filled + size > PAGE_BYTES:
                pieces, filled = [], 0
                pages.append((piece.shard, pieces))
            pieces.append(piece)
            filling[piece.shard] = (pieces, filled + size)
    return pages


def read_pull(
    lookups: Sequence[Lookup], pieces: Sequence[Piece], data: bytes, *, dtype: Any, meta: bool
) -> list[Answer]:
    """A shard's answer beside what was asked; :class:`InvalidArgumentError` when it does not fit."""
    if not meta and dtype is not None:
        if len(pieces) == 1:
            [piece] = pieces
            spec = lookups[piece.table].spec
            rows = own_rows(data, spec.name, len(piece.ids), spec.dim, dtype_code(dtype), dtype.itemsize)
            if rows is not None:
                return [(piece, TableRows(spec.name, spec.dim, rows, None))]
        expected = ((lookups[piece.table].spec.name, len(piece.ids), lookups[piece.table].spec.dim) for piece in pieces)
        matched = match_rows(data, expected, dtype)
        if matched is not None:
            return list(zip(pieces, matched, strict=True))
    answers = decode_pull_response(data)
    if len(answers) != len(pieces):
        raise InvalidArgumentError("PullResponse.tables", f"must have {len(pieces)} entries, not {len(answers)}")
    for i, (piece, answer) in enumerate(zip(pieces, answers, strict=True)):
        spec, num_ids, label = lookups[piece.table].spec, len(piece.ids), f"PullResponse.tables[{i}]"
        if answer.table != spec.name:
            raise InvalidArgumentError(f"{label}.table", f"must be {spec.name!r}, not {answer.table!r}")
        if dtype is not None and (answer.rows is None or answer.rows.shape != (num_ids, spec.dim)):
            shape = None if answer.rows is None else answer.rows.shape
            raise InvalidArgumentError(f"{label}.rows", f"must have shape {(num_ids, spec.dim)}, not {shape}")
        if dtype is not None and answer.rows is not None and answer.rows.dtype != dtype:
            raise InvalidArgumentError(f"{label}.dtype", f"must be {dtype}, not {answer.rows.dtype}")
        if meta and (answer.meta is None or len(answer.meta.found) != num_ids):
            raise InvalidArgumentError(f"{label}.found", f"must have {num_ids} entries")
    return list(zip(pieces, answers, strict=True))


def push_part(spec: TableSpec, value: TablePush | tuple[Any, Any], num_shards: int) -> TablePart:
    """A table's part of a push, checked whole, with equal ids folded into one: gradients summed, counts added.

    One shard alone looks itself whether all gradients are finite, before it touches anything.
    """
    push = value if isinstance(value, TablePush) else _pair(spec.name, value)
    name = spec.name
    ids = as_ids(push.ids, f"{name}.ids")
    grads = as_rows(push.grads, len(ids), spec.dim, f"{name}.grads")
    counts = _column(f"{name}.counts", push.counts, len(ids), np.uint32, low=0, high=_COUNT_MAX)
    times = _column(f"{name}.event_times_ms", push.event_times_ms, len(ids), np.int64, low=0, high=2**63 - 1)
    part = _folded(TablePart(name, ids, grads, counts, times, _learning_rate(name, push.lr)))
    if num_shards > 1:
        check_finite(f"{name}.grads", grads)
        if part.grads is not grads:
            check_finite(f"{name}.grads", part.grads, "must be finite when those of equal ids are summed")
    return part


def _pair(name: str, value: Any) -> TablePush:
    try:
        ids, grads = value
    except (TypeError, ValueError):
        raise InvalidArgumentError(name, "must be a TablePush or a pair (ids, grads)") from None
    return TablePush(ids, grads)


def _learning_rate(name: str, lr: Any) -> float | None:
    if lr is None:
        return None
    number = is_finite(lr) or isinstance(lr, np.floating | np.integer)
    if not number or not 0 <= lr < float(np.finfo(np.float32).max):
        raise InvalidArgumentError(f"{name}.lr", f"must be a finite number >= 0, not {lr!r}")
    return float(lr)


def _column(label: str, values: Any, num_ids: int, dtype: Any, *, low: int, high: int) -> np.ndarray | None:
    if values is None:
        return None
    array = as_array(values, label)
    if array.shape != (num_ids,):
        raise InvalidArgumentError(label, f"must have shape {(num_ids,)}, not {array.shape}")
    if num_ids and array.dtype.kind not in "iu":
        raise InvalidArgumentError(label, f"must be integers, not {array.dtype}")
    if num_ids and (int(array.min()) < low or int(array.max()) > high):
        raise InvalidArgumentError(label, f"must lie in [{low}, {high}]")
    return np.ascontiguousarray(array, dtype=dtype)


def check_finite(label: str, rows: np.ndarray, problem: str = "must be finite, row {} is not") -> None:
    """Raise unless all numbers are finite; the sum of all is looked at first, which is one fast pass."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(rows.sum()):
            return
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise InvalidArgumentError(label, problem.format(bad[0]))


def _folded(part: TablePart) -> TablePart:
    repeated = _native.repeated(part.ids, 1)
    if repeated is None:
        return part
    unique, inverse, occurrences = repeated
    order = np.argsort(inverse, kind="stable")
    starts = np.concatenate(([0], np.cumsum(occurrences[:-1], dtype=np.int64)))
    counts = occurrences
    if part.counts is not None:
        counts = np.minimum(np.add.reduceat(part.counts[order].astype(np.uint64), starts), _COUNT_MAX)
    with np.errstate(over="ignore", invalid="ignore"):  # not finite then, which is refused
        grads = np.add.reduceat(part.grads[order], starts, axis=0)
    folded = TablePart(part.table, unique, grads, np.ascontiguousarray(counts, np.uint32), None, part.lr)
    return folded if part.event_times_ms is None else _with_times(folded, part.event_times_ms[order], starts)


def _with_times(part: TablePart, times: np.ndarray, starts: np.ndarray) -> TablePart:
    """The latest time of each id; where the earliest is another, an entry without gradient or count tells it too,
    because a new row's first_seen is the earliest."""
    latest, earliest = np.maximum.reduceat(times, starts), np.minimum.reduceat(times, starts)
    differ = np.flatnonzero(latest != earliest)
    if not len(differ):
        return part._replace(event_times_ms=latest)
    assert part.counts is not None
    return part._replace(
        ids=np.concatenate([part.ids, part.ids[differ]]),
        grads=np.concatenate([part.grads, np.zeros((len(differ), part.grads.shape[1]), part.grads.dtype)]),
        counts=np.concatenate([part.counts, np.zeros(len(differ), np.uint32)]),
        event_times_ms=np.concatenate([latest, earliest[differ]]),
    )


def split_part(part: TablePart, spec: TableSpec, num_shards: int) -> list[TablePart | None]:
    """The part of each shard; None where it has none of the ids."""
    parts: list[TablePart | None] = []
    for positions in split(part.ids, spec.num_chunks, num_shards):
        if positions is None:
            parts.append(part if len(part.ids) else None)
        elif not len(positions):
            parts.append(None)
        else:
            counts, times = part.counts, part.event_times_ms
            parts.append(
                TablePart(
                    part.table,
                    part.ids[positions],
                    part.grads.take(positions, axis=0),
                    None if counts is None else counts[positions],
                    None if times is None else times[positions],
                    part.lr,
                )
            )
    return parts


class CheckedPush(NamedTuple):
    """Each table's part of a push, with its spec. ``finite``: all gradients have been looked at."""

    parts: list[tuple[TableSpec, TablePart]]
    finite: bool

    def tables(self) -> list[TablePart]:
        """What is sent."""
        return [part for _, part in self.parts]

    def split(self, num_shards: int) -> dict[int, CheckedPush]:
        """What each shard gets; those that hold none of the ids are left out."""
        if num_shards > 1 and not self.finite:
            for spec, part in self.parts:
                check_finite(f"{spec.name}.grads", part.grads, "must be finite")
        by_shard: dict[int, CheckedPush] = {}
        for spec, whole in self.parts:
            for shard, mine in enumerate(split_part(whole, spec, num_shards)):
                if mine is not None:
                    by_shard.setdefault(shard, CheckedPush([], finite=num_shards > 1)).parts.append((spec, mine))
        return by_shard


class Keys(NamedTuple):
    """Ids of one table, and rows for them where there are any."""

    spec: TableSpec
    ids: np.ndarray
    rows: np.ndarray | None = None

    def pages(self) -> Iterator[Keys]:
        """Parts of at most :data:`PAGE_BYTES` of float32 rows each."""
        page = max(1, PAGE_BYTES // (4 * self.spec.dim + 8))
        for begin in range(0, len(self.ids), page):
            yield self._at(slice(begin, begin + page))

    def split(self, num_shards: int) -> dict[int, Keys]:
        """What each shard gets; those that hold none of the ids are left out."""
        if not len(self.ids):
            return {}
        chosen = enumerate(split(self.ids, self.spec.num_chunks, num_shards))
        return {shard: self if at is None else self._at(at) for shard, at in chosen if at is None or len(at)}

    def _at(self, chosen: np.ndarray | slice) -> Keys:
        return Keys(self.spec, self.ids[chosen], None if self.rows is None else self.rows[chosen])
