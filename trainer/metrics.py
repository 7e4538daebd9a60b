"""How good the trainer is, measured before it learns: windows for people to watch, totals for the record.

Each scored event has one positive, so recall@10 is the share of positives among the first ten, which is HR@10. MRR@10
counts a rank above ten as 0. An item that was not known when it was asked for is a miss.

Times are handed in. Not safe for concurrent use.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TextIO

import numpy as np

from embedstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CUTOFF: Final = 10
WINDOW_TESTS: Final = 4096
WINDOW_LOSSES: Final = 128
RUN_COUNTS: Final = ("tests", "steps", "skipped_steps", "set_aside", "unscored")


@dataclass
class Totals:
    """Counters that a cut keeps. ``tests``, ``hits`` and ``reciprocal_ranks`` are of the scored part alone;
    ``unscored`` are events that would have been scored, but that the store had learnt already when they were read."""

    events: int = 0
    tests: int = 0
    hits: int = 0
    reciprocal_ranks: float = 0.0
    steps: int = 0
    skipped_steps: int = 0
    set_aside: int = 0
    unscored: int = 0


@dataclass
class Metrics:
    """Windows over the last tests and steps, and totals over everything since the first cut.

    ``score_from_ms``: events before it are tested for the windows alone.
    """

    score_from_ms: int = 0
    totals: Totals = field(default_factory=Totals)
    _before: Totals = field(default_factory=Totals)
    _ranks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _losses: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))

    def tested(self, ranks: np.ndarray, event_time_ms: np.ndarray) -> None:
        """Ranks int64 [n] (1 is best) of tests at these event times."""
        self._ranks = np.concatenate([self._ranks, ranks])[-WINDOW_TESTS:]
        scored = ranks[event_time_ms >= self.score_from_ms]
        hits = scored[scored <= CUTOFF]
        self.totals.tests += len(scored)
        self.totals.hits += len(hits)
        self.totals.reciprocal_ranks += float((1.0 / hits).sum())

    def learnt(self, loss: float) -> None:
        """One step with this mean loss; NaN or infinite: it was skipped."""
        self.totals.steps += 1
        if math.isfinite(loss):
            self._losses = np.append(self._losses, loss)[-WINDOW_LOSSES:]
        else:
            self.totals.skipped_steps += 1

    def window(self) -> dict[str, float | int | None]:
        """The windowed measures; None where nothing was measured yet."""
        hits = self._ranks[self._ranks <= CUTOFF]
        count = len(self._ranks)
        hit_rate = len(hits) / count if count else None
        return {
            "window_tests": count,
            "window_hr_at_10": hit_rate,
            "window_mrr_at_10": float((1.0 / hits).sum()) / count if count else None,
            "window_recall_at_10": hit_rate,
            "loss": float(self._losses.mean()) if len(self._losses) else None,
        }

    def scored(self) -> dict[str, float | int | None]:
        """The scored measures and counters."""
        totals = self.totals
        hit_rate = totals.hits / totals.tests if totals.tests else None
        return {
            "events": totals.events,
            "tests": totals.tests,
            "hr_at_10": hit_rate,
            "mrr_at_10": totals.reciprocal_ranks / totals.tests if totals.tests else None,
            "recall_at_10": hit_rate,
            "steps": totals.steps,
            "skipped_steps": totals.skipped_steps,
            "set_aside": totals.set_aside,
            "unscored": totals.unscored,
        }

    def run(self) -> dict[str, int]:
        """What of the counters is of this run, beside its events."""
        return {f"run_{name}": getattr(self.totals, name) - getattr(self._before, name) for name in RUN_COUNTS}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and values for a cut."""
        return {"ranks": self._ranks.copy(), "losses": self._losses.copy()}, dict(vars(self.totals))

    def load_state(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        unknown = set(values) ^ set(vars(self.totals))
        if unknown:
            raise InvalidArgumentError("totals", f"the cut has other counters: {sorted(unknown)}")
        self.totals, self._before = Totals(**values), Totals(**values)
        self._ranks, self._losses = arrays["ranks"], arrays["losses"]


@dataclass
class Rate:
    """Events a second, since the start and lately. ``now_s`` is a monotonic clock's."""

    start_s: float
    events: int = 0
    _marks: list[tuple[float, int]] = field(default_factory=list)

    def add(self, events: int, now_s: float) -> None:
        """Count events that were done at ``now_s``."""
        self.events += events
        if not self._marks or now_s - self._marks[-1][0] >= 0.5:
            self._marks = [*self._marks[-20:], (now_s, self.events)]

    def overall(self, now_s: float) -> float:
        """Events a second since the start."""
        return self.events / max(now_s - self.start_s, 1e-9)

    def recent(self, now_s: float) -> float:
        """Events a second over about the last ten seconds."""
        then_s, then = self._marks[0] if self._marks else (self.start_s, 0)
        return (self.events - then) / (now_s - then_s) if now_s > then_s else self.overall(now_s)


class MetricsFile:
    """JSON lines, one a report, flushed at each; opened for appending, so that a restarted run goes on in it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, report: Mapping[str, Any]) -> None:
        """Append one report."""
        self._file.write(json.dumps(report, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file. Twice is harmless."""
        self._file.close()


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
