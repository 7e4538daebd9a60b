"""Standbys take over from shards that are killed or stopped under work: nobody restarts, and counts stay exact."""

from __future__ import annotations

import itertools
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from processes import Process, free_port

import embedstore as es
from embedstore.client import RemoteStore
from embedstore.server.follow import FollowerStore
from embedstore.server.takeover import activate, resharded
from embedstore.updates import UNKNOWN

IDS = np.arange(100, dtype=np.uint64)
GRADS = np.ones((100, 1), np.float32)
TIMEOUT_S = 60.0
COUNTED = es.TableSpec("counted", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=8)
LOOSE = es.TableSpec("loose", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=8)


class Group:
    """Two shards, each with a standby that becomes the next leader; whoever was replaced is in ``former``."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._count = 0
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        peers = ",".join(self.addresses)
        self.leaders = [self._serve(shard, "--listen", self.addresses[shard], "--peers", peers) for shard in range(2)]
        self.standbys = [self.standby(shard) for shard in range(2)]

    def _serve(self, shard: int, *arguments: str, of: int = 2) -> Process:
        self._count += 1
        data = str(self._directory / f"data-{self._count}")
        options = ("--shard", f"{shard}/{of}", "--data", data, "--checkpoint-interval-s", "0.3")
        return self._stack.enter_context(Process(*options, "--sync-interval-ms", "20", *arguments))

    def standby(self, shard: int) -> Process:
        return self._serve(shard, "--standby", "--follow", ",".join(self.addresses), "--listen", "127.0.0.1:0")

    def reshard(self, num_shards: int) -> None:
        """As many new shards take over from all present ones."""
        new = [
            self._serve(
                *(shard, "--standby", "--follow", ",".join(self.addresses), "--listen", "127.0.0.1:0"), of=num_shards
            )
            for shard in range(num_shards)
        ]
        targets = [process.address for process in new]
        record = resharded(self.addresses, targets, TIMEOUT_S)
        activate(targets, record, force=False, timeout_s=TIMEOUT_S)
        self.addresses, self.leaders = targets, new

    def take_over(self, shard: int, *, force: bool) -> None:
        """The standby takes its leader's place, and has a standby of its own from then on."""
        [record] = activate([self.standbys[shard].address], None, force=force, timeout_s=TIMEOUT_S)
        self.addresses = list(record.addresses)
        self.leaders[shard] = self.standbys[shard]
        self.standbys[shard] = self.standby(shard)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    with ExitStack() as stack:
        yield Group(tmp_path, stack)


class Work:
    """A writer with origins that rewinds when it is told to, two without, and a reader; all share one client."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self.position = 0
        self.unknown: list[str] = []
        self._writer = self._pool.submit(self._write)
        self._loose = [self._pool.submit(self._write_loose) for _ in range(2)]
        self._reader = self._pool.submit(self._read)

    def wait_for_more(self, follower: FollowerStore) -> None:
        """Wait until work has gone on for a while, which the follower hears of."""
        at = self.position
        assert follower.wait_until(lambda: self.position > at + 20, TIMEOUT_S)

    def finish(self) -> int:
        """Stop; the number of updates without an origin that were carried out everywhere."""
        self._stop.set()
        self._writer.result(TIMEOUT_S)
        self._reader.result(TIMEOUT_S)
        pushed = sum(each.result(TIMEOUT_S) for each in self._loose)
        self._pool.shutdown()
        return pushed

    def _write(self) -> None:
        while not self._stop.is_set():
            self.push(self.position, self.position + 1)
            self.position += 1

    def push(self, begin: int, end: int) -> None:
        """Count the events [begin, end), after whatever a shard lacks below them."""
        try:
            self._store.push({"counted": (IDS, GRADS * (end - begin))}, origins=[es.Origin("s", begin, end)])
        except es.GapError as gap:
            marks = sorted({*gap.watermarks["s"], end})
            for first, last in itertools.pairwise(marks):
                self.push(first, last)

    def _write_loose(self) -> int:
        pushes = 0
        while not self._stop.is_set():
            try:
                self._store.push({"loose": (IDS, GRADS)})
            except es.UnavailableError as error:
                if UNKNOWN not in str(error):
                    raise
                self.unknown.append(str(error))
            else:
                pushes += 1
        return pushes

    def _read(self) -> None:
        while not self._stop.is_set():
            assert self._store.contains("loose", IDS[:1]).all()


def counts(store: es.Reader, table: str) -> np.ndarray:
    found: np.ndarray = -store.pull({table: IDS})[table][:, 0]
    return found


def test_shards_are_replaced_under_work_that_never_stops(group: Group) -> None:
    with (
        es.connect(group.addresses[0], timeout_s=2.0, retry_s=TIMEOUT_S) as store,
        FollowerStore(group.addresses[0], sync_interval_ms=20) as follower,
    ):
        for spec in (COUNTED, LOOSE):
            store.create_table(spec)
        store.open_stream("s", 0)
        store.push({"loose": (IDS, GRADS)})
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", es.LostUpdatesWarning)
            work = Work(store)
            try:
                follower.wait_synced(TIMEOUT_S)
                group.take_over(0, force=False)  # told, drained, and left running
                group.leaders[1].kill()
                group.take_over(1, force=True)
                group.leaders[0].process.send_signal(signal.SIGSTOP)
                stopped = group.leaders[0].process
                group.take_over(0, force=True)
                work.wait_for_more(follower)
                stopped.send_signal(signal.SIGCONT)  # what it wakes up to has been decided without it
            finally:
                pushed = work.finish()
        lost = [warning.message for warning in told if isinstance(warning.message, es.LostUpdatesWarning)]
        assert store.topology.addresses == tuple(group.addresses)
        assert store.topology.epoch == 4
        work.push(work.position, work.position + 1)
        assert set(counts(store, "counted").tolist()) == {work.position + 1.0}
        loose = counts(store, "loose")
        assert loose.max() <= pushed + 1, "no update counts twice"
        assert loose.min() >= pushed + 1 - sum(message.count for message in lost), "no update is lost in silence"
        follower.wait_for({"s": work.position + 1}, TIMEOUT_S)
        assert set(counts(follower, "counted").tolist()) == {work.position + 1.0}


def test_shards_become_more_and_fewer_under_work_that_never_stops(group: Group) -> None:
    with (
        es.connect(group.addresses[0], timeout_s=5.0, retry_s=TIMEOUT_S) as store,
        FollowerStore(group.addresses[0], sync_interval_ms=20) as follower,
    ):
        for spec in (COUNTED, LOOSE):
            store.create_table(spec)
        store.open_stream("s", 0)
        store.push({"loose": (IDS, GRADS)})
        with warnings.catch_warnings():
            warnings.simplefilter("error", es.LostUpdatesWarning)
            work = Work(store)
            try:
                follower.wait_synced(TIMEOUT_S)
                for num_shards in (3, 1, 2):
                    group.reshard(num_shards)
                    work.wait_for_more(follower)
            finally:
                pushed = work.finish()
        assert store.topology.addresses == tuple(group.addresses)
        work.push(work.position, work.position + 1)
        assert set(counts(store, "counted").tolist()) == {work.position + 1.0}
        loose = counts(store, "loose")
        assert loose.min() >= pushed + 1
        assert loose.max() <= pushed + 1 + len(work.unknown), "only what nobody can know is uncertain"
        follower.wait_for({"s": work.position + 1}, TIMEOUT_S)
        assert set(counts(follower, "counted").tolist()) == {work.position + 1.0}
        assert (counts(follower, "loose") == loose).all()
