"""Reading rows that a serving follower keeps packed."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import data, tables
from benchmarks.harness import Contender, Figures, Line, Settings, per_row, race
from benchmarks.reference import keep_memory
from benchmarks.sizes import fitted
from embedstore.row_formats import RowFormat
from embedstore.table import Table

PACKED: tuple[RowFormat, ...] = ("fp16", "int8", "int4")
BUDGETS = {("ns/row", f"{rows}, fp32 rows"): 1.0 for rows in ("float32", "float16")}
NOW_MS = 1_000


def packed(settings: Settings) -> list[Line]:
    """Pulls from fp16, int8 and int4 rows into float32 and float16, against the same from float32 rows."""
    keep_memory()
    settings = fitted(settings, lambda dim: 8 * dim + 4 * tables.HEADER_BYTES)
    values = data.some_rows(settings, settings.batch)
    plain = _filled(settings, "fp32", values)
    reads: dict[str, type[np.floating[Any]]] = {"float32": np.float32, "float16": np.float16}
    ours, pairs = [], {}
    for rows in PACKED:
        table = _filled(settings, rows, values)
        for name, dtype in reads.items():
            ours.append(_pull(settings, f"Table.pull {name}, {rows} rows", table, dtype))
            pairs[ours[-1].name] = [f"{name}, fp32 rows"]
    references = [_pull(settings, f"{name}, fp32 rows", plain, dtype) for name, dtype in reads.items()]
    return race(settings, "packed", "embeddings only", ours, references, budgets=BUDGETS, pairs=pairs)


def _filled(settings: Settings, rows: RowFormat, values: np.ndarray) -> Table:
    table = Table(tables.spec(settings, tables.without_state()), embeddings_only=True, rows=rows)
    for ids in data.new_ids(settings):
        table.assign(ids, values[: len(ids)], now_ms=NOW_MS)
    return table


def _pull(settings: Settings, name: str, table: Table, dtype: type[np.floating[Any]]) -> Contender:
    out = np.empty((settings.batch, settings.dim), dtype)

    def run(number: int) -> Figures:
        batches = [data.ids_of(settings, numbers) for numbers in data.uniform_batches(settings, number)]
        return per_row(settings, lambda ids: table.pull(ids, out=out), batches)

    return Contender(name, run)
