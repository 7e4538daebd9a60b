"""Requests of a client's own stream: once each, lost ones counted, idle streams forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import COUNTED, STREAM, crash, ones

import embedstore as es
from embedstore import origins as origins_module
from embedstore.store import LocalStore

OTHER = es.TableSpec("other", dim=2, optimizer=es.SGD(lr=1.0), num_chunks=4)


def request(number: int, client: str = "client/1") -> es.Origin:
    return es.Origin(client, number, number + 1)


def value(store: LocalStore, key: int = 1) -> float:
    return float(-store.pull({"items": [key]})["items"][0, 0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_each_request_counts_once(path: Path) -> None:
    with LocalStore(path, [COUNTED, OTHER]) as store:
        for number in (0, 0, 1, 1, 0):
            store.push({"items": ([1], ones(1))}, origins=[request(number)])
        assert value(store) == 2
        assert not store.assign_from(request(2), "items", [1], -5 * ones(1)).repeated
        assert store.delete_from(request(3), "items", [1, 2])[0] == 1
        assert store.assign_from(request(2), "items", [1], ones(1)).repeated
        deleted, again = store.delete_from(request(3), "items", [1, 2])
        assert (deleted, again.repeated, again.lost_updates) == (0, True, 0)
        assert store.stats().tables["items"].rows == 0
        assert store.watermarks() == {}


def test_a_request_of_one_table_moves_all_of_them(path: Path) -> None:
    with LocalStore(path, [COUNTED, OTHER]) as store:
        store.assign_from(request(0), "items", [1], ones(1))
        store.delete_from(request(1), "other", [1])
        for table in ("items", "other"):
            assert [known for known, _ in store.table(table).watermarks()] == [{"client/1": 2}]


def test_what_a_crash_took_back_is_counted_and_then_accepted(path: Path, tmp_path: Path) -> None:
    with LocalStore(path, [COUNTED]) as store:
        for number in range(4):
            store.push({"items": ([1], ones(1))}, origins=[request(number)])
        store.checkpoint()
        for number in range(4, 7):
            store.push({"items": ([1], ones(1))}, origins=[request(number)])
        store.push({"items": ([1], ones(1))}, origins=[request(0, "client/2")])
        left = crash(path, tmp_path / "crash")
    with LocalStore(left) as store:
        assert value(store) == 4
        assert store.push({"items": ([1], ones(1))}, origins=[request(3)]).repeated
        result = store.push({"items": ([1], ones(1))}, origins=[request(7)])
        assert (result.repeated, result.lost_updates) == (False, 3)
        assert store.push({"items": ([1], ones(1))}, origins=[request(8)]).lost_updates == 0
        assert store.assign_from(request(1, "client/2"), "items", [9], ones(1)).lost_updates == 1
        assert value(store) == 6


def test_a_bad_request_mends_nothing(path: Path) -> None:
    nan = ones(1)
    nan[0, 0] = np.nan
    with LocalStore(path, [COUNTED]) as store:
        calls: list[Callable[[], object]] = [
            lambda: store.push({"items": ([1], nan)}, origins=[request(5)]),
            lambda: store.assign_from(request(5), "items", [1], nan),
            lambda: store.assign_from(request(5), "items", [1], ones(2)),
        ]
        for call in calls:
            with pytest.raises(es.InvalidArgumentError):
                call()
        assert store.push({"items": ([1], ones(1))}, origins=[request(5)]).lost_updates == 5


def test_client_streams_keep_to_themselves(path: Path) -> None:
    with LocalStore(path, [COUNTED]) as store:
        store.open_stream(STREAM, 0)
        for origins in ([request(0), es.Origin(STREAM, 0, 1)], [request(0), request(0, "client/2")]):
            with pytest.raises(es.InvalidArgumentError) as caught:
                store.push({"items": ([1], ones(1))}, origins=origins)
            assert caught.value.field == "origins"
        with pytest.raises(es.InvalidArgumentError):
            store.assign_from(es.Origin(STREAM, 0, 1), "items", [1], ones(1))
        store.push({}, origins=[es.Origin("client/3", 0, 10)])
        with pytest.raises(es.GapError):
            store.push({}, origins=[es.Origin("client/3", 5, 12)])


def test_a_table_made_between_two_requests_begins_there(path: Path) -> None:
    with LocalStore(path, [COUNTED]) as store:
        store.push({"items": ([1], ones(1))}, origins=[request(0)])
        store.create_table(OTHER)
        assert store.push({"other": ([1], ones(1, 2))}, origins=[request(1)]).lost_updates == 0


def test_a_store_without_tables_takes_requests(path: Path) -> None:
    with LocalStore(path) as store:
        assert not store.push({}, origins=[request(0)]).repeated
        assert store.push({}, origins=[request(0)]).repeated
        assert store.push({}, origins=[request(3)]).lost_updates == 2


def test_idle_client_streams_age_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins_module, "CLIENT_STREAMS_MAX", 3)
    with LocalStore(path, [COUNTED]) as store:
        store.open_stream(STREAM, 0)
        for number, client in enumerate("abc"):
            store.push({"items": ([number], ones(1))}, origins=[request(0, f"client/{client}")])
        store.push({}, origins=[request(1, "client/a")])
        store.push({}, origins=[request(0, "client/d")])
        (known,) = [known for known, _ in store.table("items").watermarks()]
        assert known == {STREAM: 0, "client/a": 2, "client/c": 1, "client/d": 1}
        assert store.push({}, origins=[request(1, "client/b")]).lost_updates == 1
    with LocalStore(path, [COUNTED]) as store:
        assert store.push({}, origins=[request(1, "client/b")]).repeated
