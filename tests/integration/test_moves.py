"""Clients go over to other shards without a restart: nothing fails, nothing is lost, nothing counts twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving_shards import COUNTED, MovingShards, local

import embedstore as es
from embedstore.client import RemoteStore
from embedstore.status import Topology
from embedstore.updates import UNKNOWN

IDS = np.arange(40, dtype=np.uint64)
GRADS = np.ones((40, 1), np.float32)


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[MovingShards]:
    with MovingShards(tmp_path) as started:
        yield started


@pytest.fixture
def store(shards: MovingShards) -> Iterator[RemoteStore]:
    with es.connect(shards.addresses[0], timeout_s=5.0, retry_s=20.0) as connected:
        connected.open_stream("s", 0)
        connected.push({"counted": (IDS, GRADS)})
        connected.put_dense("weights", {"w": np.ones(2)}, {"s": 0})
        yield connected


def counts(store: es.Reader) -> set[float]:
    return set((-store.pull({"counted": IDS})["counted"][:, 0]).tolist())


def scanned(store: es.Reader) -> list[int]:
    return sorted(int(key) for ids, _ in store.scan("counted") for key in ids)


def push(store: es.Store, begin: int, end: int) -> es.PushResult:
    return store.push({"counted": (IDS, GRADS * (end - begin))}, origins=[es.Origin("s", begin, end)])


def assign(store: RemoteStore) -> bool:
    store.assign("counted", IDS, -3 * GRADS)
    return counts(store) == {3.0}


def alter_table(store: RemoteStore) -> bool:
    store.alter_table(es.TableSpec("counted", 1, es.SGD(lr=2.0), num_chunks=8))
    return store.spec("counted").optimizer == es.SGD(lr=2.0)


def drop_table(store: RemoteStore) -> bool:
    store.drop_table("counted")
    return store.tables() == {}


CALLS: dict[str, Callable[[RemoteStore], Any]] = {
    "pull": lambda store: counts(store) == {1.0},
    "contains": lambda store: store.contains("counted", IDS).all(),
    "scan": lambda store: scanned(store) == IDS.tolist(),
    "get_dense": lambda store: store.get_dense("weights").position == {"s": 0},
    "stats": lambda store: store.stats().tables["counted"].rows == len(IDS),
    "watermarks": lambda store: store.watermarks()["s"].applied == 0,
    "tables": lambda store: store.tables() == {"counted": COUNTED},
    "push with origins": lambda store: push(store, 0, 1).streams["s"].applied == 1 and counts(store) == {2.0},
    "push": lambda store: not store.push({"counted": (IDS, GRADS)}).repeated and counts(store) == {2.0},
    "assign": assign,
    "delete": lambda store: store.delete("counted", IDS[:7]) == 7 and len(scanned(store)) == len(IDS) - 7,
    "put_dense": lambda store: store.put_dense("weights", {"w": np.zeros(2)}, {"s": 1}) == 2,
    "open_stream": lambda store: store.open_stream("s", 0).generation == 2,
    "create_table": lambda store: store.create_table(es.TableSpec("other", 2, num_chunks=4)),
    "alter_table": alter_table,
    "drop_table": drop_table,
    "sweep": lambda store: set(store.sweep()) == {"counted"},
    "checkpoint": lambda store: store.checkpoint().seconds >= 0,
}


def test_every_call_goes_over_to_a_new_record(tmp_path: Path) -> None:
    for number, (name, call) in enumerate(CALLS.items()):
        with MovingShards(tmp_path / str(number)) as shards, es.connect(shards.addresses[1]) as store:
            store.open_stream("s", 0)
            store.push({"counted": (IDS, GRADS)})
            store.put_dense("weights", {"w": np.ones(2)}, {"s": 0})
            shards.bump()
            assert call(store), name
            assert store.topology == shards.record, name


def test_a_shard_that_moved_is_found_by_asking_the_others(shards: MovingShards, store: RemoteStore) -> None:
    shards.move(1)
    assert counts(store) == {1.0}
    push(store, 0, 2)
    shards.move(0)
    store.push({"counted": (IDS, GRADS)})
    assert counts(store) == {4.0}
    assert store.topology == shards.record
    assert store.get_dense("weights").position == {"s": 0}


def test_a_replaced_shard_that_answers_sends_its_callers_on(shards: MovingShards, store: RemoteStore) -> None:
    shards.move(1, leave=True, tell=False)  # shard 0 has not learnt yet, and does so a little later
    later = threading.Timer(0.5, shards.tell)
    later.start()
    store.assign("counted", IDS, -5 * GRADS)
    later.join()
    assert counts(store) == {5.0}
    assert local(shards.others[0]).table("counted").stats().rows < len(IDS)


def test_a_lone_shard_is_replaced_by_another_member_that_was_given(tmp_path: Path) -> None:
    with MovingShards(tmp_path, 1) as shards:
        first = shards.addresses[0]
        shards.move(0)
        second = shards.addresses[0]
        shards.shards[0].stop()
        shards.addresses, shards.epoch = [first], 1
        shards.shards[0] = shards._start(0, first)
        with es.connect([first, second], timeout_s=5.0, retry_s=20.0) as store:
            store.push({"counted": (IDS, GRADS)})
            shards.shards[0].stop()
            shards.addresses, shards.epoch = [second], 2
            shards.shards[0] = shards._start(0, second)
            store.push({"counted": (IDS, GRADS)})
            assert counts(store) == {2.0}
            assert store.topology == shards.record


def test_a_shard_that_has_not_learnt_is_asked_again_and_named_in_the_end(shards: MovingShards) -> None:
    with es.connect(shards.addresses, timeout_s=2.0, retry_s=1.0) as store:
        shards.epoch += 1
        shards.tell(0)
        with pytest.raises(es.UnavailableError, match="request has epoch 2, the shard is at 1") as caught:
            store.push({"counted": (IDS, GRADS)})
        assert caught.value.address == shards.addresses[1]
        assert store.topology.epoch == 2
        shards.tell(1)
        store.push({"counted": (IDS, GRADS)})
        assert counts(store) == {1.0, 2.0}, "shard 0 has both"


@pytest.mark.parametrize(
    "record",
    [
        Topology(2, (), 2),
        Topology(2, ("127.0.0.1:1",), 2),
        Topology(2, ("127.0.0.1:1", "127.0.0.1:1"), 2),
        Topology(2, ("127.0.0.1:1", "nowhere"), 2),
        Topology(2, ("127.0.0.1:1", " 127.0.0.1:2"), 2),
        Topology(2, (), 0),
        Topology(0, ("127.0.0.1:1", "127.0.0.1:2"), 2),
    ],
)
def test_a_record_that_cannot_be_is_never_adopted(shards: MovingShards, store: RemoteStore, record: Topology) -> None:
    before = store.topology
    assert not store.peers.adopt(record)
    shards.shards[0]._serving.topology = record
    with es.connect(shards.addresses, timeout_s=2.0, retry_s=0.5) as other:
        assert other.topology.epoch == 1, "shard 1 has a record that can be"
        with pytest.raises(es.UnavailableError):
            other.stats()
        assert other.topology == before
    shards.epoch = 3
    shards.tell()
    assert counts(store) == {1.0}
    assert store.topology == shards.record


def test_all_members_away_and_back_elsewhere(shards: MovingShards, store: RemoteStore) -> None:
    for shard in shards.shards:
        shard.stop()
    done: list[set[float]] = []
    waiting = [threading.Thread(target=lambda: done.append(counts(store))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    shards.epoch += 1
    shards.shards = [shards._start(shard) for shard in range(2)]
    shards.move(0)
    for thread in waiting:
        thread.join(30)
    assert done == [{1.0}] * 3
    assert store.topology == shards.record


def test_connections_of_an_old_route_are_closed_when_its_last_call_has_ended(
    shards: MovingShards, store: RemoteStore
) -> None:
    old = store.peers._route
    pieces = store.scan("counted")
    first = next(pieces)
    shards.move(1, leave=True)
    shards.move(0, leave=True)
    assert counts(store) == {1.0}
    assert store.peers._routes == [old, store.peers._route]
    rest = list(pieces)
    assert sorted(int(key) for ids, _ in [first, *rest] for key in ids) == IDS.tolist()
    assert store.peers._routes == [store.peers._route]
    for peer in old.peers:
        with pytest.raises(ValueError, match="closed"):
            peer.unary("Topology")(b"", timeout=1.0)


def test_concurrent_callers_adopt_a_record_once(shards: MovingShards, store: RemoteStore) -> None:
    for _ in range(5):
        shards.bump()
        with ThreadPoolExecutor(8) as pool:
            assert set(map(frozenset, pool.map(lambda _: counts(store), range(16)))) == {frozenset({1.0})}
        assert store.topology == shards.record
        assert store.peers._routes == [store.peers._route]


def test_specs_are_read_again_after_a_move(shards: MovingShards, store: RemoteStore) -> None:
    for shard in shards.shards:
        local(shard).alter_table(es.TableSpec("counted", 1, optimizer=es.SGD(lr=7.0), num_chunks=8))
    assert store.spec("counted") == COUNTED
    shards.bump()
    assert counts(store) == {1.0}
    assert store.spec("counted").optimizer == es.SGD(lr=7.0)


def test_only_what_was_not_answered_is_repeated(shards: MovingShards, store: RemoteStore) -> None:
    calls: list[tuple[Callable[[], int], int]] = [
        (lambda: store.create_table(es.TableSpec("other", 2, num_chunks=4)), True),
        (lambda: store.delete("counted", IDS), len(IDS)),
    ]
    for call, result in calls:
        shards.epoch += 1
        shards.tell(1)  # shard 0 answers as before, and would not answer again
        assert call() == result
        assert store.topology == shards.record
        shards.tell(0)


def test_an_update_whose_answer_was_lost_is_recognised_by_the_successor(
    shards: MovingShards, store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving = local(shards.shards[1])
    apply, arrived, forgotten = leaving.push, threading.Event(), threading.Event()

    def push_and_leave(*args: Any, **more: Any) -> es.PushResult:
        if arrived.is_set():
            raise es.UnavailableError("here", "is leaving")
        result: es.PushResult = apply(*args, **more)
        arrived.set()
        forgotten.wait(30)
        return result

    monkeypatch.setattr(leaving, "push", push_and_leave)
    with es.connect(shards.addresses, timeout_s=0.3, retry_s=20.0) as hasty, ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(hasty.push, {"counted": (IDS, GRADS)})
        assert arrived.wait(10)
        deadline_s = time.monotonic() + 10
        while hasty.peers._searches == 0:  # it has given up waiting and asked around
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        forgotten.set()
        shards.move(1)
        assert pushing.result(20).lost_updates == 0
        assert counts(hasty) == {2.0}


# -- another number of shards


@pytest.mark.parametrize("num_shards", [1, 3, 5])
def test_calls_are_split_anew_for_another_number_of_shards(
    shards: MovingShards, store: RemoteStore, num_shards: int
) -> None:
    push(store, 0, 2)
    steps: list[Callable[[], Any]] = [
        lambda: push(store, 2, 3),
        lambda: store.push({"counted": (IDS, GRADS)}),
        lambda: store.assign("counted", IDS, -4 * GRADS),
        lambda: store.delete("counted", IDS[:5]),
        lambda: scanned(store),
        lambda: store.put_dense("weights", {"w": np.zeros(2)}, {"s": 5}),
    ]
    expected: list[Callable[[], bool]] = [
        lambda: counts(store) == {4.0},
        lambda: counts(store) == {5.0},
        lambda: counts(store) == {4.0},
        lambda: store.contains("counted", IDS).tolist() == [False] * 5 + [True] * 35,
        lambda: scanned(store) == IDS[5:].tolist(),
        lambda: store.get_dense("weights").position == {"s": 5},
    ]
    for number, (step, holds) in enumerate(zip(steps, expected, strict=True)):
        shards.reshard(num_shards if number % 2 == 0 else 2)
        step()
        assert store.topology == shards.record
        assert holds()
    assert store.watermarks()["s"].watermarks == (3,)


def test_a_scan_goes_on_where_it_was_when_the_number_of_shards_changes(
    shards: MovingShards, store: RemoteStore
) -> None:
    for num_shards in (3, 2, 1, 5):
        pieces = store.scan("counted")
        found = [next(pieces)]
        shards.reshard(num_shards)
        found += list(pieces)
        assert sorted(int(key) for ids, _ in found for key in ids) == IDS.tolist()


def test_an_update_whose_outcome_cannot_be_known_says_so(shards: MovingShards, monkeypatch: pytest.MonkeyPatch) -> None:
    with es.connect(shards.addresses, timeout_s=0.3, retry_s=10.0) as store, ThreadPoolExecutor(1) as pool:
        store.push({"counted": (IDS, GRADS)})
        arrived = threading.Event()
        quick, slow = map(local, shards.shards)
        tick, apply = quick.tick(), slow.push

        def push_slowly(*args: Any, **more: Any) -> es.PushResult:
            arrived.set()
            result: es.PushResult = apply(*args, **more)
            return result

        monkeypatch.setattr(slow, "push", push_slowly)
        with slow._streams.gate.alone():
            pushing = pool.submit(store.push, {"counted": (IDS, GRADS)})
            assert arrived.wait(10.0)
            assert quick.wait_changed(tick, 10.0) > tick
            shards.epoch += 1
            shards.addresses = [*shards.addresses, "127.0.0.1:1"]
            shards.tell(0, 1)
            with pytest.raises(es.UnavailableError, match=UNKNOWN):
                pushing.result(20)
            shards.addresses.pop()


def test_gradients_that_one_shard_would_check_are_checked_before_more_get_them(
    tmp_path: Path,
) -> None:
    bad = GRADS.copy()
    bad[17, 0] = np.nan
    with MovingShards(tmp_path, 1) as shards, es.connect(shards.addresses[0]) as store:
        store.push({"counted": (IDS, GRADS)})
        shards.reshard(3)
        for origins in ([], [es.Origin("s", 0, 1)]):
            with pytest.raises(es.InvalidArgumentError, match="finite"):
                store.push({"counted": (IDS, bad)}, origins=origins)
        assert counts(store) == {1.0}
