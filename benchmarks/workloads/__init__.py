"""The workloads by name, and what each measures. Each is a module here with a function of its name."""

from __future__ import annotations

from importlib import import_module

from benchmarks.harness import Line, Settings

WORKLOADS = {
    "pull": "reading rows in this process, against rows whose place is known and a hash map",
    "push": "Adagrad on existing rows, distinct ids, against known rows, torch sparse Adagrad and a hash map",
    "insert": "new ids into a table that grows from nothing, by assign and by first push; mean and worst batch",
    "remote": "pull, small pulls and push over loopback, against the raw handler and Redis",
    "memory": "what a row takes above its floats: growth of a fresh process, against hash maps",
    "delta": "deltas after 1 % of the rows changed, and of unchanged chunks, against a plain scan and copy",
    "checkpoint": "a checkpoint of rows that all changed, and a restart, against one flat file of the same bytes",
}


def run(name: str, settings: Settings) -> list[Line]:
    """Measure one workload; only its own libraries are imported."""
    measure = getattr(import_module(f"benchmarks.workloads.{name}"), name)
    lines: list[Line] = measure(settings)
    return lines
