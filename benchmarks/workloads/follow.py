"""Following a leader that learns: how old a follower's rows are, and what one follower costs its leader.

The leader is pinned to one core; the follower and what pushes share the other. Lag is told twice: as the follower
measures it itself (docs/metrics.md), and as somebody outside sees it who pushes new rows and asks the follower until
they are there.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np

import embedstore as es
from benchmarks import data, processes, tables
from benchmarks.harness import Contender, Figures, Line, Settings, race
from embedstore import freshness
from embedstore.freshness import EVENT_TO_VISIBLE, Distribution
from embedstore.peers import CHANNEL_OPTIONS, method_path
from embedstore.wire import TablePart, encode_push_request

RATE_ROWS_PER_S = 20_000
SLOW_ROWS_PER_S = 200
PUSH_ROWS = 400
SECONDS = 10.0
QUICK_SECONDS = 0.5
WARM_UP_S = 1.0
IN_FLIGHT = 4
MARKER_S = 0.023
"""Between two rows that are asked for; no multiple of it is the interval of deltas."""

POLL_S = 0.01
SYNC_TIMEOUT_S = 600.0
SHARE_MAX = 0.25
WITHOUT = "without a follower"


def follow(settings: Settings) -> list[Line]:
    """Lag at 20,000 changed rows a second, and the leader's highest rate of pushes with and without a follower."""
    settings = replace(settings, rounds=1) if settings.quick else settings
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(dir=settings.work_dir)))
        followed = _Followed(settings, work, stack)
        lag = race(
            settings,
            "follow",
            f"{RATE_ROWS_PER_S:,} changed rows/s, Zipf ids",
            [Contender("event to visible", lambda number: followed.lag(number, RATE_ROWS_PER_S))],
            [Contender(f"at {SLOW_ROWS_PER_S} rows/s", lambda number: followed.lag(number, SLOW_ROWS_PER_S))],
            limits=None if settings.quick else {"p99 s": 1.0, "polled p99 s": 1.0},
            warm_up=False,
        )
        cost = race(
            settings,
            "follow",
            "pushes as fast as the leader takes them",
            [Contender("with a follower", followed.pushed_with)],
            [Contender(WITHOUT, followed.pushed_without)],
            budgets={} if settings.quick else {("leader CPU us/row", WITHOUT): 1 / (1 - SHARE_MAX)},
            warm_up=False,
        )
        return [*lag, *cost]


class _Followed:
    """A leader with rows, a follower that has them, and pushes that are made already."""

    def __init__(self, settings: Settings, work: Path, stack: ExitStack) -> None:
        self._settings = settings
        cores = sorted(os.sched_getaffinity(0))
        self._leader = stack.enter_context(processes.served(["--data", str(work)], core=cores[0]))
        ids = data.ids_of(settings, np.arange(settings.rows, dtype=np.uint64))
        rows = data.some_rows(settings, settings.batch)
        with es.connect(self._leader.address) as store:
            store.create_table(tables.spec(settings))
            for part in data.slices(settings):
                store.assign("items", ids[part], rows[: part.stop - part.start])
        self._follower = stack.enter_context(processes.served(["--follow", self._leader.address], core=cores[-1]))
        stack.callback(self._follower.signal, signal.SIGCONT)
        before = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {cores[-1]})
        self._channel = stack.enter_context(grpc.insecure_channel(self._leader.address, CHANNEL_OPTIONS))
        self._push: Any = self._channel.unary_unary(method_path("Push"), None, None)
        self._reader = stack.enter_context(es.connect(self._follower.address))
        self._parts = list(self._tables(ids))
        self._next_marker = 1 << 64
        self._until_level()

    def _tables(self, ids: np.ndarray) -> Iterator[TablePart]:
        """Distinct ids with Zipf's frequencies, and gradients."""
        grads = data.some_rows(self._settings, PUSH_ROWS)
        size = min(PUSH_ROWS, self._settings.rows // 2)
        for batch in data.skewed_batches(self._settings, 0, 0.0):
            for begin in range(0, len(batch) - size, size):
                chosen = np.unique(ids[batch[begin : begin + size]])
                yield TablePart("items", chosen, grads[: len(chosen)], None, None, None)

    def lag(self, number: int, rows_per_s: float) -> Figures:
        """Quantiles of the time from a push to the follower's answer, at this rate."""
        self._follower.signal(signal.SIGCONT)
        self._until_level()
        self._at_rate(rows_per_s, min(WARM_UP_S, self._seconds))
        before = self._visible()
        with _Markers(self._push_marker, self._reader, self._seconds) as markers:
            self._at_rate(rows_per_s, self._seconds)
        self._until_level()
        found = _between(before, self._visible())
        return {
            "p50 s": found.quantile(0.5),
            "p99 s": found.quantile(0.99),
            "polled p50 s": float(np.percentile(markers.waits_s, 50)),
            "polled p99 s": float(np.percentile(markers.waits_s, 99)),
        }

    def _push_marker(self) -> int:
        """A row with an id of its own; returns the id."""
        self._next_marker -= 1
        id_, grads = np.array([self._next_marker], np.uint64), self._parts[0].grads[:1]
        part = TablePart("items", id_, grads, None, None, None)
        self._push(encode_push_request(0, [part], [], None, time.time_ns() // 1_000_000))
        return self._next_marker

    def pushed_with(self, number: int) -> Figures:
        """The leader's rate while the follower takes everything."""
        self._follower.signal(signal.SIGCONT)
        self._until_level()
        return self._as_fast_as_it_goes()

    def pushed_without(self, number: int) -> Figures:
        """The leader's rate while nobody reads what it would send."""
        self._until_level()
        self._follower.signal(signal.SIGSTOP)
        try:
            self._as_fast_as_it_goes(0.3)
            return self._as_fast_as_it_goes()
        finally:
            self._follower.signal(signal.SIGCONT)

    @property
    def _seconds(self) -> float:
        return QUICK_SECONDS if self._settings.quick else SECONDS

    def _request(self, number: int) -> tuple[bytes, int]:
        part = self._parts[number % len(self._parts)]
        return encode_push_request(0, [part], [], None, time.time_ns() // 1_000_000), len(part.ids)

    def _at_rate(self, rows_per_s: float, seconds: float) -> None:
        began_s, rows, number = time.monotonic(), 0, 0
        while (elapsed_s := time.monotonic() - began_s) < seconds:
            if rows > elapsed_s * rows_per_s:
                time.sleep(rows / rows_per_s - elapsed_s)
            request, count = self._request(number)
            self._push(request)
            rows, number = rows + count, number + 1

    def _as_fast_as_it_goes(self, seconds: float | None = None) -> Figures:
        """Pushes with some always on their way."""
        began_s, began_cpu_s = time.monotonic(), self._leader.cpu_s()
        rows, number = 0, 0
        waiting: deque[tuple[Any, int]] = deque()
        while time.monotonic() - began_s < (seconds or self._seconds):
            while len(waiting) < IN_FLIGHT:
                request, count = self._request(number)
                waiting.append((self._push.future(request), count))
                number += 1
            call, count = waiting.popleft()
            call.result()
            rows += count
        for call, count in waiting:
            call.result()
            rows += count
        taken_s, cpu_s = time.monotonic() - began_s, self._leader.cpu_s() - began_cpu_s
        return {"us/row": taken_s / rows * 1e6, "leader CPU us/row": cpu_s / rows * 1e6}

    def _visible(self) -> Distribution:
        return self._reader.stats().distributions.get((EVENT_TO_VISIBLE, "items"), freshness.Histogram().read())

    def _until_level(self) -> None:
        """Wait until the follower has everything that the leader had when this began."""
        began_s, deadline_s = time.time(), time.monotonic() + SYNC_TIMEOUT_S
        while True:
            leaders: Sequence[Any] = self._reader.stats().leaders
            if leaders and time.time() - leaders[0].age_s > began_s:
                return
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the follower is not level after {SYNC_TIMEOUT_S:.0f} s")
            time.sleep(0.02)


class _Markers:
    """Pushes new rows, and asks a follower again and again for those that it does not have yet, in a thread."""

    def __init__(self, push: Callable[[], int], reader: Any, seconds: float) -> None:
        self._push = push
        self._reader = reader
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(1)
        self.waits_s: list[float] = []

    def __enter__(self) -> _Markers:
        self._done = self._pool.submit(self._run)
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()
        self._done.result()

    def _run(self) -> None:
        began_s = time.monotonic()
        waiting: dict[int, float] = {}
        pushed = 0
        while (now_s := time.monotonic() - began_s) < self._seconds or waiting:
            if now_s > self._seconds + SYNC_TIMEOUT_S:
                raise RuntimeError(f"{len(waiting)} rows did not come to the follower")
            if now_s < self._seconds and now_s >= pushed * MARKER_S:
                sent_s = time.monotonic()
                waiting[self._push()] = sent_s
                pushed += 1
            if waiting:
                ids = np.array(list(waiting), np.uint64)
                there = ids[self._reader.contains("items", ids)]
                self.waits_s += [time.monotonic() - waiting.pop(id_) for id_ in there.tolist()]
            time.sleep(POLL_S)


def _between(before: Distribution, after: Distribution) -> Distribution:
    counts = tuple(new - old for new, old in zip(after.counts, before.counts, strict=True))
    return Distribution(after.bounds, counts, after.total - before.total)
