"""Reads that go on while a shard is away: its ids read as the table's default, and the answer says which they are."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np

from embedstore.errors import InvalidArgumentError
from embedstore.interface import Rows
from embedstore.spec import TableSpec
from embedstore.table import Table
from embedstore.wire import TableRows

OnUnavailable = Literal["raise", "default"]
V = TypeVar("V")


class Pulled(dict[str, V]):
    """What a pull of a remote store returns: values by table. ``unavailable``: of each table with ids whose shard gave
    no answer, which they are, bool [n]; empty when all shards answered."""

    def __init__(self, values: Mapping[str, V], unavailable: Mapping[str, np.ndarray]) -> None:
        super().__init__(values)
        self.unavailable = dict(unavailable)


class Defaults:
    """What ids without a row read as, by table. Usable from any thread."""

    def __init__(self) -> None:
        self._empty: dict[TableSpec, Table] = {}
        self._lock = threading.Lock()

    def rows(self, spec: TableSpec, ids: np.ndarray, dtype: Any, *, meta: bool) -> TableRows:
        """As a shard that has none of them would answer."""
        pulled = self._table(spec).pull_rows(ids, dtype=np.float32 if dtype is None else dtype)
        embeddings = None if dtype is None else pulled.embeddings
        empty = np.empty((len(ids), 0), np.float32)
        known = Rows(empty, pulled.found, pulled.updates, pulled.first_seen_s, pulled.last_seen_s)
        return TableRows(spec.name, spec.dim, embeddings, known if meta else None)

    def _table(self, spec: TableSpec) -> Table:
        table = self._empty.get(spec)
        if table is None:
            with self._lock:
                self._empty = {each: held for each, held in self._empty.items() if each.name != spec.name}
                table = self._empty[spec] = Table(replace(spec, num_chunks=1))
        return table


def check_on_unavailable(value: Any) -> OnUnavailable:
    """:class:`InvalidArgumentError` unless it is one of the two."""
    if value not in ("raise", "default"):
        raise InvalidArgumentError("on_unavailable", f'must be "raise" or "default", not {value!r}')
    checked: OnUnavailable = value
    return checked
