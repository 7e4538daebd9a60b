"""Takeovers that are killed half-way: what was begun can be finished or taken back, and every push counts once."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from lossy_proxy import LossyProxy
from members import Members, start_shards, start_standbys
from processes import run

import embedstore as es
from embedstore.errors import EmbedstoreError, GapError, InvalidArgumentError, UnavailableError
from embedstore.server.takeover import activate, reassign, resharded
from embedstore.status import Topology
from embedstore.v1 import admin_pb2, admin_pb2_grpc

IDS = np.arange(600, dtype=np.uint64)
COUNTS = es.TableSpec("counts", dim=1, optimizer=es.SGD(1.0), num_chunks=16)
TIMEOUT_S = 30.0
PUSHES_MIN = 60
KILLS = 5


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def told(address: str) -> admin_pb2.TopologyResponse:
    with grpc.insecure_channel(address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        answer: admin_pb2.TopologyResponse = stub.Topology(admin_pb2.TopologyRequest(), timeout=10)
    return answer


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of the whole session, which prints it; without one, a new number that is printed here."""
    chosen = int(request.config.getoption("hypothesis_seed", None) or random.SystemRandom().getrandbits(32))
    print(f"seed {chosen}")
    return chosen


def connect(address: str, retry_s: float = TIMEOUT_S) -> es.RemoteStore:
    return es.connect(address, timeout_s=2, retry_s=retry_s)


class Writer:
    """Counts: push k adds one to a random half of the ids. Reads its log again from wherever it is told to."""

    def __init__(self, addresses: list[str], seed: int) -> None:
        self._addresses, self._seed = addresses, seed
        self.pushed = 0
        self._stop = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ids(self, k: int) -> np.ndarray:
        return IDS[np.random.default_rng((self._seed, k)).random(len(IDS)) < 0.5]

    def _run(self) -> None:
        try:
            with connect(self._addresses[0], retry_s=120) as store:
                k = store.open_stream("events", 0).applied
                while not self._stop.is_set() or k < self.pushed:
                    ids = self.ids(k)
                    try:
                        store.push({"counts": (ids, -np.ones((len(ids), 1)))}, origins=[es.Origin("events", k, k + 1)])
                    except GapError as gap:
                        k = gap.watermarks["events"][0]
                    else:
                        k += 1
                        self.pushed = max(self.pushed, k)
        except BaseException as problem:
            self._problem = problem

    def wait_pushed(self, count: int) -> None:
        deadline_s = time.monotonic() + 120
        while self.pushed < count and self._problem is None:
            assert time.monotonic() < deadline_s, f"stands at {self.pushed}"
            self._thread.join(0.02)
        if self._problem is not None:
            raise self._problem

    def finish(self) -> int:
        """How many pushes there were, all of them acknowledged."""
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self._problem is not None:
            raise self._problem
        return self.pushed

    def expected(self) -> np.ndarray:
        counts = np.zeros(len(IDS))
        for k in range(self.pushed):
            counts[self.ids(k)] += 1
        return counts


def check(writer: Writer, addresses: list[str]) -> None:
    writer.finish()
    with connect(addresses[0]) as store:
        counts = store.pull({"counts": IDS})["counts"][:, 0]
        wrong = np.flatnonzero(counts != writer.expected())
        assert not len(wrong), f"{writer.pushed} pushes; ids {wrong[:5]} have {counts[wrong[:5]]}"
        assert sum(len(ids) for ids, _ in store.scan("counts")) == len(IDS)


def test_a_resharding_that_lost_a_standby_is_finished_by_the_same_command(stack: ExitStack, tmp_path: Path) -> None:
    members = Members(stack, tmp_path)
    old = start_shards(members, 2, COUNTS)
    writer = Writer(old, 1)
    new = start_standbys(members, old, 3)
    writer.wait_pushed(20)
    record = resharded(old, new, TIMEOUT_S)
    members.kill("new-2")
    with pytest.raises(UnavailableError):
        activate(new, record, force=False, timeout_s=5)
    for name in ("old-1", "new-0"):
        members.kill(name)
        members.restart(name)
    members.restart("new-2")
    done = run(["shard", "reshard", "--servers", old[0], "--to", ",".join(new), "--timeout-s", "30"])
    assert done.returncode == 0, done.stderr
    writer.wait_pushed(writer.pushed + 20)
    check(writer, new)


def test_a_takeover_that_came_to_nothing_is_taken_back(stack: ExitStack, tmp_path: Path) -> None:
    members = Members(stack, tmp_path)
    old = start_shards(members, 2, COUNTS)
    writer = Writer(old, 2)
    writer.wait_pushed(10)
    reassign(old[1], Topology(2, (old[0], "127.0.0.1:1"), 2))
    members.kill("old-1")
    members.restart("old-1")
    with pytest.raises(InvalidArgumentError, match="force: is needed"):
        activate([old[1]], None, force=False, timeout_s=5)
    done = run(["shard", "promote", old[1], "--force"])
    assert done.returncode == 0, done.stderr
    writer.wait_pushed(writer.pushed + 10)
    check(writer, old)


def test_a_leader_that_wakes_after_its_replacement_fences_itself(stack: ExitStack, tmp_path: Path) -> None:
    members = Members(stack, tmp_path)
    [old] = start_shards(members, 1, COUNTS)
    with connect(old) as store:
        store.open_stream("events", 0)
        store.push({"counts": (IDS, -np.ones((len(IDS), 1)))}, origins=[es.Origin("events", 0, 1)])
        [new] = start_standbys(members, [old], 1)
        deadline_s = time.monotonic() + TIMEOUT_S
        while store.stats().standbys != (new,):
            assert time.monotonic() < deadline_s
    sleeper = members.running["old-0"].process
    sleeper.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(UnavailableError):
            activate([new], None, force=False, timeout_s=2)
        [record] = activate([new], None, force=True, timeout_s=2)
        with connect(new) as store:
            store.open_stream("events", 0)
            store.push({"counts": (IDS, -np.ones((len(IDS), 1)))}, origins=[es.Origin("events", 1, 2)])
    finally:
        sleeper.send_signal(signal.SIGCONT)
    deadline_s = time.monotonic() + TIMEOUT_S
    while not told(old).fenced:
        assert time.monotonic() < deadline_s
    with connect(old) as store:
        assert store.stats().tables["counts"].rows == len(IDS)
        assert (store.pull({"counts": IDS})["counts"] == 2).all(), "it sends its callers to the one that replaced it"
    assert record.addresses == (new,)


def test_a_standby_promoted_by_force_knows_every_stream_and_table_that_was_acknowledged(
    stack: ExitStack, tmp_path: Path
) -> None:
    members = Members(stack, tmp_path)
    old = members.start("old-0", "--shard", "0/1")
    proxy = stack.enter_context(LossyProxy(old))
    [new] = start_standbys(members, [proxy.address], 1)
    with connect(old) as store:
        deadline_s = time.monotonic() + TIMEOUT_S
        while store.stats().standbys != (new,):
            assert time.monotonic() < deadline_s
        proxy.delay_replies(0.3)
        store.create_table(COUNTS)
        store.alter_table(replace(COUNTS, ttl_s=3600))
        generations = [store.open_stream("events", 7).generation for _ in range(2)]
        members.kill("old-0")
        proxy.reset()
    activate([new], None, force=True, timeout_s=TIMEOUT_S)
    with connect(new) as store:
        state = store.watermarks()["events"]
        assert (state.applied, state.generation) == (7, generations[-1])
        assert store.tables()["counts"].ttl_s == 3600


def test_kills_at_any_moment_of_a_resharding_cost_no_push(stack: ExitStack, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    members = Members(stack, tmp_path)
    old = start_shards(members, 2, COUNTS)
    writer = Writer(old, seed)
    new = start_standbys(members, old, 3)
    writer.wait_pushed(PUSHES_MIN // 2)
    kills = 0
    while True:
        name = chance.choice([each for each in members.running if kills < KILLS - 2 or each.startswith("new")])
        attempt = threading.Thread(target=lambda: run(reshard_command(old, new)), daemon=True)
        attempt.start()
        attempt.join(chance.uniform(0, 1.5))
        if kills < KILLS:
            members.kill(name)
            kills += 1
            attempt.join(chance.uniform(0, 1.0))
            members.restart(name)
        attempt.join()
        if kills >= KILLS and finished(old, new):
            break
    writer.wait_pushed(writer.pushed + PUSHES_MIN // 2)
    check(writer, new)


def reshard_command(old: list[str], new: list[str]) -> list[str]:
    return ["shard", "reshard", "--servers", ",".join(old), "--to", ",".join(new), "--timeout-s", "5"]


def finished(old: list[str], new: list[str]) -> bool:
    try:
        record = resharded(old, new, 2)
        return activate(new, record, force=False, timeout_s=10) == [record] * len(new)
    except (EmbedstoreError, InvalidArgumentError):
        return False
