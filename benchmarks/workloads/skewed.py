"""Reading as a live stream reads: few ids make up most of a batch, and some have no row yet."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from benchmarks import data, tables
from benchmarks.harness import Line, Settings, race
from benchmarks.reference import keep_memory
from benchmarks.sizes import fitted
from benchmarks.workloads.pull import our_pulls

MISSES = 0.1


def skewed(settings: Settings) -> list[Line]:
    """Pulls with Zipf 1.05, duplicates and 10 % misses, against our own pulls of uniform ids that all have rows."""
    keep_memory()
    settings = fitted(settings, lambda dim: 4 * dim + tables.HEADER_BYTES)
    with ExitStack() as stack:
        store = tables.filled(settings, tables.without_state(), data.some_rows(settings, settings.batch))
        stack.callback(store.close)
        names = [way.name for way in our_pulls(settings, store)]
        uniform = [replace(way, name=f"{way.name}, uniform hits") for way in our_pulls(settings, store)]
        ours = our_pulls(settings, store, partial(data.skewed_batches, settings, misses=MISSES))
        pairs = {mine.name: [reference.name] for mine, reference in zip(ours, uniform, strict=True)}
        budgets = {("ns/row", f"{name}, uniform hits"): 1.0 for name in names}
        case = f"Zipf {data.ZIPF_EXPONENT}, {MISSES:.0%} misses"
        return race(settings, "skewed", case, ours, uniform, budgets=budgets, pairs=pairs)
