"""Follows the trainer's metrics file while the trainer writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.demo.result import Point


class MetricsTail:
    """The reports of a metrics file, complete lines only. Belongs to one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._reports: list[dict[str, Any]] = []

    def points(self, start_s: float) -> list[Point]:
        """Every report so far; times count from ``start_s`` (unix seconds)."""
        self._read()
        return [_point(report, start_s) for report in self._reports]

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._reports += [json.loads(line) for line in whole.splitlines()]


def _point(report: dict[str, Any], start_s: float) -> Point:
    return Point(
        time_s=report["time_ms"] / 1000 - start_s,
        hr_at_10=report["window_hr_at_10"],
        mrr_at_10=report["window_mrr_at_10"],
        loss=report["loss"],
        events=report["events"],
        events_per_s=report["window_events_per_s"],
        lag_records=report["lag_records"],
    )
