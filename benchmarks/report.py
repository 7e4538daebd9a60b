"""Showing lines: a table for people, JSON lines for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Line, Spread


def machine() -> dict[str, Any]:
    """What a figure must be read with."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {"cpu": cpu, "cpus": os.cpu_count(), "load_1m": round(load, 2), "python": platform.python_version()}


def write_json(lines: Sequence[Line], target: TextIO) -> None:
    """One JSON object a line; ``machine`` is in each, so that lines of different runs can be told apart."""
    about = machine()
    for line in lines:
        target.write(json.dumps({**line.as_json(), "machine": about}) + "\n")
    target.flush()


def show(lines: Sequence[Line], console: Console) -> None:
    """The table: median, and lowest to highest of the rounds in brackets."""
    if not lines:
        return
    table = Table(title=lines[0].workload, title_justify="left", title_style="bold")
    for heading in ("case", "ours", "figure"):
        table.add_column(heading)
    table.add_column("value", justify="right")
    table.add_column("reference")
    for heading in ("its value", "ratio", "budget"):
        table.add_column(heading, justify="right")
    before: tuple[str, str, str] | None = None
    for line in lines:
        head = (line.case, line.ours, line.figure)
        shown = ("", "", "", "") if head == before else (*head, _number(line.value))
        before = head
        if line.absent is not None:
            table.add_row(*shown, line.reference, f"absent: {line.absent}", "", "")
            continue
        table.add_row(*shown, line.reference, _number(line.reference_value), _number(line.ratio), _budget(line))
    console.print(table)


def _number(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{_digits(spread.median)} ({_digits(spread.low)}-{_digits(spread.high)})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _budget(line: Line) -> str:
    told = []
    if line.budget is not None:
        told.append(f"{'>=' if line.higher_is_better else '<='} {line.budget:.3g}x")
    if line.limit is not None:
        told.append(f"<= {line.limit:g}")
    return f"[{'green' if line.within_budget() else 'red'}]{', '.join(told)}[/]" if told else ""
