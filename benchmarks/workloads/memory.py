"""What a row takes besides its floats."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.harness import Absent, Contender, Figures, Line, Settings, race
from benchmarks.processes import ROOT
from benchmarks.reference import absence

FIGURE = "B/row above floats"


def memory(settings: Settings) -> list[Line]:
    """Growth of the resident memory of a fresh process that fills one table."""
    references = [_contender(settings, kind) for kind in ("libcuckoo", "std::unordered_map")]
    ours = [Contender("Table, resident", lambda number: _grown(settings, "ours"))]
    return race(settings, "memory", "SGD table", ours, references, limits={FIGURE: 40.0}, warm_up=False)


def _contender(settings: Settings, kind: str) -> Contender | Absent:
    missing = absence(kind, settings.dim, settings.rows)
    return Absent(kind, missing) if missing else Contender(kind, lambda number: _grown(settings, kind))


def _grown(settings: Settings, kind: str) -> Figures:
    sizes = (settings.rows, settings.dim, settings.batch, settings.seed)
    command = [sys.executable, "-m", "benchmarks.growth", kind, *map(str, sizes)]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return {FIGURE: int(printed) / settings.rows - 4 * settings.dim}
