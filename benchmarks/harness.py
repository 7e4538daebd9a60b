"""Measuring: contenders take turns within a round, so that what disturbs the machine disturbs all of them.

A contender's run does a fixed piece of work and returns one or more figures by name. Ratios are taken per round, then
summed up by their median: a slow minute moves both sides and leaves the ratio alone. A figure named "cpu ..." goes
beside the figure it names: wall time far above CPU time tells that the machine was busy with something else.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import gcd
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

Figures = Mapping[str, float]
Budgets = Mapping[tuple[str, str], float]
Pairs = Mapping[str, Collection[str]]
CPU = "cpu "


@dataclass(frozen=True)
class Settings:
    """What the command line chose. ``rows`` rows of ``dim`` float32, ``batch`` ids a call, ``work_dir`` for files,
    ``peers_dir`` with the environments of other libraries.

    ``cpu_time``: where one thread does all the work, count its CPU time: on a machine that others use too, waiting for
    a processor is then left out. ``note``: what the sizes were adapted to, for the reader.
    """

    rows: int
    dim: int
    batch: int
    rounds: int
    batches_per_round: int
    seed: int
    quick: bool
    work_dir: Path
    peers_dir: Path
    cpu_time: bool = False
    note: str = ""

    @property
    def rows_per_round(self) -> int:
        """Rows that one turn of a contender works on."""
        return self.batch * self.batches_per_round

    def command(self, workload: str) -> str:
        """The command line that measures a workload again with these settings."""
        sizes = f"--rows {self.rows} --dim {self.dim} --batch {self.batch} --rounds {self.rounds} --seed {self.seed}"
        options = f"{' --quick' if self.quick else ''}{' --cpu-time' if self.cpu_time else ''}"
        return f"python -m benchmarks {workload} {sizes}{options}"

    def clock(self) -> str:
        """The name of the clock that counts one thread's work."""
        return "thread CPU" if self.cpu_time else "wall"

    def now_s(self) -> float:
        """Seconds on the chosen clock."""
        return thread_time() if self.cpu_time else perf_counter()

    @staticmethod
    def cpu_s() -> float:
        """Seconds of CPU time of this thread."""
        return thread_time()


@dataclass(frozen=True)
class Contender:
    """One way to do the work. ``run(round)`` gives its figures by name ("ns/row", "worst batch ms")."""

    name: str
    run: Callable[[int], Figures]


@dataclass(frozen=True)
class Absent:
    """A reference that cannot be measured here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Spread:
    """Median of the rounds, and the lowest and highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Line:
    """One figure of ours beside one reference. ``ratio`` is ours over the reference; ``budget`` bounds it:
    from above where a lower figure is better, from below where a higher one is. ``limit`` bounds our own value from
    above. ``cpu`` and ``reference_cpu`` are CPU times of the thread for the same work, where they were taken.
    ``absent`` says why there is no reference value.
    """

    workload: str
    case: str
    ours: str
    figure: str
    value: Spread
    reference: str
    cpu: Spread | None = None
    reference_value: Spread | None = None
    reference_cpu: Spread | None = None
    ratio: Spread | None = None
    budget: float | None = None
    limit: float | None = None
    higher_is_better: bool = False
    absent: str | None = None
    rounds: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def within_budget(self) -> bool | None:
        """Whether the value keeps its limit and the ratio its budget; None where there is neither."""
        if self.limit is not None and self.value.median > self.limit:
            return False
        if self.budget is None or self.ratio is None:
            return None if self.limit is None else True
        return self.ratio.median >= self.budget if self.higher_is_better else self.ratio.median <= self.budget

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "within_budget": self.within_budget()}


def race(
    settings: Settings,
    workload: str,
    case: str,
    ours: Sequence[Contender],
    references: Sequence[Contender | Absent],
    *,
    budgets: Budgets | None = None,
    limits: Figures | None = None,
    higher_is_better: bool = False,
    parameters: Mapping[str, Any] | None = None,
    warm_up: bool = True,
    pairs: Pairs | None = None,
) -> list[Line]:
    """Run everyone ``settings.rounds`` times in turns, each round beginning with and going on to another one.

    A line for each figure that ours and a reference both give. ``budgets``: by (figure, reference name); ``limits``: by
    figure. ``pairs``: for each of ours, the references that it is compared with (default all).
    """
    present = [reference for reference in references if isinstance(reference, Contender)]
    everyone = [*ours, *present]
    if warm_up:
        for contender in everyone:
            contender.run(-1)
    measured: dict[str, list[Figures]] = {contender.name: [] for contender in everyone}
    for number in range(settings.rounds):
        for contender in _order(everyone, number):
            measured[contender.name].append(contender.run(number))
    told: dict[str, Any] = {"rows": settings.rows, "dim": settings.dim, "batch": settings.batch}
    told |= {"clock": settings.clock(), "command": settings.command(workload), "note": settings.note}
    told |= parameters or {}
    lines: list[Line] = []
    for mine in ours:
        compared = [reference for reference in references if pairs is None or reference.name in pairs[mine.name]]
        for figure in measured[mine.name][0]:
            if figure.startswith(CPU):
                continue
            values = [figures[figure] for figures in measured[mine.name]]
            cpu = _cpu(measured[mine.name], figure)
            line = Line(workload, case, mine.name, figure, Spread.of(values), "", cpu)
            line = replace(line, parameters=told)
            against = [_against(line, one, values, measured, budgets or {}, higher_is_better) for one in compared]
            kept = [line for line in against if line is not None]
            # Our own bound is told, and counted, once.
            lines += [replace(kept[0], limit=(limits or {}).get(figure)), *kept[1:]] if kept else []
    return lines


def _order(everyone: Sequence[Contender], number: int) -> list[Contender]:
    """Who comes first changes from round to round, and so does who comes after whom and finds its cache lines gone."""
    count = len(everyone)
    steps = [step for step in range(1, count + 1) if gcd(step, count) == 1]
    return [everyone[(number + steps[number % len(steps)] * turn) % count] for turn in range(count)]


def _cpu(measured: Sequence[Figures], figure: str) -> Spread | None:
    taken = [figures[CPU + figure] for figures in measured if CPU + figure in figures]
    return Spread.of(taken) if taken else None


def _against(
    line: Line,
    reference: Contender | Absent,
    values: Sequence[float],
    measured: Mapping[str, Sequence[Figures]],
    budgets: Budgets,
    higher_is_better: bool,
) -> Line | None:
    line = replace(line, reference=reference.name)
    if isinstance(reference, Absent):
        return replace(line, absent=reference.reason)
    if line.figure not in measured[reference.name][0]:
        return None
    others = [figures[line.figure] for figures in measured[reference.name]]
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    return replace(
        line,
        reference_value=Spread.of(others),
        reference_cpu=_cpu(measured[reference.name], line.figure),
        ratio=Spread.of(ratios),
        budget=budgets.get((line.figure, reference.name)),
        higher_is_better=higher_is_better,
        rounds=len(values),
    )


def per_row(settings: Settings, work: Callable[[Any], object], batches: Sequence[Any]) -> Figures:
    """Nanoseconds a row of ``work`` over the batches of one turn, by the chosen clock and by this thread's CPU time."""
    begin_s, begin_cpu_s = settings.now_s(), settings.cpu_s()
    for batch in batches:
        work(batch)
    taken_s, taken_cpu_s = settings.now_s() - begin_s, settings.cpu_s() - begin_cpu_s
    rows_e9 = settings.rows_per_round / 1e9
    return {"ns/row": taken_s / rows_e9, f"{CPU}ns/row": taken_cpu_s / rows_e9}
