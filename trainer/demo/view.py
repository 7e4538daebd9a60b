"""What the demo shows while it runs: a live table on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trainer.demo.result import DemoResult

PLAIN_INTERVAL_S = 5.0


@dataclass(frozen=True)
class Snapshot:
    """The run at one moment; None where nothing is known yet."""

    elapsed_s: float
    total_s: float
    events: int
    events_per_s: float | None
    lag_records: int | None
    hr_at_10: float | None
    popularity_hr_at_10: float | None
    loss: float | None
    rows: int | None
    follower_rows: int | None
    follower_age_s: float | None
    new_items: int
    wait_p50_s: float | None
    wait_p99_s: float | None


class View(Protocol):
    """Shows snapshots and notes. Used by one thread."""

    def __enter__(self) -> View: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, snapshot: Snapshot) -> None:
        """The run as it is now."""
        ...

    def note(self, text: str) -> None:
        """One line that stays."""
        ...


class LiveView:
    """A table that redraws itself, with a bar below."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} s"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("streaming", total=1.0)
        self._live = Live(self._progress, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, snapshot: Snapshot) -> None:
        """Redraw."""
        self._progress.update(self._task, completed=min(snapshot.elapsed_s, snapshot.total_s), total=snapshot.total_s)
        self._live.update(Group(_table(snapshot), self._progress))

    def note(self, text: str) -> None:
        """Print above the table."""
        self._live.console.print(Text(text, style="dim"))


class PlainView:
    """One line every few seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def show(self, snapshot: Snapshot) -> None:
        """Print a line when the last one is old enough."""
        if snapshot.elapsed_s < self._next_s:
            return
        self._next_s = snapshot.elapsed_s + PLAIN_INTERVAL_S
        self._print(
            f"{snapshot.elapsed_s:5.1f}/{snapshot.total_s:.0f} s  events {snapshot.events:>7,}"
            f" ({_number(snapshot.events_per_s, ',.0f')}/s)"
            f"  HR@10 {_number(snapshot.hr_at_10, '.3f')} (popularity {_number(snapshot.popularity_hr_at_10, '.3f')})"
            f"  rows {_number(snapshot.rows, ',')} (follower {_number(snapshot.follower_rows, ',')})"
            f"  first embedding p50 {_number(snapshot.wait_p50_s, '.2f')} s"
            f" p99 {_number(snapshot.wait_p99_s, '.2f')} s"
        )

    def note(self, text: str) -> None:
        """Print it."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def make_view(console: Console) -> View:
    """The view that fits where the console writes."""
    return LiveView(console) if console.is_terminal else PlainView(console)


def summary_table(result: DemoResult) -> Table:
    """What a run ends with."""
    table = Table(title="embedstore demo", show_header=False, title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("events", f"{result.events:,} in {result.seconds:.1f} s ({result.events_per_s:,.0f}/s)")
    table.add_row("HR@10, last window", f"{result.hr_at_10_last_window:.3f}")
    table.add_row("HR@10, whole run", f"{result.hr_at_10:.3f}")
    table.add_row("HR@10 of popularity, whole run", f"{result.popularity_hr_at_10:.3f}")
    if result.ideal_hr_at_10 is not None:
        table.add_row("HR@10 knowing the true tastes", f"{result.ideal_hr_at_10:.3f}")
    for name, quantile in (("p50", 0.5), ("p99", 0.99)):
        value = _number(result.time_to_first_embedding_s(quantile), ".3f")
        table.add_row(f"time to first embedding, {name}", f"{value} s")
    table.add_row("new items seen by the follower", f"{len(result.sights):,}")
    table.add_row("rows: shards / follower", f"{sum(result.rows.values()):,} / {sum(result.follower_rows.values()):,}")
    for kill in result.kills:
        table.add_row(
            f"shard {kill.shard} killed at {kill.killed_s:.1f} s", f"level {kill.catch_up_s or 0:.1f} s later"
        )
    return table


def _table(snapshot: Snapshot) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("events", f"{snapshot.events:,}"),
        ("events/s", f"{_number(snapshot.events_per_s, ',.0f')}  (lag {_number(snapshot.lag_records, ',')})"),
        (
            "HR@10 (popularity)",
            f"{_number(snapshot.hr_at_10, '.3f')}  ({_number(snapshot.popularity_hr_at_10, '.3f')})",
        ),
        ("loss", _number(snapshot.loss, ".3f")),
        ("rows (follower)", f"{_number(snapshot.rows, ',')}  ({_number(snapshot.follower_rows, ',')})"),
        ("follower's age", f"{_number(snapshot.follower_age_s, '.2f')} s"),
        ("new items", f"{snapshot.new_items:,}"),
        (
            "time to first embedding",
            f"p50 {_number(snapshot.wait_p50_s, '.2f')} s  p99 {_number(snapshot.wait_p99_s, '.2f')} s",
        ),
    ):
        table.add_row(Text(name, style="dim"), value)
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
