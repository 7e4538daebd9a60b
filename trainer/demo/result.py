"""What one run of the demo measured, and the numbers that ``summary.json`` keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Sight:
    """One new item: seconds from the start of the stream to its first event, and from there until the follower
    returned its row."""

    first_event_s: float
    wait_s: float


@dataclass
class Kill:
    """One shard that was killed, in seconds from the start of the stream; ``None``: not yet."""

    shard: int
    killed_s: float
    restarted_s: float | None = None
    level_s: float | None = None

    @property
    def catch_up_s(self) -> float | None:
        """Seconds from the kill until every shard stood at the stream's end again."""
        return None if self.level_s is None else self.level_s - self.killed_s


@dataclass(frozen=True)
class Point:
    """The trainer's window at one moment. ``time_s`` is counted from the start of the stream."""

    time_s: float
    hr_at_10: float | None
    mrr_at_10: float | None
    loss: float | None
    events: int
    events_per_s: float
    lag_records: int


@dataclass
class DemoResult:
    """Everything that the report shows. Owned by the thread that runs the demo."""

    source: str
    rate_per_s: float
    num_shards: int
    events: int = 0
    events_per_s: float = 0.0
    seconds: float = 0.0
    tests: int = 0
    hr_at_10: float = 0.0
    mrr_at_10: float = 0.0
    hr_at_10_last_window: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)
    follower_rows: dict[str, int] = field(default_factory=dict)
    follower_reconnects: int = 0
    sights: list[Sight] = field(default_factory=list)
    unseen_items: int = 0
    points: list[Point] = field(default_factory=list)
    popularity: list[tuple[float, float]] = field(default_factory=list)
    ideal: list[tuple[float, float]] = field(default_factory=list)
    popularity_hr_at_10: float = 0.0
    ideal_hr_at_10: float | None = None
    kills: list[Kill] = field(default_factory=list)

    def time_to_first_embedding_s(self, quantile: float) -> float | None:
        """A quantile in [0, 1] over all new items that were seen; None without any."""
        return percentile([sight.wait_s for sight in self.sights], quantile)

    def summary(self) -> dict[str, object]:
        """The content of ``summary.json``."""
        return {
            "source": self.source,
            "seconds": _round(self.seconds, 1),
            "rate_per_s": self.rate_per_s,
            "events": self.events,
            "events_per_s": _round(self.events_per_s, 1),
            "tests": self.tests,
            "hr_at_10": _round(self.hr_at_10, 4),
            "mrr_at_10": _round(self.mrr_at_10, 4),
            "hr_at_10_last_window": _round(self.hr_at_10_last_window, 4),
            "popularity_hr_at_10": _round(self.popularity_hr_at_10, 4),
            "ideal_hr_at_10": _round(self.ideal_hr_at_10, 4),
            "time_to_first_embedding_p50_s": _round(self.time_to_first_embedding_s(0.50), 3),
            "time_to_first_embedding_p99_s": _round(self.time_to_first_embedding_s(0.99), 3),
            "time_to_first_embedding_max_s": _round(self.time_to_first_embedding_s(1.0), 3),
            "new_items": len(self.sights),
            "new_items_unseen": self.unseen_items,
            "rows": sum(self.rows.values()),
            "rows_by_table": dict(sorted(self.rows.items())),
            "follower_rows": sum(self.follower_rows.values()),
            "follower_reconnects": self.follower_reconnects,
            "num_shards": self.num_shards,
            "kills": len(self.kills),
            "catch_up_s": [_round(kill.catch_up_s, 2) for kill in self.kills],
        }


def percentile(values: Sequence[float], quantile: float) -> float | None:
    """A quantile in [0, 1]; the larger neighbour between two values; None of nothing."""
    return float(np.quantile(values, quantile, method="higher")) if values else None


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
