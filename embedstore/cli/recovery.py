"""How far a recovery is: a bar on a terminal, else a log line every few seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from embedstore.recovery import Recovery

LINES_EVERY_S = 5.0
_log = logging.getLogger("embedstore.server")


class StoppedError(Exception):
    """The process was told to stop while it recovered."""


@contextmanager
def reported(
    stopped: Callable[[], bool], console: Console, now_s: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[Recovery], None]]:
    """What a store is to be opened with, so that its recovery shows, and ends with :class:`StoppedError` when
    ``stopped()``."""
    began_s = now_s()
    show = _Bar(console) if console.is_terminal else _Lines(began_s)
    last: Recovery | None = None

    def report(recovery: Recovery) -> None:
        nonlocal last
        if stopped():
            raise StoppedError(f"stopped while recovering, {_told(recovery, now_s() - began_s)}")
        last = recovery
        show(recovery, now_s() - began_s, now_s())

    try:
        yield report
    finally:
        show.end()
    if last is not None:
        _log.info("recovered: %s", _told(last, now_s() - began_s))


def _told(recovery: Recovery, seconds: float) -> str:
    return (
        f"{recovery.chunks} of {recovery.num_chunks} chunks, {recovery.rows:,} rows in {seconds:.1f} s "
        f"({_rate(recovery, seconds)})"
    )


def _rate(recovery: Recovery, seconds: float) -> str:
    return f"{recovery.rows / max(seconds, 1e-3):,.0f} rows/s"


class _Bar:
    def __init__(self, console: Console) -> None:
        columns = ("recovering {task.description}", BarColumn(), MofNCompleteColumn(), "chunks", "{task.fields[rate]}")
        self._progress = Progress(
            *(TextColumn(each) if isinstance(each, str) else each for each in columns),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=None, rate="")

    def __call__(self, recovery: Recovery, seconds: float, now_s: float) -> None:
        self._progress.start()
        self._progress.update(
            self._task,
            description=recovery.table,
            completed=recovery.chunks,
            total=recovery.num_chunks,
            rate=_rate(recovery, seconds),
        )

    def end(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, began_s: float) -> None:
        self._due_s = began_s

    def __call__(self, recovery: Recovery, seconds: float, now_s: float) -> None:
        if now_s >= self._due_s:
            self._due_s = now_s + LINES_EVERY_S
            _log.info("recovering table %s: %s", recovery.table, _told(recovery, seconds))

    def end(self) -> None:
        """A line needs no end."""
