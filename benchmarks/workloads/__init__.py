"""The workloads by name, and what each measures. Each is a module here with a function of its name."""

from __future__ import annotations

from importlib import import_module

from benchmarks.harness import Line, Settings

WORKLOADS = {
    "pull": "reading rows in this process, against rows whose place is known, a hash map and other libraries",
    "skewed": "pulls with Zipf 1.05, duplicates and 10 % misses, against our own pulls of uniform ids",
    "packed": "pulls from float16, int8 and int4 rows, against the same from float32 rows",
    "threads": "two threads that pull against one, and the same of a plain gather",
    "push": "Adagrad, row-wise Adagrad and Adam on distinct ids, against known rows, torch, a map and other libraries",
    "insert": "new ids into a table that grows from nothing, by assign and by first push; mean and worst batch",
    "growth": "pull and push on all rows, against the same on a million",
    "memory": "what a row takes above its floats: growth of a fresh process, against hash maps",
    "expiry": "memory left when nine of ten rows have expired, and after twenty rounds of inserting and expiring",
    "delta": "deltas after 1 % of the rows changed, and of unchanged chunks, against a plain scan and copy",
    "remote": "pull, small pulls and push over loopback, against the raw handler and Redis",
    "follow": "how old a follower's rows are at 20,000 changed rows/s, and what one follower costs its leader",
    "freshness": "events through Kafka, trainer, shards and a follower until a new item's row is served; minutes",
    "checkpoint": "a checkpoint of rows that all changed, against one flat file; pulls beside checkpoints; a restart",
}
GROUPS = {
    "all": tuple(WORKLOADS),
    "table": ("pull", "skewed", "packed", "threads", "push", "insert", "growth", "memory", "expiry", "delta"),
}
"""Names that stand for several workloads."""


def run(name: str, settings: Settings) -> list[Line]:
    """Measure one workload; only its own libraries are imported."""
    measure = getattr(import_module(f"benchmarks.workloads.{name}"), name)
    lines: list[Line] = measure(settings)
    return lines
