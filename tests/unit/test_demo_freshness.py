"""Time to first embedding is measured from the first event to the row, and never invented."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import embedstore as es
from embedstore.errors import UnavailableError
from trainer.demo.freshness import FreshnessProbe

SPEC = es.TableSpec("items", dim=4, optimizer=es.SGD(lr=1.0))
TIMEOUT_S = 10.0


@pytest.fixture
def store() -> Iterator[es.Store]:
    opened = es.open(None, tables=[SPEC])
    yield opened
    opened.close()


def wait_seen(probe: FreshnessProbe) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while probe.waiting():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    probe.stop()


class Asked:
    """A reader that says when it has been asked so many times."""

    def __init__(self, reader: es.Reader) -> None:
        self._reader = reader
        self._condition = threading.Condition()
        self._count = 0
        self.away = False

    def contains(self, table: str, ids: es.interface.Ids) -> np.ndarray:
        with self._condition:
            self._count += 1
            self._condition.notify_all()
        if self.away:
            raise UnavailableError("follower", "away")
        return self._reader.contains(table, ids)

    def wait_asked(self, more: int) -> None:
        with self._condition:
            wanted = self._count + more
            assert self._condition.wait_for(lambda: self._count >= wanted, TIMEOUT_S)


def test_rows_that_appear_are_seen_once_and_those_that_do_not_go_on_waiting(store: es.Store) -> None:
    asked = Asked(store)
    probe = FreshnessProbe(asked, "items", interval_s=0.001)  # type: ignore[arg-type]
    began_s = time.time()
    probe.expect(np.array([1, 2, 3]), np.array([began_s, began_s, began_s + 3600.0]))
    probe.start()
    asked.wait_asked(2)
    assert probe.waiting() == 2 and probe.sights(began_s) == []
    store.assign("items", [2, 3], np.ones((2, 4), np.float32))
    asked.wait_asked(2)
    probe.stop()
    (sight,) = probe.sights(began_s)
    assert sight.first_event_s == 0.0 and 0.0 < sight.wait_s <= time.time() - began_s
    assert probe.waiting() == 1


def test_a_follower_that_is_away_costs_waiting_and_not_the_measurement(store: es.Store) -> None:
    asked = Asked(store)
    asked.away = True
    probe = FreshnessProbe(asked, "items", interval_s=0.001)  # type: ignore[arg-type]
    store.assign("items", [7], np.ones((1, 4), np.float32))
    probe.expect(np.array([7]), np.array([time.time()]))
    probe.start()
    asked.wait_asked(2)
    assert probe.sights(0.0) == []
    asked.away = False
    wait_seen(probe)
    assert len(probe.sights(0.0)) == 1


def test_a_table_that_is_not_there_yet_is_waited_for() -> None:
    with_nothing = es.open(None)
    asked = Asked(with_nothing)
    probe = FreshnessProbe(asked, "items", interval_s=0.001)  # type: ignore[arg-type]
    probe.expect(np.array([7]), np.array([time.time()]))
    probe.start()
    asked.wait_asked(1)
    with_nothing.create_table(SPEC)
    with_nothing.assign("items", [7], np.ones((1, 4), np.float32))
    wait_seen(probe)
    assert len(probe.sights(0.0)) == 1
    with_nothing.close()


def test_what_stops_the_probe_reaches_whoever_reads_the_sights(store: es.Store) -> None:
    probe = FreshnessProbe(store, "items", interval_s=0.001)
    store.close()
    probe.expect(np.array([7]), np.array([time.time()]))
    probe.start()
    probe.join(TIMEOUT_S)
    with pytest.raises(es.ClosedError):
        probe.sights(0.0)
