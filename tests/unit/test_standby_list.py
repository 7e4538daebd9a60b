"""What a listed standby must have before anybody is told of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedstore as es
from embedstore import origins
from embedstore.errors import EmbedstoreError, StaleEpochError

STANDBY = "127.0.0.1:1"


@pytest.fixture
def store() -> Iterator[es.LocalStore]:
    with es.open(None, tables=[es.TableSpec("t", dim=1, num_chunks=2)]) as store:
        store.standby_applied(STANDBY, {}, store.tick())
        assert store.standbys() == (STANDBY,)
        yield store


class Opening:
    """``open_stream`` in a thread."""

    def __init__(self, store: es.LocalStore) -> None:
        self.refused: EmbedstoreError | None = None
        self._store = store
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while "s" not in store.open_streams():
            pass

    def _run(self) -> None:
        try:
            self._store.open_stream("s", 5)
        except EmbedstoreError as error:
            self.refused = error

    def ended(self, timeout_s: float = 10.0) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


def test_a_stream_is_open_when_the_standby_knows_it(store: es.LocalStore) -> None:
    before = store.tick()
    opening = Opening(store)
    store.standby_applied(STANDBY, {"s": 5}, before)
    assert not opening.ended(0.3)
    store.standby_applied(STANDBY, {"s": 5}, store.tick())
    assert opening.ended() and opening.refused is None


def test_a_leader_that_is_replaced_meanwhile_does_not_say_that_it_opened(store: es.LocalStore) -> None:
    opening = Opening(store)
    store.fence(2, lambda: StaleEpochError(1, 2))
    assert opening.ended()
    assert isinstance(opening.refused, StaleEpochError)


def test_a_standby_that_never_hears_of_it_leaves_the_list(
    store: es.LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "STANDBY_SILENCE_S", 0.3)
    before = store.tick()
    opening = Opening(store)
    while not opening.ended(0.05):
        store.standby_applied(STANDBY, {"s": 5}, before)
    assert opening.refused is None and store.standbys() == ()
    store.standby_applied(STANDBY, {"s": 5}, before)
    assert store.standbys() == (), "it lacks what others were told"
    store.standby_applied(STANDBY, {"s": 5}, store.tick())
    assert store.standbys() == (STANDBY,)


class Update:
    """An update without an origin of its own in a store that answers when it is durable, in a thread."""

    def __init__(self, store: es.LocalStore) -> None:
        self.origin = es.Origin("client/a", 0, 1)
        self._store = store
        self._thread = threading.Thread(target=lambda: store.assign_from(self.origin, "t", [1], [[2.0]]))
        self._thread.start()
        while not store.contains("t", [1]).all():
            pass

    def answered(self, timeout_s: float = 10.0) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[es.LocalStore]:
    tables = [es.TableSpec("t", dim=1, num_chunks=2)]
    with es.open(tmp_path, tables=tables, durability="sync") as store:
        store.standby_applied(STANDBY, {}, store.tick())
        yield store


def test_an_update_that_must_be_durable_waits_for_the_listed_standbys(durable: es.LocalStore) -> None:
    update = Update(durable)
    durable.standby_applied(STANDBY, {}, durable.tick())
    durable.standby_applied(STANDBY, {"client/a": 0}, durable.tick())
    assert not update.answered(0.3)
    durable.standby_applied(STANDBY, {"client/a": 1}, durable.tick())
    assert update.answered()
    # The same once more is a repeat, and durable already.
    assert durable.assign_from(update.origin, "t", [1], [[2.0]]).repeated


def test_an_update_that_was_applied_before_the_leader_was_replaced_is_answered(durable: es.LocalStore) -> None:
    update = Update(durable)
    durable.fence(2, lambda: StaleEpochError(1, 2))
    assert update.answered()


def test_a_standby_that_never_gets_an_update_leaves_the_list(
    durable: es.LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "STANDBY_SILENCE_S", 0.3)
    assert Update(durable).answered()
    assert durable.standbys() == ()
