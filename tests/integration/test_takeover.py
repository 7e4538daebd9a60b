"""Standbys that take over, one shard or all of them: what was acknowledged is there, once, whoever serves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from processes import Process, free_port

import embedstore as es
from embedstore.errors import (
    EmbedstoreError,
    InvalidArgumentError,
    StaleEpochError,
    StaleGenerationError,
    UnavailableError,
)
from embedstore.server.takeover import activate, reassign, resharded
from embedstore.status import Topology

IDS = np.arange(2000, dtype=np.uint64)
COUNTS = es.TableSpec("counts", dim=2, optimizer=es.SGD(1.0), num_chunks=16)
LEARNT = es.TableSpec("learnt", dim=3, optimizer=es.Adagrad(0.5), init=es.Uniform(0.1, seed=4), num_chunks=8)
REPEATED = es.TableSpec("repeated", dim=1, optimizer=es.SGD(1.0), num_chunks=4, admission=es.MinCount(3))
TIMEOUT_S = 20.0


class Cluster:
    """n shards, whatever follows them, and a writer that counts."""

    def __init__(self, stack: ExitStack, path: Path, num_shards: int) -> None:
        self._stack = stack
        self._path = path
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(num_shards)]
        self.shards = [self.shard(i) for i in range(num_shards)]
        self.position = 0
        with self.connect() as store:
            for spec in (COUNTS, LEARNT, REPEATED):
                store.create_table(spec)

    def serve(self, *arguments: str) -> Process:
        return self._stack.enter_context(Process("--checkpoint-interval-s", "0.3", *arguments))

    def shard(self, i: int) -> Process:
        peers, n = ",".join(self.addresses), len(self.addresses)
        return self.serve(
            *("--listen", self.addresses[i], "--peers", peers, "--shard", f"{i}/{n}"),
            *("--data", str(self._path / f"shard-{i}-of-{n}")),
        )

    def standby(self, i: int, n: int, name: str, listen: str = "127.0.0.1:0") -> Process:
        return self.serve(
            *("--follow", ",".join(self.addresses), "--standby", "--shard", f"{i}/{n}", "--listen", listen),
            *("--data", str(self._path / name), "--sync-interval-ms", "20"),
        )

    def connect(self, address: str | None = None) -> es.RemoteStore:
        """The next writer of the stream."""
        store = self._stack.enter_context(es.connect(address or self.addresses[0], timeout_s=5, retry_s=TIMEOUT_S))
        store.open_stream("events", 0)
        return store

    def push(self, store: es.RemoteStore, ids: np.ndarray = IDS) -> None:
        begin, self.position = self.position, self.position + 1
        store.push(
            {"counts": (ids, -np.ones((len(ids), 2))), "learnt": (ids[::3], np.full((len(ids[::3]), 3), 0.25))},
            origins=[es.Origin("events", begin, self.position)],
        )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def expected(pushes: int) -> np.ndarray:
    """The rows of ``learnt`` after as many pushes, from an embedded store."""
    with es.open(None, tables=[LEARNT]) as store:
        for _ in range(pushes):
            store.push({"learnt": (IDS[::3], np.full((len(IDS[::3]), 3), 0.25))})
        return store.pull({"learnt": IDS[::3]})["learnt"]


def check_counts(store: es.RemoteStore, pushes: int) -> None:
    assert (store.pull({"counts": IDS})["counts"] == pushes).all()
    assert np.array_equal(store.pull({"learnt": IDS[::3]})["learnt"], expected(pushes))


def test_a_standby_takes_over_with_everything_and_the_old_leader_is_fenced(stack: ExitStack, tmp_path: Path) -> None:
    cluster = Cluster(stack, tmp_path, 2)
    standby = cluster.standby(1, 2, "standby")
    writer = cluster.connect()
    cluster.push(writer)
    cluster.push(writer)
    writer.assign("counts", [7777, 8888], [[1.5, 2.5]] * 2)
    writer.put_dense("weights", {"w": np.arange(4.0)}, {"events": 2})
    for _ in range(2):
        writer.push({"repeated": (IDS, -np.ones((len(IDS), 1)))})
    assert not writer.contains("repeated", IDS).any()
    [record] = activate([standby.address], None, force=False, timeout_s=TIMEOUT_S)
    assert record == Topology(2, (cluster.addresses[0], standby.address), 2)
    # Whoever was connected goes on, and the writer is the same one.
    cluster.push(writer)
    writer.assign("counts", [8888], [[3.5, 4.5]])
    assert writer.pull({"counts": [7777, 8888]})["counts"].tolist() == [[1.5, 2.5], [3.5, 4.5]]
    check_counts(writer, 3)
    writer.push({"repeated": (IDS, -np.ones((len(IDS), 1)))})
    assert writer.contains("repeated", IDS).all(), "a standby knows how often an id without a row was met"
    with cluster.connect() as store:
        assert store.watermarks()["events"].watermarks == (3,)
        assert store.get_dense("weights").tensors["w"].tolist() == [0, 1, 2, 3]
        cluster.push(store)
        check_counts(store, 4)
        assert store.watermarks()["events"].generation == 3, "the writers before the takeover count"
        with cluster.connect(), pytest.raises(StaleGenerationError):
            store.push({"counts": ([1], [[1, 1]])}, origins=[es.Origin("events", 4, 5)])
    # Again is harmless, and the one that was replaced knows it, also after a restart.
    assert activate([standby.address], None, force=False, timeout_s=TIMEOUT_S) == [record]
    assert reassign(cluster.addresses[1], record).fenced
    assert cluster.shards[1].terminate() == 0
    old = cluster.shard(1)
    assert old.ready_line == f"embedstore: replaced, sending callers to {standby.address} from {old.address}"
    assert reassign(old.address, record).fenced
    # The new one comes back as what it has become.
    standby.kill()
    again = cluster.standby(1, 2, "standby", listen=standby.address)
    assert again.ready_line == f"embedstore: serving shard 1/2 on {standby.address}"
    with cluster.connect() as store:
        cluster.position = store.watermarks()["events"].applied
        while cluster.position < 5:
            cluster.push(store)
        check_counts(store, 5)


def test_a_leader_that_cannot_be_reached_is_replaced_by_force_and_stays_fenced(
    stack: ExitStack, tmp_path: Path
) -> None:
    cluster = Cluster(stack, tmp_path, 1)
    standby = cluster.standby(0, 1, "standby")
    with cluster.connect() as store:
        cluster.push(store)
        store.checkpoint()
    with cluster.connect() as store:
        until(lambda: store.stats().standbys == (standby.address,))
        cluster.push(store)
        until(lambda: store.checkpoint() is not None and store.watermarks()["events"].durable == 2)
    cluster.shards[0].kill()
    with pytest.raises(UnavailableError):
        activate([standby.address], None, force=False, timeout_s=1.0)
    [record] = activate([standby.address], None, force=True, timeout_s=TIMEOUT_S)
    assert record == Topology(2, (standby.address,), 1)
    with cluster.connect(standby.address) as store:
        cluster.position = store.watermarks()["events"].applied
        assert cluster.position == 2, "a listed standby has what is durable"
        cluster.push(store)
        check_counts(store, 3)
    # The old leader asks those it has met before it serves anybody.
    old = cluster.shard(0)
    assert reassign(old.address, record).fenced


def until(done: Callable[[], bool]) -> None:
    """Asks again and again: each question is a call to a shard, which takes its time."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not done():
        assert time.monotonic() < deadline_s


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (1, 4)])
def test_resharding_loses_and_doubles_nothing(stack: ExitStack, tmp_path: Path, before: int, after: int) -> None:
    cluster = Cluster(stack, tmp_path, before)
    writer = cluster.connect()
    cluster.push(writer)
    writer.put_dense("weights", {"w": np.ones(3)}, {"events": 1})
    standbys = [cluster.standby(j, after, f"new-{j}") for j in range(after)]
    targets = [standby.address for standby in standbys]
    cluster.push(writer, IDS[:1000])
    cluster.push(writer, IDS[1000:])
    record = resharded(cluster.addresses[:1], targets, TIMEOUT_S)
    assert record == Topology(2, tuple(targets), after)
    assert activate(targets, record, force=False, timeout_s=TIMEOUT_S) == [record] * after
    assert resharded(cluster.addresses[:1], targets, TIMEOUT_S) == record, "it has begun, and is not begun again"
    for address in cluster.addresses:
        assert reassign(address, record).fenced
    check_all(writer, 2)
    cluster.push(writer)
    with cluster.connect(targets[-1]) as store:
        check_all(store, 3)
        cluster.push(store)
        check_all(store, 4)
        assert store.get_dense("weights").tensors["w"].tolist() == [1, 1, 1]
        assert store.watermarks()["events"].watermarks == (5,)


def check_all(store: es.RemoteStore, pushes: int) -> None:
    assert (store.pull({"counts": IDS})["counts"] == pushes).all()
    assert sum(len(ids) for ids, _ in store.scan("counts")) == len(IDS)


def test_takeovers_that_cannot_be_are_refused_and_change_nothing(stack: ExitStack, tmp_path: Path) -> None:
    cluster = Cluster(stack, tmp_path, 2)
    standby = cluster.standby(1, 2, "standby")
    with pytest.raises(InvalidArgumentError, match="is no standby, and nobody has replaced it"):
        activate([cluster.addresses[0]], None, force=False, timeout_s=1)
    with pytest.raises(InvalidArgumentError, match="topology: names"):
        activate([standby.address], Topology(2, ("a:1", "b:2"), 2), force=True, timeout_s=1)
    with pytest.raises(InvalidArgumentError, match="must have 2 shards"):
        activate([standby.address], Topology(2, (standby.address,), 1), force=True, timeout_s=1)
    with pytest.raises(InvalidArgumentError, match="TopologyRecord"):
        reassign(cluster.addresses[0], Topology(2, ("a:1",), 2))
    with pytest.raises(InvalidArgumentError, match="does not stand by for shard 0"):
        resharded(cluster.addresses, [standby.address], TIMEOUT_S)
    with pytest.raises(EmbedstoreError):
        reassign(standby.address, Topology(2, ("a:1", "b:2"), 2))
    with cluster.connect() as store:
        cluster.push(store)
        check_counts(store, 1)
        # A record of the same epoch with other addresses comes too late.
        record = Topology(2, (cluster.addresses[0], standby.address), 2)
        reassign(cluster.addresses[0], record)
        reassign(cluster.addresses[0], record)
        with pytest.raises(StaleEpochError):
            reassign(cluster.addresses[0], Topology(2, (cluster.addresses[0], "127.0.0.1:1"), 2))
        with pytest.raises(StaleEpochError):
            reassign(cluster.addresses[0], Topology(1, tuple(cluster.addresses), 2))


def test_nobody_reads_from_a_standby(stack: ExitStack, tmp_path: Path) -> None:
    cluster = Cluster(stack, tmp_path, 1)
    standby = cluster.standby(0, 1, "standby")
    assert standby.ready_line == f"embedstore: standing by for shard 0/1 on {standby.address}"
    with cluster.connect(standby.address) as store:
        cluster.push(store)
        check_counts(store, 1)
    assert standby.terminate() == 0
    assert not (tmp_path / "standby").exists()
