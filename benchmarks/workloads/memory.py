"""What a row takes besides its floats, and what it takes in all where a follower keeps it packed."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import tables
from benchmarks.harness import Absent, Contender, Figures, Line, Settings, race
from benchmarks.reference import absence
from benchmarks.resident import measured
from benchmarks.sizes import fitted

FIGURE = "B/row above floats"
IN_ALL = "B/row"
PACKED = ("fp16", "int8", "int4")
ROWS_OF_LIMIT = 1_000_000
# Pages do not depend on the weather: a few rounds show that.
ROUNDS_MAX = 3
PARTS = (10, 5, 2, 1)
PARTS_ROWS_MAX = 10_000_000
REFERENCE_ROWS_MAX = 2_000_000


def memory(settings: Settings) -> list[Line]:
    """Growth of the resident memory of a fresh process that fills one table, of all rows and of parts of them.

    How full the index is depends on the number of rows; so a tenth, a fifth and a half of them are measured too, as
    long as these are a million rows or more.
    """
    settings = fitted(settings, lambda dim: 4 * dim + tables.HEADER_BYTES)
    settings = replace(settings, rounds=1 if settings.quick else min(settings.rounds, ROUNDS_MAX))
    counts = [settings.rows // part for part in PARTS if settings.rows <= PARTS_ROWS_MAX]
    counts = [count for count in counts if count >= ROWS_OF_LIMIT] or [settings.rows]
    return [*(line for count in counts for line in _of(replace(settings, rows=count))), *_followers(settings)]


def _of(settings: Settings) -> list[Line]:
    references = [_contender(settings, kind) for kind in ("libcuckoo", "std::unordered_map")]
    ours = [Contender("Table, resident", lambda number: _grown(settings, "ours"))]
    limits = {FIGURE: 40.0} if settings.rows >= ROWS_OF_LIMIT else None
    case = f"SGD table of {settings.rows:,} rows"
    return race(settings, "memory", case, ours, references, limits=limits, warm_up=False)


def _followers(settings: Settings) -> list[Line]:
    """Embeddings without optimizer state, as followers have them."""

    def follower(rows: str) -> Contender:
        return Contender(f"{rows} rows", lambda number: {IN_ALL: measured(settings, rows, "fill") / settings.rows})

    case = f"a follower's table of {settings.rows:,} rows"
    formats = PACKED[-1:] if settings.quick else PACKED
    return race(settings, "memory", case, [follower(rows) for rows in formats], [follower("fp32")], warm_up=False)


def _contender(settings: Settings, kind: str) -> Contender | Absent:
    missing = absence(kind, settings.dim, settings.rows)
    if settings.rows > REFERENCE_ROWS_MAX:
        missing = f"measured up to {REFERENCE_ROWS_MAX:,} rows: filling takes too long"
    return Absent(kind, missing) if missing else Contender(kind, lambda number: _grown(settings, kind))


def _grown(settings: Settings, kind: str) -> Figures:
    return {FIGURE: measured(settings, kind, "fill") / settings.rows - 4 * settings.dim}
