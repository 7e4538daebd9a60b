"""Measuring: contenders take turns within a round, so that what disturbs the machine disturbs all of them.

A contender's run does a fixed piece of work and returns one or more figures by name. Ratios are taken per round, then
summed up by their median: a slow minute moves both sides and leaves the ratio alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

Figures = Mapping[str, float]
Budgets = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Settings:
    """What the command line chose. ``rows`` rows of ``dim`` float32, ``batch`` ids a call, ``work_dir`` for files.

    ``cpu_time``: where one thread does all the work, count its CPU time: on a machine that others use too, waiting for
    a processor is then left out.
    """

    rows: int
    dim: int
    batch: int
    rounds: int
    batches_per_round: int
    seed: int
    quick: bool
    work_dir: Path
    cpu_time: bool = False

    def clock(self) -> str:
        """The name of the clock that counts one thread's work."""
        return "thread CPU" if self.cpu_time else "wall"

    def now_s(self) -> float:
        """Seconds on the chosen clock."""
        return thread_time() if self.cpu_time else perf_counter()


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
    """One figure of ours beside one reference. ``ratio`` is ours over the reference; ``budget`` bounds it (DESIGN 13):
    from above where a lower figure is better, from below where a higher one is. ``limit`` bounds our own value from
    above. ``absent`` says why there is no reference value.
    """

    workload: str
    case: str
    ours: str
    figure: str
    value: Spread
    reference: str
    reference_value: Spread | None = None
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
) -> list[Line]:
    """Run everyone ``settings.rounds`` times in turns, beginning with another one each round.

    A line for each figure that ours and a reference both give. ``budgets``: by (figure, reference name); ``limits``: by
    figure.
    """
    present = [reference for reference in references if isinstance(reference, Contender)]
    everyone = [*ours, *present]
    if warm_up:
        for contender in everyone:
            contender.run(-1)
    measured: dict[str, list[Figures]] = {contender.name: [] for contender in everyone}
    for number in range(settings.rounds):
        turn = number % len(everyone)
        for contender in [*everyone[turn:], *everyone[:turn]]:
            measured[contender.name].append(contender.run(number))
    told = {"rows": settings.rows, "dim": settings.dim, "batch": settings.batch, "clock": settings.clock()}
    told.update(parameters or {})
    lines = []
    for mine in ours:
        for figure in measured[mine.name][0]:
            values = [figures[figure] for figures in measured[mine.name]]
            for reference in references:
                line = Line(
                    workload,
                    case,
                    mine.name,
                    figure,
                    Spread.of(values),
                    reference.name,
                    limit=(limits or {}).get(figure),
                    parameters=told,
                )
                lines.append(_against(line, reference, values, measured, budgets or {}, higher_is_better))
    return [line for line in lines if line is not None]


def _against(
    line: Line,
    reference: Contender | Absent,
    values: Sequence[float],
    measured: Mapping[str, Sequence[Figures]],
    budgets: Budgets,
    higher_is_better: bool,
) -> Line | None:
    if isinstance(reference, Absent):
        return replace(line, absent=reference.reason)
    if line.figure not in measured[reference.name][0]:
        return None
    others = [figures[line.figure] for figures in measured[reference.name]]
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    return replace(
        line,
        reference_value=Spread.of(others),
        ratio=Spread.of(ratios),
        budget=budgets.get((line.figure, reference.name)),
        higher_is_better=higher_is_better,
        rounds=len(values),
    )


def per_row_ns(settings: Settings, work: Callable[[Any], object], batches: Sequence[Any], num_rows: int) -> float:
    """Nanoseconds a row of ``work`` over batches that hold ``num_rows`` rows together."""
    begin_s = settings.now_s()
    for batch in batches:
        work(batch)
    return (settings.now_s() - begin_s) / num_rows * 1e9
