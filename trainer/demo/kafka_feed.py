"""A run's events through a real Apache Kafka broker: started, filled at the script's pace, stopped."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.demo.freshness import FreshnessProbe
from trainer.demo.processes import DemoError
from trainer.demo.script import Script
from trainer.events import ActivityEvent
from trainer.produce import produce
from trainer.sources.world import ACTIONS, BLOCK_EVENTS, SURFACES

BROKER = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "broker.py"
TOPIC = "activity"
NUM_PARTITIONS = 2


class KafkaFeed:
    """See :class:`trainer.demo.feeds.Feed`. A thread of its own sends; ``sent`` may be called from any thread."""

    name = "kafka"

    def __init__(self, script: Script, data_dir: Path) -> None:
        self._script = script
        self._data_dir = data_dir
        self._sent = 0
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self._probe: FreshnessProbe | None = None
        self.start_s = 0.0
        try:
            self.uri = f"kafka://{_broker('start', data_dir)}/{TOPIC}"
            produce((), self.uri, partitions=NUM_PARTITIONS)
        except BaseException:
            self.close()
            raise

    def begin(self, probe: FreshnessProbe | None) -> None:
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
            produce(self._events(), self.uri)
        except Exception as error:  # handed to the demo's thread by check()
            self._failure = error

    def _events(self) -> Iterator[ActivityEvent]:
        """Every event at its due time, until somebody says stop."""
        script, spec = self._script, self._script.world.spec
        is_first = np.zeros(script.events, bool)
        is_first[script.first_positions] = True
        for begin in range(0, script.events, BLOCK_EVENTS):
            end = min(begin + BLOCK_EVENTS, script.events)
            block = script.world.events(begin, end)
            for index, position in enumerate(range(begin, end)):
                due_s = self.start_s + position / spec.rate
                if self._stop.wait(max(due_s - time.time(), 0.0)):
                    return
                if is_first[position] and self._probe is not None:
                    self._probe.expect(block.items[index : index + 1], np.array([time.time()]))
                self._sent = position + 1
                yield ActivityEvent(
                    user_id=int(block.users[index]),
                    item_id=int(block.items[index]),
                    action=ACTIONS[block.actions[index]],
                    event_time_ms=int(due_s * 1000),
                    surface=SURFACES[block.surfaces[index]],
                    session_id=int(block.sessions[index]),
                )


def _broker(command: str, data_dir: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(BROKER), command, "--data", str(data_dir)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoError(f"the Kafka broker could not be told to {command}: {done.stderr.strip()}")
    return done.stdout.strip()
