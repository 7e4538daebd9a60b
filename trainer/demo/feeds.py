"""Where a run's events come from: the synthetic world itself, paced by its own clock, or a real Kafka topic."""

from __future__ import annotations

import time
from typing import Protocol
from urllib.parse import urlencode

import numpy as np

from trainer.demo.freshness import FreshnessProbe
from trainer.demo.script import Script
from trainer.sources.world import WorldSpec


class Feed(Protocol):
    """One stream of a :class:`Script`. Used by one thread, except where said."""

    name: str
    uri: str
    start_s: float

    def begin(self, probe: FreshnessProbe) -> None:
        """Let events come in, and tell the probe when each new item has its first one."""
        ...

    def sent(self, now_s: float) -> int:
        """How many events exist at a wall time that is not ahead."""
        ...

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        ...

    def close(self) -> None:
        """Release everything. Twice is harmless."""
        ...


class SyntheticFeed:
    """Events that the trainer's own source makes at their due time: event p at ``start_s`` + p / rate.

    So the wall time of every item's first event is known without asking the trainer.
    """

    name = "synthetic"

    def __init__(self, script: Script) -> None:
        spec = script.world.spec
        self._script = script
        self.uri = f"synthetic://?{urlencode({**_values(spec), 'live': 1})}"
        self.start_s = spec.start_ms / 1000

    def begin(self, probe: FreshnessProbe) -> None:
        """See :meth:`Feed.begin`."""
        due_ms = self._script.world.event_time_ms(self._script.first_positions)
        probe.expect(self._script.first_ids, due_ms / 1000)

    def sent(self, now_s: float) -> int:
        """See :meth:`Feed.sent`."""
        return int(np.clip((now_s - self.start_s) * self._script.world.spec.rate, 0, self._script.events))

    def check(self) -> None:
        """Nothing can go wrong here."""

    def close(self) -> None:
        """Nothing to release."""


def start_ms_in(seconds: float) -> int:
    """Wall time in so many seconds, in whole milliseconds."""
    return int((time.time() + seconds) * 1000)


def _values(spec: WorldSpec) -> dict[str, object]:
    return {name: value for name, value in vars(spec).items() if value is not None}
