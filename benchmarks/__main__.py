"""The one entry point: ``python -m benchmarks pull push insert remote [--rows N] [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.harness import Line, Settings
from benchmarks.reference import BUILD_DIR
from benchmarks.workloads import WORKLOADS, run

ROWS_DEFAULT = 1_000_000
ROUNDS_MIN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen workloads and show each beside its references; returns the exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.list:
        for name, measures in WORKLOADS.items():
            print(f"{name:12} {measures}")
        return 0
    unknown = [name for name in chosen.workloads if name not in WORKLOADS]
    if unknown or not chosen.workloads:
        parser.error(f"choose workloads of: {', '.join(WORKLOADS)}" + (f"; not {unknown[0]}" if unknown else ""))
    settings = _settings(parser, chosen)
    console = Console(width=None if sys.stdout.isatty() else 180)
    if settings.quick:
        console.print("quick: sizes are tiny, the figures mean nothing")
    lines: list[Line] = []
    for name in chosen.workloads:
        measured = run(name, settings)
        report.show(measured, console)
        lines += measured
    if chosen.json:
        with sys.stdout if chosen.json == "-" else Path(chosen.json).open("w") as target:
            report.write_json(lines, target)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--list", action="store_true", help="what the workloads measure")
    parser.add_argument("--rows", type=int, help=f"rows of the table (default {ROWS_DEFAULT:,})")
    parser.add_argument("--dim", type=int, default=64, help="float32 numbers a row (default 64)")
    parser.add_argument("--batch", type=int, help="ids a call (default 8192)")
    parser.add_argument("--rounds", type=int, default=7, help=f"at least {ROUNDS_MIN} (default 7)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? the figures mean nothing")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time where one thread does all the work")
    parser.add_argument("--json", metavar="FILE", help="also write JSON lines there (-: to standard output)")
    parser.add_argument("--dir", type=Path, default=BUILD_DIR, help="where files are written (default build/bench)")
    return parser


def _settings(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> Settings:
    rows = chosen.rows or (4_096 if chosen.quick else ROWS_DEFAULT)
    batch = chosen.batch or (512 if chosen.quick else 8192)
    for name, value in (("--rows", rows), ("--dim", chosen.dim), ("--batch", batch)):
        if value < 1:
            parser.error(f"{name} must be at least 1, not {value}")
    if chosen.rounds < ROUNDS_MIN:
        parser.error(f"--rounds must be at least {ROUNDS_MIN}, not {chosen.rounds}")
    if batch > rows:
        parser.error(f"--batch {batch} is above --rows {rows}")
    if not 0 <= chosen.seed < 1 << 20:
        parser.error("--seed must be in [0, 2**20)")
    chosen.dir.mkdir(parents=True, exist_ok=True)
    return Settings(
        rows=rows,
        dim=chosen.dim,
        batch=batch,
        rounds=chosen.rounds,
        batches_per_round=4 if chosen.quick else 40,
        seed=chosen.seed,
        quick=chosen.quick,
        work_dir=chosen.dir,
        cpu_time=chosen.cpu_time,
    )


if __name__ == "__main__":
    sys.exit(main())
