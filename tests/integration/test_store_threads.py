"""Many threads on one store: nothing lost, nothing twice, and whoever waits for a change is woken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import COUNTED, ones

import embedstore as es
from embedstore.store import LocalStore


def run_all(*calls: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as problem:
            failures.append(problem)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures, failures


@pytest.mark.parametrize("durable", [False, True])
def test_pushes_of_many_streams_run_side_by_side(tmp_path: Path, durable: bool) -> None:
    ids = np.arange(300, dtype=np.uint64)
    store = LocalStore(tmp_path / "store" if durable else None, [COUNTED])
    stop = threading.Event()

    def stream(name: str) -> Callable[[], None]:
        def push() -> None:
            at = store.open_stream(name, 0).applied
            for step in range(at, 60):
                store.push({"items": (ids, ones(300))}, origins=[es.Origin(name, step, step + 1)])

        return push

    def tables_come_and_go() -> None:
        for number in range(10):
            spec = es.TableSpec(f"t{number % 3}", dim=2, num_chunks=4)
            store.create_table(spec)
            if number % 2:
                store.drop_table(spec.name)
        stop.set()

    def checkpoints() -> None:
        while not stop.is_set():
            store.checkpoint()
            store.stats()

    run_all(*(stream(f"s{number}") for number in range(4)), tables_come_and_go, checkpoints)
    assert (store.pull({"items": ids})["items"] == -240).all()
    assert {state.applied for state in store.watermarks().values()} == {60}
    store.close()


def test_writers_who_race_for_the_same_ranges_apply_each_once() -> None:
    store = LocalStore(None, [COUNTED])
    store.open_stream("s", 0)
    repeats = []

    def push() -> None:
        for step in range(100):
            while True:
                try:
                    result = store.push({"items": ([1], ones(1))}, origins=[es.Origin("s", step, step + 1)])
                except es.GapError:
                    continue
                repeats.append(result.repeated)
                break

    run_all(push, push, push)
    assert store.pull({"items": [1]})["items"][0, 0] == -100
    assert sorted(repeats).count(False) == 100
    store.close()


def test_a_waiter_is_woken_by_every_kind_of_change() -> None:
    store = LocalStore(None, [COUNTED])
    changes: list[Callable[[], object]] = [
        lambda: store.push({"items": ([1], ones(1))}),
        lambda: store.open_stream("s", 0),
        lambda: store.push({}, origins=[es.Origin("s", 0, 1)]),
        lambda: store.assign("items", [1], ones(1)),
        lambda: store.delete("items", [1]),
        lambda: store.put_dense("model", {"w": np.ones(1)}, {}),
        lambda: store.create_table(es.TableSpec("new", dim=1)),
        lambda: store.alter_table(es.TableSpec("new", dim=1, optimizer=es.Adagrad(lr=9.0))),
        lambda: store.drop_table("new"),
        store.close,
    ]
    for change in changes:
        tick = store.tick()
        seen: list[int] = []

        def wait(tick: int = tick, seen: list[int] = seen) -> None:
            seen.append(store.wait_changed(tick, 30.0))

        def make(change: Callable[[], object] = change) -> None:
            change()

        run_all(wait, make)
        assert seen[0] != tick
    assert store.wait_changed(store.tick(), 0.01) == store.tick()


def test_closing_lets_running_pushes_finish_and_keeps_them(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store", [COUNTED])
    answered = []
    enough, started = threading.Semaphore(0), threading.Barrier(4)

    def push() -> None:
        started.wait()
        try:
            while True:
                store.push({"items": ([1], ones(1))})
                answered.append(1)
                enough.release()
        except es.ClosedError:
            return

    def close() -> None:
        started.wait()
        for _ in range(100):
            enough.acquire()
        store.close()

    run_all(push, push, push, close)
    with LocalStore(tmp_path / "store") as again:
        assert again.pull({"items": [1]})["items"][0, 0] == -len(answered)


def test_ids_that_change_during_a_push_are_still_rows_that_are_found(tmp_path: Path) -> None:
    """Whatever a caller's thread does to an array that is being pushed: no id gets two rows, none is in a wrong chunk,
    and the checkpoint can be read."""
    ids = np.arange(20_000, dtype=np.uint64)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            ids[:] = ids[::-1] * np.uint64(3) % np.uint64(50_000)

    changing = threading.Thread(target=change)
    changing.start()
    store = LocalStore(tmp_path, [COUNTED])
    try:
        for _ in range(100):
            store.push({"items": (ids, ones(len(ids)))})
    finally:
        stop.set()
        changing.join()
    found = np.concatenate([piece for piece, _ in store.scan("items")])
    assert len(np.unique(found)) == len(found)
    assert store.contains("items", found).all()
    store.close()
    again = LocalStore(tmp_path)
    assert again.corrupt_chunks() == 0
    assert again.stats().tables["items"].rows == len(found)
    again.close()
