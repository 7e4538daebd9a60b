"""Waiting for what nobody tells of when it happens."""

from __future__ import annotations

import time
from collections.abc import Callable

TIMEOUT_S = 20.0
PAUSE_S = 0.02


def until(found: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Ask again and again, until the answer is yes."""
    deadline_s = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s"
        time.sleep(PAUSE_S)
