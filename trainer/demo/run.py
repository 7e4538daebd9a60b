"""One run of the demo, from empty directories to the report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import embedstore
from trainer.demo import report
from trainer.demo.feeds import Feed, SyntheticFeed, start_ms_in
from trainer.demo.freshness import FreshnessProbe
from trainer.demo.kafka_feed import KafkaFeed
from trainer.demo.metrics_tail import MetricsTail
from trainer.demo.processes import DemoError, Fleet, free_ports, wait_until
from trainer.demo.result import DemoResult, percentile
from trainer.demo.script import Script, make_script
from trainer.demo.shards import READY, Shards, embedstore_command
from trainer.demo.view import Snapshot, View
from trainer.demo.watch import Numbers, Watch
from trainer.sources.world import WorldSpec

NUM_SHARDS = 2
WORLD: dict[str, Any] = {"users": 2000, "items": 400, "topics": 40, "session_events": 12.0, "lifetime_events": 60_000}
"""Small enough to be learnt in a minute, and changing all the time: an item is born every 150 events."""
TRAINER_CONFIG = """\
[run]
threads = 1
cut_interval_s = 5.0
report_interval_s = 0.5
[train]
dense_lr = 0.0002
"""
"""One thread: five processes share the machine, and threads that wait for each other there lose more than they win.
A small learning rate: a trainer that is not behind learns in many small batches."""
ITEM_TABLE = "items"
TICK_S = 0.1
TRIAL = "import embedstore.client, trainer.online, trainer.stream, trainer.sources.synthetic"
REFERENCE_WINDOW_EVENTS = 4096
TRAINER_TIMEOUT_S = 60.0
SIGHT_TIMEOUT_S = 15.0
LEVEL_TIMEOUT_S = 30.0
START_MARGIN_S = 2.5
READY_BEFORE_S = 0.5
START_ATTEMPTS_MAX = 4
"""The stream begins ``START_MARGIN_S`` after the trainer has probably started; where it is not ready ``READY_BEFORE_S``
before that, it gets twice the time."""


@dataclass(frozen=True)
class DemoOptions:
    """What to run. ``kill_shard_at_s``: SIGKILL shard 1 so many seconds into the stream. ``interrupted`` is asked
    all the time whether somebody wants the run to end."""

    out: Path
    seconds: float = 60.0
    rate_per_s: float = 1000.0
    seed: int = 1
    kafka: bool = False
    kill_shard_at_s: float | None = None
    interrupted: Callable[[], bool] = lambda: False


def run(options: DemoOptions, view: View) -> DemoResult:
    """Run the demo and write its report. :class:`DemoError` says what failed; no process is left in any case."""
    prepare(options.out)
    with Fleet(options.out / "logs") as fleet, ExitStack() as resources:
        demo = _Demo(options, view, fleet, resources)
        demo.start()
        demo.stream()
        result = demo.finish()
    report.write(result, options.out)
    return result


def prepare(out: Path) -> None:
    """Make the directory, and remove from it what an earlier run left."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("data", "logs"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("metrics.jsonl", "trainer.json", "summary.json", "report.html"):
        (out / name).unlink(missing_ok=True)


class _Demo:
    """The state of one run. Belongs to one thread."""

    def __init__(self, options: DemoOptions, view: View, fleet: Fleet, resources: ExitStack) -> None:
        self._options = options
        self._view = view
        self._fleet = fleet
        self._resources = resources
        self._shards = Shards(fleet, NUM_SHARDS, options.out / "data", view.note)
        self._follower_address = f"127.0.0.1:{free_ports(1)[0]}"
        self._metrics = MetricsTail(options.out / "metrics.jsonl")
        self._learnt_s: float | None = None
        self._killed = options.kill_shard_at_s is None

    def start(self) -> None:
        """Everything up to the first event."""
        self._view.note(f"starting {NUM_SHARDS} shards and a follower; logs are in {self._options.out / 'logs'}")
        self._shards.start()
        addresses = ",".join(self._shards.addresses)
        self._fleet.start(
            "follower", embedstore_command("serve", "--follow", addresses, "--listen", self._follower_address)
        )
        self._fleet.wait_ready("follower", READY)
        self._watch = Watch(self._shards.addresses, self._follower_address)
        self._resources.callback(self._watch.stop)
        self._watch.start()
        self._view.note("starting the trainer")
        self._start_trainer(addresses)
        reader = embedstore.connect(self._follower_address)
        self._resources.callback(reader.close)
        self._probe = FreshnessProbe(reader, ITEM_TABLE)
        self._resources.callback(self._probe.stop)
        self._probe.start()
        self._feed.begin(self._probe)

    def stream(self) -> None:
        """Watch until the trainer has learnt every event and the follower has every new item."""
        while not self._is_over():
            self._tend()
            self._show()
            time.sleep(TICK_S)
        self._wait("every shard is level", lambda: not self._shards.unsettled(), LEVEL_TIMEOUT_S)
        deadline = time.monotonic() + SIGHT_TIMEOUT_S
        while self._probe.waiting() and time.monotonic() < deadline:
            self._tend()
            time.sleep(TICK_S)

    def finish(self) -> DemoResult:
        """Stop everything in order and put the numbers together."""
        self._view.note("stopping")
        if self._fleet.returncode("trainer") is None:
            self._fleet.stop(["trainer"])
        numbers = self._last_numbers()
        unseen = self._probe.waiting()
        self._probe.stop()
        self._watch.stop()
        self._fleet.stop(["follower"])
        self._shards.stop()
        script, start_s = self._script, self._feed.start_s
        seconds = (self._learnt_s or time.time()) - start_s
        summary = json.loads((self._options.out / "trainer.json").read_text())
        points = self._metrics.points(start_s)
        result = DemoResult(
            source=self._feed.name,
            rate_per_s=self._options.rate_per_s,
            num_shards=NUM_SHARDS,
            events=summary["events"],
            events_per_s=summary["events"] / seconds,
            seconds=seconds,
            tests=summary["tests"],
            hr_at_10=summary["hr_at_10"] or 0.0,
            mrr_at_10=summary["mrr_at_10"] or 0.0,
            hr_at_10_last_window=next((p.hr_at_10 for p in reversed(points) if p.hr_at_10 is not None), 0.0),
            rows=dict(numbers.rows),
            follower_rows=dict(numbers.follower_rows),
            follower_reconnects=numbers.follower_reconnects,
            sights=self._probe.sights(start_s),
            unseen_items=unseen,
            points=points,
            popularity=self._reference(script.popularity_hits),
            ideal=self._reference(script.ideal_hits),
            popularity_hr_at_10=script.hit_rate(script.popularity_hits, 0, script.events) or 0.0,
            ideal_hr_at_10=script.hit_rate(script.ideal_hits, 0, script.events),
            kills=self._shards.kills,
        )
        _check(result, script.events)
        return result

    def _last_numbers(self) -> Numbers:
        """Answers that were asked for after this call began."""
        rounds = self._watch.latest().rounds + 2
        wait_until("the last numbers", lambda: self._watch.latest().rounds >= rounds, LEVEL_TIMEOUT_S, lambda: None)
        return self._watch.latest()

    def _make_script(self, margin_s: float) -> Script:
        options = self._options
        return make_script(
            WorldSpec(
                seed=options.seed,
                events=int(options.seconds * options.rate_per_s),
                rate=options.rate_per_s,
                start_ms=start_ms_in(margin_s),
                **WORLD,
            )
        )

    def _make_feed(self) -> Feed:
        if self._options.kafka:
            self._view.note("starting a Kafka broker")
            return KafkaFeed(self._script, self._options.out / "data" / "kafka")
        return SyntheticFeed(self._script)

    def _start_trainer(self, addresses: str) -> None:
        """Start the trainer early enough that it stands ready when the first event comes."""
        margin_s = _trial_start_s() * 1.5 + START_MARGIN_S
        for _ in range(START_ATTEMPTS_MAX):
            self._script = self._make_script(margin_s)
            self._feed = self._make_feed()
            self._resources.callback(self._feed.close)
            known = set(self._watch.latest().applied)
            self._fleet.start("trainer", self._trainer_command(addresses))
            deadline_s = self._feed.start_s - READY_BEFORE_S if self._feed.start_s else time.time() + TRAINER_TIMEOUT_S
            while time.time() < deadline_s:
                if set(self._watch.latest().applied) - known:
                    return
                self._check_alive()
                time.sleep(TICK_S)
            # No event has come yet, so nothing has been learnt: it can simply begin again.
            self._fleet.discard("trainer")
            margin_s *= 2
        raise DemoError(f"the trainer was not ready in time, {START_ATTEMPTS_MAX} times")

    def _trainer_command(self, addresses: str) -> list[str]:
        out = self._options.out
        config = out / "data" / "trainer.toml"
        config.write_text(TRAINER_CONFIG)
        shutil.rmtree(out / "data" / "trainer", ignore_errors=True)
        command = [str(Path(sys.executable).with_name("embedtrain")), "stream"]
        command += ["--events", self._feed.uri, "--store", f"grpc://{addresses}"]
        command += ["--config", str(config), "--state", str(out / "data" / "trainer")]
        return [*command, "--metrics", str(out / "metrics.jsonl"), "--summary", str(out / "trainer.json")]

    def _is_over(self) -> bool:
        """Whether the trainer has learnt everything; one that reads a stream with an end also ends by itself then."""
        if self._learnt_s is None and sum(self._watch.latest().applied.values()) >= self._script.events:
            self._learnt_s = time.time()
        return self._fleet.returncode("trainer") == 0 or (self._options.kafka and self._learnt_s is not None)

    def _tend(self) -> None:
        if self._options.interrupted():
            raise KeyboardInterrupt
        now_s = time.time()
        elapsed_s = now_s - self._feed.start_s
        self._feed.check()
        if not self._killed and elapsed_s >= (self._options.kill_shard_at_s or 0.0):
            self._killed = True
            self._shards.kill(NUM_SHARDS - 1)
        self._shards.tend(elapsed_s)
        applied = self._watch.latest().applied
        if applied:
            behind = self._feed.sent(now_s) - sum(applied.values())
            self._shards.settle(elapsed_s, behind, allowed=int(self._options.rate_per_s))
        self._check_alive()
        if elapsed_s > self._options.seconds + TRAINER_TIMEOUT_S and not self._shards.unsettled():
            raise DemoError(f"the trainer is not through {TRAINER_TIMEOUT_S:.0f} s after the stream's end")

    def _check_alive(self) -> None:
        if self._fleet.returncode("follower") is not None:
            raise DemoError(self._fleet.death("follower"))
        if self._fleet.returncode("trainer") not in (None, 0):
            raise DemoError(self._fleet.death("trainer"))

    def _show(self) -> None:
        elapsed_s = max(time.time() - self._feed.start_s, 0.0)
        numbers = self._watch.latest()
        points = self._metrics.points(self._feed.start_s)
        last = points[-1] if points else None
        waits = [sight.wait_s for sight in self._probe.sights(self._feed.start_s)]
        done = last.events if last else 0
        window = max(0, done - REFERENCE_WINDOW_EVENTS)
        self._view.show(
            Snapshot(
                elapsed_s=elapsed_s,
                total_s=self._options.seconds,
                events=done,
                events_per_s=last.events_per_s if last else None,
                lag_records=self._feed.sent(time.time()) - done,
                hr_at_10=last.hr_at_10 if last else None,
                popularity_hr_at_10=self._script.hit_rate(self._script.popularity_hits, window, done),
                loss=last.loss if last else None,
                rows=numbers.rows.get(ITEM_TABLE),
                follower_rows=numbers.follower_rows.get(ITEM_TABLE),
                follower_age_s=numbers.follower_age_s,
                new_items=len(waits),
                wait_p50_s=percentile(waits, 0.5),
                wait_p99_s=percentile(waits, 0.99),
            )
        )

    def _wait(self, what: str, done: Callable[[], bool], timeout_s: float) -> None:
        wait_until(what, done, timeout_s, self._tend)

    def _reference(self, hits: np.ndarray) -> list[tuple[float, float]]:
        """A reference's score over the same window as the trainer's, at twice a second."""
        script, rate = self._script, self._options.rate_per_s
        ends = np.linspace(0, script.events, max(int(script.events / rate * 2), 2) + 1)[1:].astype(int)
        rates = [(end, script.hit_rate(hits, max(0, end - REFERENCE_WINDOW_EVENTS), end)) for end in ends.tolist()]
        return [(end / rate, value) for end, value in rates if value is not None]


def _trial_start_s() -> float:
    """How long the trainer's imports take on this machine, after which they are in the page cache too."""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"the trainer cannot be imported:\n{done.stderr.strip()}")
    return time.monotonic() - begin


def _check(result: DemoResult, events: int) -> None:
    if result.events != events:
        raise DemoError(f"the trainer counted {result.events} events of {events}")
    if result.unseen_items:
        raise DemoError(f"{result.unseen_items} new items never reached the follower")
