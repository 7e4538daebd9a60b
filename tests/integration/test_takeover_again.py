"""Takeovers that came to nothing and are tried again later: what the leader did meanwhile is never left out."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from members import Members, start_shards, start_standbys
from processes import free_port

import embedstore as es
from embedstore.errors import InvalidArgumentError, StaleEpochError, UnavailableError
from embedstore.server.takeover import activate, resharded
from embedstore.status import Topology

IDS = np.arange(200, dtype=np.uint64)
COUNTS = es.TableSpec("counts", dim=1, optimizer=es.SGD(1.0), num_chunks=8)
TIMEOUT_S = 20.0


def push(address: str, times: int = 1) -> None:
    """Without an origin: nobody can send it again."""
    with es.connect(address, timeout_s=2, retry_s=TIMEOUT_S) as store:
        for _ in range(times):
            store.push({"counts": (IDS, -np.ones((len(IDS), 1)))})


def count(address: str) -> float:
    with es.connect(address, timeout_s=2, retry_s=TIMEOUT_S) as store:
        [value] = np.unique(store.pull({"counts": IDS})["counts"])
    return float(value)


def checkpoint(address: str) -> None:
    with es.connect(address) as store:
        store.checkpoint()


def promote(address: str, *, force: bool = False, timeout_s: float = TIMEOUT_S) -> Topology:
    [record] = activate([address], None, force=force, timeout_s=timeout_s)
    return record


def promote_when_told(address: str) -> Topology:
    """Promote a standby that hears within seconds that its leader goes by a newer record."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return promote(address)
        except (StaleEpochError, UnavailableError):
            assert time.monotonic() < deadline_s


def test_a_standby_that_failed_once_takes_over_with_what_came_after(members: Members, tmp_path: Path) -> None:
    [old] = start_shards(members, 1, COUNTS)
    in_the_way = tmp_path / "new-0"
    in_the_way.write_text("not a directory")
    [new] = start_standbys(members, [old], 1)
    push(old)
    with pytest.raises(InvalidArgumentError, match="Not a directory"):
        promote(new)
    in_the_way.unlink()
    # The place is given back, and the leader goes on.
    assert promote(old, force=True).epoch == 3
    push(old, times=5)
    assert promote_when_told(new) == Topology(4, (new,), 1)
    assert count(new) == 6, "everything that the leader had acknowledged"
    push(new)
    assert count(old) == 7, "the old leader sends its callers on"


def test_the_same_takeover_again_needs_no_leader_once_it_has_everything(members: Members, tmp_path: Path) -> None:
    [old] = start_shards(members, 1, COUNTS)
    in_the_way = tmp_path / "new-0"
    in_the_way.write_text("not a directory")
    [new] = start_standbys(members, [old], 1)
    push(old, times=3)
    with pytest.raises(InvalidArgumentError):
        promote(new)
    members.kill("old-0")
    in_the_way.unlink()
    assert promote(new, force=True, timeout_s=5).epoch == 2
    assert count(new) == 3


def test_a_standby_whose_takeover_was_overtaken_can_take_over_later(members: Members) -> None:
    [old] = start_shards(members, 1, COUNTS)
    [first, second] = [*start_standbys(members, [old], 1, "first"), *start_standbys(members, [old], 1, "second")]
    push(old)
    checkpoint(old)
    members.kill("old-0")
    with pytest.raises(UnavailableError):
        promote(first, timeout_s=1)
    members.restart("old-0")
    assert promote_when_told(second) == Topology(2, (second,), 1)
    push(second)
    assert promote_when_told(first) == Topology(3, (first,), 1)
    assert count(first) == 2


def test_a_store_of_another_is_never_written_over(members: Members, tmp_path: Path) -> None:
    [old] = start_shards(members, 1, COUNTS)
    [second] = start_standbys(members, [old], 1, "second")
    push(old)
    checkpoint(old)
    shutil.copytree(tmp_path / "old-0", tmp_path / "second-0")
    before = sorted(path.name for path in (tmp_path / "second-0").rglob("*"))
    with pytest.raises(InvalidArgumentError, match="holds a store already"):
        promote(second)
    assert sorted(path.name for path in (tmp_path / "second-0").rglob("*")) == before
    push(old)
    assert count(old) == 2, "nobody was told of a takeover that cannot be"
    shutil.rmtree(tmp_path / "second-0")
    promote(second)
    assert count(second) == 2


def test_a_resharding_that_failed_once_leaves_nothing_out(members: Members, tmp_path: Path) -> None:
    old = start_shards(members, 2, COUNTS)
    (tmp_path / "new-1").write_text("not a directory")
    new = start_standbys(members, old, 2)
    push(old[0])
    with pytest.raises(InvalidArgumentError):
        activate(new, resharded(old, new, TIMEOUT_S), force=False, timeout_s=TIMEOUT_S)
    (tmp_path / "new-1").unlink()
    record = resharded(old, new, TIMEOUT_S)
    assert activate(new, record, force=False, timeout_s=TIMEOUT_S) == [record, record]
    assert count(new[0]) == 1
    push(new[0])
    assert count(old[1]) == 2


def test_what_was_answered_as_durable_survives_its_leader_and_the_disk(members: Members) -> None:
    old = f"127.0.0.1:{free_port()}"
    sync = ("--durability", "sync", "--sync-interval-ms", "500")
    members.start_at(old, "old-0", "--shard", "0/1", "--peers", old, *sync)
    with es.connect(old, timeout_s=10, retry_s=TIMEOUT_S) as store:
        store.create_table(COUNTS)
        new = members.start(
            "new-0", "--follow", old, "--standby", "--shard", "0/1", "--durability", "sync", "--sync-interval-ms", "500"
        )
        deadline_s = time.monotonic() + TIMEOUT_S
        while store.stats().standbys != (new,):
            assert time.monotonic() < deadline_s
        for value in (1.0, 2.0, 3.0):
            store.assign("counts", IDS[:1], [[value]])
    members.kill("old-0")
    promote(new, force=True)
    with es.connect(new, timeout_s=2, retry_s=TIMEOUT_S) as store:
        assert store.pull({"counts": IDS[:1]})["counts"].tolist() == [[3.0]]
