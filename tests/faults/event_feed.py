"""Events for the counting trainer: produced over any broker failure, and read back as the truth.

What was sent does not matter, only what the log has: :func:`read_truth` counts that with a consumer of its own. The key
of a record says whether it is a sound event, so that the truth does not depend on how the trainer decodes.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from counting_trainer import gradients
from fault_cluster import BATCH_EVENTS, NUM_PARTITIONS
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka_broker import KafkaTopics

NUM_ITEMS = 2000
USERS_PER_PARTITION = 4 * BATCH_EVENTS
"""A user comes again only after all others of its partition: at most once in any batch."""
DAY_MS = 86_400_000


class EventFeed:
    """A thread that produces ``events_per_s`` until the ``with`` block is left."""

    def __init__(self, kafka: KafkaTopics, topic: str, seed: int, events_per_s: float) -> None:
        self._kafka, self._topic, self._events_per_s = kafka, topic, events_per_s
        self._rng = np.random.default_rng(seed)
        self._sent = [0] * NUM_PARTITIONS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed")

    def __enter__(self) -> EventFeed:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        tick_s = 0.05
        while not self._stop.is_set():
            try:
                producer = self._kafka.producer(linger_ms=5, acks="all", enable_idempotence=True, max_block_ms=5000)
            except KafkaError:  # the broker is away; the log has what it has
                self._stop.wait(tick_s)
                continue
            try:
                while not self._stop.wait(tick_s):
                    self._send(producer, max(1, round(self._events_per_s * tick_s)))
                producer.flush(timeout=20)
            except KafkaError:
                continue
            finally:
                _close(producer)

    def _send(self, producer: Any, count: int) -> None:
        for _ in range(count):
            partition = int(self._rng.integers(NUM_PARTITIONS))
            kind = self._rng.random()
            if kind < 0.01:
                producer.send(self._topic, b"no event", key=b"bad", partition=partition)
                continue
            value = json.dumps(self._event(partition, kind)).encode()
            key = b"bad" if kind < 0.02 else b"event"
            producer.send(self._topic, value, key=key, partition=partition)

    def _event(self, partition: int, kind: float) -> dict[str, Any]:
        now_ms = time.time_ns() // 1_000_000
        number = self._sent[partition]
        self._sent[partition] += 1
        age_ms = int(self._rng.integers(-5 * 60_000, 5 * DAY_MS))
        if kind < 0.02:
            age_ms = -DAY_MS
        elif kind < 0.04:
            age_ms = now_ms
        return {
            "user_id": partition * USERS_PER_PARTITION + number % USERS_PER_PARTITION,
            "item_id": int(NUM_ITEMS * self._rng.random() ** 3),
            "action": "click",
            "event_time_ms": now_ms - age_ms,
            "request_id": number + 1,
        }


def _close(producer: Any) -> None:
    """Only when nothing is on its way any more: what came later would not be in the truth. Closing gives up while the
    broker is away."""
    while True:
        try:
            producer.close(timeout=5)
        except KafkaError:
            continue
        return


@dataclass
class Truth:
    """What the log says: events, records that are none, events by item, and each user's gradients in order."""

    events: int = 0
    set_aside: int = 0
    items: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    users: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[int, int] = field(default_factory=dict)

    def user_gradients(self, user: int) -> np.ndarray:
        """float32 [n, 1]."""
        return gradients(np.array(self.users[user], np.uint64))


def read_truth(kafka: KafkaTopics, topic: str) -> Truth:
    """Everything the log has, read from its first record to where it ends now."""
    parts = [TopicPartition(topic, number) for number in range(NUM_PARTITIONS)]
    consumer = KafkaConsumer(
        bootstrap_servers=kafka.address, bootstrap_timeout_ms=20_000, enable_auto_commit=False, group_id=None
    )
    truth = Truth()
    try:
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends = consumer.end_offsets(parts, timeout_ms=20_000)
        truth.ends = {part.partition: int(end) for part, end in ends.items()}
        while any(consumer.position(part) < end for part, end in ends.items()):
            for records in consumer.poll(200, max_records=5000).values():
                for record in records:
                    _count(truth, record)
    finally:
        consumer.close()
    return truth


def _count(truth: Truth, record: Any) -> None:
    if record.key != b"event":
        truth.set_aside += 1
        return
    event = json.loads(record.value)
    truth.events += 1
    truth.items[event["item_id"]] += 1
    truth.users[event["user_id"]].append(event["request_id"])
