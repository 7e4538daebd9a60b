"""Showing lines: a table for people, JSON lines for programs, and Markdown made from these.

``python -m benchmarks.report FILE...`` prints the Markdown of files of JSON lines, or puts it into a document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Line

Told = Mapping[str, Any]
HEADINGS = ("case", "ours", "figure", "value", "CPU", "reference", "its value", "its CPU", "ratio", "budget")
RIGHT = frozenset({"value", "CPU", "its value", "its CPU", "ratio", "budget"})
MARKS = ("<!-- numbers: begin -->", "<!-- numbers: end -->")


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


def as_told(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Lines as they are written; ``machine`` is in each, so that lines of different runs can be told apart."""
    about = machine()
    return [{**line.as_json(), "machine": about} for line in lines]


def write_json(lines: Iterable[Told], target: TextIO) -> None:
    """One JSON object a line."""
    for line in lines:
        target.write(json.dumps(line) + "\n")
    target.flush()


def show(lines: Sequence[Told], console: Console) -> None:
    """The tables: median, and lowest to highest of the rounds in brackets."""
    for title, notes, rows in _groups(lines):
        table = Table(title=title, title_justify="left", title_style="bold")
        for heading in HEADINGS:
            table.add_column(heading, justify="right" if heading in RIGHT else "left")
        for row, within in rows:
            colour = {None: "", True: "green", False: "red"}[within]
            table.add_row(*row[:-1], f"[{colour}]{row[-1]}[/]" if colour else row[-1])
        console.print(table)
        for note in notes:
            console.print(f"  {note}", highlight=False)


def markdown(lines: Sequence[Told]) -> str:
    """The same as Markdown."""
    told = []
    if lines:
        about = lines[0]["machine"]
        told += [f"{about['cpu']}, {about['cpus']} CPUs, load {about['load_1m']}, Python {about['python']}.", ""]
    for title, notes, rows in _groups(lines):
        told += [f"### {title}", "", "| " + " | ".join(HEADINGS) + " |"]
        told += ["|" + "|".join("--:" if heading in RIGHT else "---" for heading in HEADINGS) + "|"]
        for row, within in rows:
            verdict = {None: "", True: " met", False: " **missed**"}[within]
            told.append("| " + " | ".join((*row[:-1], row[-1] + verdict)) + " |")
        told += ["", *(f"`{note}`" if note.startswith("python ") else note for note in notes), ""]
    return "\n".join(told)


def summary(lines: Sequence[Told]) -> str:
    """How many budgets are met, and each one that is not."""
    judged = [line for line in lines if line["within_budget"] is not None]
    missed = [line for line in judged if not line["within_budget"]]
    told = [f"{len(judged) - len(missed)} of {len(judged)} budgets met"]
    for line in missed:
        rows, dim = line["parameters"]["rows"], line["parameters"]["dim"]
        what = f"{line['workload']}, {rows:,} rows of {dim}, {line['case']}: {line['ours']} {line['figure']}"
        told.append(f"  missed: {what} {_number(line['value'])}, {_number(line['ratio'])}x {line['reference']}")
    return "\n".join(told)


def _groups(lines: Sequence[Told]) -> Iterable[tuple[str, list[str], list[tuple[tuple[str, ...], bool | None]]]]:
    """Title, notes below, and rows with whether they keep their budget, of each workload and size."""

    def key(line: Told) -> tuple[str, int, int]:
        return line["workload"], line["parameters"]["rows"], line["parameters"]["dim"]

    for (workload, rows, dim), group in groupby(lines, key):
        members = list(group)
        notes = [members[0]["parameters"]["command"]]
        notes += sorted({line["parameters"]["note"] for line in members} - {""})
        shown: list[tuple[tuple[str, ...], bool | None]] = []
        before = None
        for line in members:
            head = (line["case"], line["ours"], line["figure"])
            value: tuple[str, ...] = (
                (*head, _number(line["value"]), _median(line["cpu"])) if head != before else ("",) * 5
            )
            before = head
            absent = f"absent: {line['absent']}" if line["absent"] is not None else _number(line["reference_value"])
            theirs = (line["reference"], absent, _median(line["reference_cpu"]))
            shown.append(((*value, *theirs, _number(line["ratio"]), _budget(line)), line["within_budget"]))
        yield f"{workload}, {rows:,} rows of {dim} numbers", notes, shown


def _number(spread: Told | None) -> str:
    if spread is None:
        return ""
    return f"{_digits(spread['median'])} ({_digits(spread['low'])}-{_digits(spread['high'])})"


def _median(spread: Told | None) -> str:
    return "" if spread is None else _digits(spread["median"])


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _budget(line: Told) -> str:
    told = []
    if line["budget"] is not None:
        told.append(f"{'>=' if line['higher_is_better'] else '<='} {line['budget']:.3g}x")
    if line["limit"] is not None:
        told.append(f"<= {line['limit']:g}")
    return ", ".join(told)


def budgets(lines: Sequence[Told]) -> str:
    """Only what has a budget, one Markdown table for all workloads and sizes."""
    judged = [line for line in lines if line["within_budget"] is not None]
    told = ["| workload | rows x dim | case, figure | ours | reference | ratio | budget | |", "|" + "---|" * 8]
    for line in judged:
        size = f"{line['parameters']['rows']:,} x {line['parameters']['dim']}"
        figure = f"{line['case']}: {line['ours']}, {line['figure']}"
        bound_alone = line["budget"] is None
        theirs = "" if bound_alone else f"{line['reference']}: {_number(line['reference_value'])}"
        ratio = "" if bound_alone else _number(line["ratio"])
        cells = (line["workload"], size, figure, _number(line["value"]), theirs, ratio, _budget(line))
        told.append("| " + " | ".join((*cells, "met" if line["within_budget"] else "**missed**")) + " |")
    return "\n".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines of python -m benchmarks --json")
    parser.add_argument("--budgets", action="store_true", help="only what has a budget, in one table")
    parser.add_argument("--into", type=Path, metavar="DOCUMENT", help="put it between the marks of a document")
    chosen = parser.parse_args()
    lines = [json.loads(text) for file in chosen.files for text in file.read_text().splitlines()]
    told = budgets(lines) if chosen.budgets else markdown(lines)
    if chosen.into is None:
        print(told)
        return
    before, begin, rest = chosen.into.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        parser.error(f"{chosen.into} has no lines {MARKS[0]} and {MARKS[1]}")
    chosen.into.write_text(f"{before}{begin}\n\n{told}\n\n{end}{after}")


if __name__ == "__main__":
    main()
