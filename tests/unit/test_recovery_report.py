"""What an operator sees of a recovery."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from embedstore.cli.recovery import LINES_EVERY_S, StoppedError, reported
from embedstore.recovery import Recovery


def test_without_a_terminal_there_is_a_line_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now_s = 0.0
    with reported(lambda: False, Console(file=io.StringIO()), lambda: now_s) as report:
        for chunks in range(101):
            report(Recovery("items", chunks, 100, 1000 * chunks))
            now_s += LINES_EVERY_S / 10
    assert len(caplog.messages) == 11 + 1
    assert caplog.messages[1] == "recovering table items: 10 of 100 chunks, 10,000 rows in 5.0 s (2,000 rows/s)"
    assert caplog.messages[-1].startswith("recovered: 100 of 100 chunks, 100,000 rows in 50.5 s")


def test_a_new_directory_is_no_recovery(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    terminal = io.StringIO()
    for console in (Console(file=io.StringIO()), Console(file=terminal, force_terminal=True)):
        with reported(lambda: False, console):
            pass
    assert not caplog.messages
    assert not terminal.getvalue().strip("\x1b[?25hl\n")


def test_a_terminal_shows_a_bar(caplog: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=120)
    with reported(lambda: False, console) as report:
        report(Recovery("items", 50, 100, 7))
        report(Recovery("items", 100, 100, 9))
    assert "recovering items" in screen.getvalue()
    assert "100/100 chunks" in screen.getvalue()
    assert not [message for message in caplog.messages if message.startswith("recovering")]


def test_a_signal_ends_a_recovery_and_says_how_far_it_was() -> None:
    stopped = False
    with (
        pytest.raises(StoppedError, match="3 of 8 chunks, 30 rows"),
        reported(lambda: stopped, Console(file=io.StringIO())) as report,
    ):
        report(Recovery("items", 2, 8, 20))
        stopped = True
        report(Recovery("items", 3, 8, 30))
