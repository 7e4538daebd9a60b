"""What is left of a table's memory when its rows have expired."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import tables
from benchmarks.harness import Absent, Contender, Figures, Line, Settings, race
from benchmarks.reference import absence
from benchmarks.resident import SETTLED, STAYING, TURNS, measured
from benchmarks.sizes import fitted

KEPT = "% of rows' memory kept"
GROWN = f"% of round {SETTLED}'s memory"
ROWS_MAX = 5_000_000
ROWS_OF_LIMIT = 1_000_000
ROUNDS_MAX = 3
REFERENCE = "std::unordered_map, erased"


def expiry(settings: Settings) -> list[Line]:
    """Resident memory after nine of ten rows expired, and after twenty rounds of inserting and expiring all."""
    settings = fitted(settings, lambda dim: 4 * dim + tables.HEADER_BYTES)
    rows = min(settings.rows, ROWS_MAX)
    note = settings.note or (f"{rows:,} of the {settings.rows:,} rows asked for" if rows < settings.rows else "")
    rounds = 1 if settings.quick else min(settings.rounds, ROUNDS_MAX)
    settings = replace(settings, rows=rows, rounds=rounds, note=note)
    turn = replace(settings, rows=max(settings.batch, rows // 5))
    limited = rows >= ROWS_OF_LIMIT
    case = f"{1 - STAYING:.0%} of {rows:,} rows expired, swept"
    expired = _race(settings, case, "expire", KEPT, {KEPT: 25.0} if limited else {})
    case = f"round {TURNS}: {turn.rows:,} rows inserted, all before them expired"
    return [*expired, *_race(turn, case, "turns", GROWN, {GROWN: 105.0} if limited else {})]


def _race(settings: Settings, case: str, mode: str, figure: str, limits: Figures) -> list[Line]:
    def contender(name: str, kind: str) -> Contender:
        return Contender(name, lambda number: {figure: measured(settings, kind, mode)})

    missing = absence("std::unordered_map", settings.dim, settings.rows)
    reference = Absent(REFERENCE, missing) if missing else contender(REFERENCE, "std::unordered_map")
    ours = [contender("Store.sweep, resident", "ours")]
    return race(settings, "expiry", case, ours, [reference], limits=limits, warm_up=False)
