"""The one entry point: ``python -m benchmarks table [--rows N,N] [--quick] [--json FILE] [--markdown FILE]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

from rich.console import Console

from benchmarks import report
from benchmarks.harness import Settings
from benchmarks.peers import VENVS
from benchmarks.reference import BUILD_DIR
from benchmarks.workloads import GROUPS, WORKLOADS, run

ROWS_DEFAULT = 1_000_000
ROUNDS_MIN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen workloads at each size and show each beside its references; returns the exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.list:
        for name, measures in WORKLOADS.items():
            print(f"{name:12} {measures}")
        for name, members in GROUPS.items():
            print(f"{name:12} {', '.join(members)}")
        return 0
    unknown = [name for name in chosen.workloads if name not in WORKLOADS and name not in GROUPS]
    if unknown or not chosen.workloads:
        known = ", ".join([*GROUPS, *WORKLOADS])
        parser.error(f"choose workloads of: {known}" + (f"; not {unknown[0]}" if unknown else ""))
    sizes = [_settings(parser, chosen, rows) for rows in _rows(parser, chosen)]
    console = Console(width=None if sys.stdout.isatty() else 200)
    if chosen.quick:
        console.print("quick: sizes are tiny, the figures mean nothing")
    names = dict.fromkeys(name for word in chosen.workloads for name in GROUPS.get(word, (word,)))
    lines: list[dict[str, Any]] = []
    with _opened(chosen.json) as json_lines:
        for settings in sizes:
            for name in names:
                began_s = monotonic()
                measured = report.as_told(run(name, settings))
                report.show(measured, console)
                console.print(f"  took {monotonic() - began_s:.0f} s", highlight=False)
                if json_lines is not None:
                    report.write_json(measured, json_lines)
                lines += measured
    if not chosen.quick:
        console.print(report.summary(lines), highlight=False)
    with _opened(chosen.markdown) as target:
        if target is not None:
            target.write(report.markdown(lines) + "\n")
    return 0


@contextmanager
def _opened(name: str | None) -> Iterator[TextIO | None]:
    """A file to write, standard output for "-", or nothing."""
    if name is None or name == "-":
        yield None if name is None else sys.stdout
        return
    with Path(name).open("w") as target:
        yield target


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join([*GROUPS, *WORKLOADS]))
    parser.add_argument("--list", action="store_true", help="what the workloads measure")
    parser.add_argument("--rows", help=f"rows of the table, or several counts: N,N,... (default {ROWS_DEFAULT:,})")
    parser.add_argument(
        "--dim", type=int, default=64, help="float32 numbers a row, or fewer when memory is (default 64)"
    )
    parser.add_argument("--batch", type=int, help="ids a call (default 8192)")
    parser.add_argument("--rounds", type=int, default=7, help=f"at least {ROUNDS_MIN} (default 7)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? the figures mean nothing")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time where one thread does all the work")
    parser.add_argument("--json", metavar="FILE", help="also write JSON lines there (-: to standard output)")
    parser.add_argument("--markdown", metavar="FILE", help="also write Markdown there (-: to standard output)")
    parser.add_argument("--dir", type=Path, default=BUILD_DIR, help="where files are written (default build/bench)")
    parser.add_argument("--peers", type=Path, default=VENVS, help="where make bench-peers put other libraries")
    return parser


def _rows(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> list[int]:
    if chosen.rows is None:
        return [4_096 if chosen.quick else ROWS_DEFAULT]
    try:
        return [int(number.replace("_", "")) for number in chosen.rows.split(",")]
    except ValueError:
        parser.error(f"--rows must be numbers with commas between them, not {chosen.rows}")


def _settings(parser: argparse.ArgumentParser, chosen: argparse.Namespace, rows: int) -> Settings:
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
        peers_dir=chosen.peers,
        cpu_time=chosen.cpu_time,
    )


if __name__ == "__main__":
    sys.exit(main())
