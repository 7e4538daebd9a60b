"""The clocks of a run, and how it waits for a store whose shards are away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from embedstore.errors import UnavailableError

log = logging.getLogger("embedtrain")
T = TypeVar("T")
_FIRST_PAUSE_S = 0.1
WORD_INTERVAL_S = 5.0


class Stopped(Exception):  # noqa: N818
    """Somebody asked the trainer to stop while it waited."""


@dataclass(frozen=True)
class Clock:
    """The clocks of a run: unix milliseconds, and monotonic seconds."""

    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    monotonic_s: Callable[[], float] = time.monotonic


class Progress:
    """Says now and then how far the reading of ``stream`` again is, up to ``end``."""

    def __init__(self, stream: str, end: int) -> None:
        self._stream, self._end = stream, end
        self._word_s = time.monotonic() + WORD_INTERVAL_S

    def at(self, position: int) -> None:
        """It has come so far."""
        now_s = time.monotonic()
        if now_s >= self._word_s:
            self._word_s = now_s + WORD_INTERVAL_S
            log.info("reading %s again: at %d of %d", self._stream, position, self._end)


def persist(call: Callable[[], T], stop: threading.Event, retry_max_s: float) -> T:
    """Repeat a store call until its shards are back; safe, because a repeated push is recognised.

    The pause between two tries doubles up to ``retry_max_s``. Stopped: ``stop`` was set while the shards were away.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return call()
        except UnavailableError as problem:
            log.warning("%s; trying again in %.1f s", problem, pause_s)
        if stop.wait(pause_s):
            raise Stopped
        pause_s = min(2 * pause_s, retry_max_s)
