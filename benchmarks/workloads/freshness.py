"""From an event to the row that serving returns, with everything real: a broker, shards, a follower and the trainer."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from benchmarks.harness import Contender, Figures, Line, Settings, race
from trainer.demo.feeds import start_ms_in
from trainer.demo.kafka_feed import TOPIC, KafkaFeed
from trainer.demo.run import WORLD, DemoOptions, run
from trainer.demo.script import make_script
from trainer.demo.view import Snapshot
from trainer.events import ActivityEvent
from trainer.sources.world import WorldSpec

RATE_PER_S = 2000.0
SECONDS = 30.0
WARM_UP_S = 5.0
QUICK_RATE_PER_S = 200.0
QUICK_SECONDS = 4.0
BROKER_SECONDS = 10.0
ROUNDS_MAX = 5
LIMITS = {"p50 s": 0.5, "p99 s": 2.0}
BROKER = "the broker alone, to a plain consumer"


def freshness(settings: Settings) -> list[Line]:
    """The first event of a new item, handed to Kafka, until a follower returns the item's row."""
    settings = replace(settings, rounds=1 if settings.quick else min(settings.rounds, ROUNDS_MAX))
    rate = QUICK_RATE_PER_S if settings.quick else RATE_PER_S
    return race(
        settings,
        "freshness",
        f"{rate:,.0f} events/s through Kafka, 2 shards, 1 follower",
        [Contender("event to servable row", lambda number: _to_serving(settings, rate, number))],
        [Contender(BROKER, lambda number: _to_consumer(settings, rate, number))],
        limits=None if settings.quick else LIMITS,
        parameters={"rate_per_s": rate, "seconds": QUICK_SECONDS if settings.quick else SECONDS},
        warm_up=False,
    )


def _to_serving(settings: Settings, rate: float, number: int) -> Figures:
    with TemporaryDirectory(dir=settings.work_dir) as directory:
        seconds = QUICK_SECONDS if settings.quick else SECONDS
        options = DemoOptions(Path(directory), seconds, rate, settings.seed + number, kafka=True)
        result = run(options, _Silent())
    begin_s = 0.0 if settings.quick else WARM_UP_S
    return _quantiles([sight.wait_s for sight in result.sights if sight.first_event_s >= begin_s])


def _to_consumer(settings: Settings, rate: float, number: int) -> Figures:
    """From an event's time to the moment when a consumer that does nothing else has its record."""
    seconds = QUICK_SECONDS / 2 if settings.quick else BROKER_SECONDS
    spec: dict[str, Any] = {**WORLD, "seed": settings.seed + number, "rate": rate, "events": int(seconds * rate)}
    with ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory(dir=settings.work_dir))
        script = make_script(WorldSpec(start_ms=start_ms_in(0.0), **spec))
        feed = KafkaFeed(script, Path(directory) / "kafka")
        stack.callback(feed.close)
        servers = feed.uri.removeprefix("kafka://").partition("/")[0]
        consumer = KafkaConsumer(bootstrap_servers=servers, metrics_enabled=False)
        stack.callback(consumer.close)
        partitions = [TopicPartition(TOPIC, number) for number in sorted(consumer.partitions_for_topic(TOPIC))]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        feed.begin(None)
        waits: list[float] = []
        while len(waits) < script.events:
            feed.check()
            for records in consumer.poll(200).values():
                now_ms = time.time() * 1000
                waits += [(now_ms - ActivityEvent.decode(record.value).event_time_ms) / 1000 for record in records]
    return _quantiles(waits)


def _quantiles(seconds: list[float]) -> Figures:
    return {"p50 s": float(np.percentile(seconds, 50)), "p99 s": float(np.percentile(seconds, 99))}


class _Silent:
    """Shows nothing; see :class:`trainer.demo.view.View`."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
