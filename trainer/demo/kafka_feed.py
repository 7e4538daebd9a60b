"""A run's events through a real Apache Kafka broker: started, filled at the script's pace, stopped."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from trainer.demo.freshness import FreshnessProbe
from trainer.demo.processes import DemoError
from trainer.demo.script import Script
from trainer.events import ActivityEvent
from trainer.sources.world import ACTIONS, SURFACES

BROKER = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "broker.py"
TOPIC = "activity"
NUM_PARTITIONS = 2
TICK_S = 0.01
SEND_MAX = 2000


class KafkaFeed:
    """See :class:`trainer.demo.feeds.Feed`. A thread of its own sends; ``sent`` may be called from any thread."""

    name = "kafka"

    def __init__(self, script: Script, data_dir: Path) -> None:
        self._script = script
        self._data_dir = data_dir
        self._sent = 0
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self._probe: FreshnessProbe | None = None
        self.start_s = 0.0
        try:
            self._address = _broker("start", data_dir)
            with_admin = KafkaAdminClient(bootstrap_servers=self._address)
            try:
                with_admin.create_topics([NewTopic(TOPIC, NUM_PARTITIONS, 1)])
            finally:
                with_admin.close()
        except BaseException:
            self.close()
            raise
        self.uri = f"kafka://{self._address}/{TOPIC}"

    def begin(self, probe: FreshnessProbe) -> None:
        """Send from now on, each event at its due time; an item's first event is the moment it is handed to Kafka."""
        self._probe = probe
        self.start_s = time.time()
        self._thread.start()

    def sent(self, now_s: float) -> int:
        """How many events have been handed to Kafka."""
        return self._sent

    def check(self) -> None:
        """Raise what stopped the sending."""
        if self._failure is not None:
            raise DemoError(f"sending to Kafka failed: {self._failure}") from self._failure

    def close(self) -> None:
        """Stop sending and stop the broker."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        _broker("stop", self._data_dir)

    def _run(self) -> None:
        try:
            producer = KafkaProducer(bootstrap_servers=self._address, linger_ms=5, acks=1)
            try:
                while self._sent < self._script.events and not self._stop.wait(TICK_S):
                    self._send_due(producer)
                producer.flush(timeout=10)
            finally:
                producer.close(timeout=10)
        except Exception as error:  # handed to the demo's thread by check()
            self._failure = error

    def _send_due(self, producer: KafkaProducer) -> None:
        world = self._script.world
        due = int((time.time() - self.start_s) * world.spec.rate)
        begin, end = self._sent, min(due, self._sent + SEND_MAX, self._script.events)
        if begin >= end:
            return
        block = world.events(begin, end)
        start_ms = int(self.start_s * 1000)
        new = np.isin(np.arange(begin, end), self._script.first_positions)
        for index in range(end - begin):
            event = ActivityEvent(
                user_id=int(block.users[index]),
                item_id=int(block.items[index]),
                action=ACTIONS[block.actions[index]],
                event_time_ms=start_ms + int((begin + index) * 1000 / world.spec.rate),
                surface=SURFACES[block.surfaces[index]],
                session_id=int(block.sessions[index]),
            )
            if new[index] and self._probe is not None:
                self._probe.expect(block.items[index : index + 1], np.array([time.time()]))
            # One user's events stay in order: they share a partition.
            future = producer.send(TOPIC, event.to_protobuf(), partition=int(block.users[index]) % NUM_PARTITIONS)
            future.add_errback(self._on_error)
        self._sent = end

    def _on_error(self, error: BaseException) -> None:
        self._failure = error


def _broker(command: str, data_dir: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(BROKER), command, "--data", str(data_dir)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoError(f"the Kafka broker could not be told to {command}: {done.stderr.strip()}")
    return done.stdout.strip()
