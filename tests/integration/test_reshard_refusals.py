"""A resharding that cannot be is refused before any shard has stopped serving, and one that came to nothing is taken
back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from members import Members, start_shards, start_standbys

import embedstore as es
from embedstore.errors import InvalidArgumentError, StaleEpochError, UnavailableError
from embedstore.server.takeover import activate, reassign, resharded
from embedstore.status import Topology

IDS = np.arange(200, dtype=np.uint64)
COUNTS = es.TableSpec("counts", dim=1, optimizer=es.SGD(1.0), num_chunks=8)
TIMEOUT_S = 20.0


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Members]:
    (tmp_path / "others").mkdir()
    with ExitStack() as stack:
        yield Members(stack, tmp_path / "others")


def push(address: str, table: str = "counts") -> None:
    with es.connect(address, timeout_s=2, retry_s=TIMEOUT_S) as store:
        store.push({table: (IDS, -np.ones((len(IDS), 1)))})


def check(address: str, count: float, epoch: int, table: str = "counts") -> None:
    with es.connect(address, timeout_s=2, retry_s=TIMEOUT_S) as store:
        assert np.unique(store.pull({table: IDS})[table]).tolist() == [count]
        assert store.topology.epoch == epoch


def reshard(old: list[str], new: list[str], *, force: bool = False, timeout_s: float = TIMEOUT_S) -> Topology:
    record = resharded(old, new, timeout_s, force=force)
    assert activate(new, record, force=force, timeout_s=timeout_s) == [record] * len(new)
    return record


def test_a_standby_of_another_number_of_shards_is_no_target(members: Members) -> None:
    old = start_shards(members, 2, COUNTS)
    three, four = start_standbys(members, old, 3, "three"), start_standbys(members, old, 4, "four")
    push(old[0])
    with pytest.raises(InvalidArgumentError, match="does not stand by for shard 1 of 3"):
        reshard(old, [three[0], four[1], three[2]])
    push(old[0])
    check(old[1], 2, epoch=1)


def test_shards_and_standbys_of_another_store_are_no_targets(members: Members, others: Members) -> None:
    mine, theirs = start_shards(members, 2, COUNTS), start_shards(others, 2, COUNTS)
    new, strange = start_standbys(members, mine, 2), start_standbys(others, theirs, 2)
    push(mine[0])
    for targets in ([new[0], strange[1]], strange, [new[0], theirs[1]]):
        with pytest.raises(InvalidArgumentError, match="is of another store"):
            reshard(mine, targets)
    push(mine[0])
    check(mine[0], 2, epoch=1)
    check(theirs[0], 0, epoch=1)
    assert reshard(mine, new).epoch == 2
    check(mine[0], 2, epoch=2)


def test_a_table_with_too_few_chunks_stays_where_it_is(members: Members) -> None:
    few = es.TableSpec("few", dim=1, optimizer=es.SGD(1.0), num_chunks=2)
    old = start_shards(members, 2, COUNTS, few)
    new = start_standbys(members, old, 3)
    push(old[0], "few")
    with pytest.raises(InvalidArgumentError, match="3 is above the 2 chunks of table 'few'"):
        reshard(old, new)
    push(old[1], "few")
    check(old[0], 2, epoch=1, table="few")


def test_one_shard_that_does_not_answer_stops_none_of_the_others(members: Members) -> None:
    old = start_shards(members, 2, COUNTS)
    new = start_standbys(members, old, 3)
    push(old[0])
    record = resharded(old, new, TIMEOUT_S)
    with es.connect(old[0]) as store:
        store.checkpoint()
    members.kill("old-1")
    with pytest.raises(UnavailableError):
        activate(new, record, force=False, timeout_s=2)
    members.restart("old-1")
    push(old[0])
    check(old[0], 2, epoch=1)


def test_a_target_that_is_not_complete_is_waited_for_and_named(members: Members) -> None:
    [old] = start_shards(members, 1, COUNTS)
    members.kill("old-0")
    new = start_standbys(members, [old], 2)
    members.restart("old-0")
    members.kill("new-1")
    with pytest.raises(UnavailableError):
        resharded([old], new, 1)
    members.restart("new-1")
    push(old)
    assert reshard([old], new).epoch == 2
    check(new[1], 1, epoch=2)


def test_a_resharding_that_came_to_nothing_is_taken_back(members: Members) -> None:
    old = start_shards(members, 2, COUNTS)
    new = start_standbys(members, old, 3)
    push(old[0])
    record = resharded(old, new, TIMEOUT_S)
    for address in old:
        assert reassign(address, record).fenced
    for name in list(members.running):
        if name.startswith("new"):
            members.kill(name)
    with pytest.raises(InvalidArgumentError, match="all 2 shards must go back together"):
        activate([old[0]], None, force=True, timeout_s=2)
    with pytest.raises(InvalidArgumentError, match="force: is needed"):
        reshard(old[:1], old)
    assert reshard(old[:1], old, force=True) == Topology(3, tuple(old), 2)
    push(old[1])
    check(old[0], 2, epoch=3)


def test_of_two_takeovers_at_once_the_one_that_came_late_changes_nothing(members: Members) -> None:
    old = start_shards(members, 2, COUNTS)
    [_, standby] = start_standbys(members, old, 2, "standby")
    new = start_standbys(members, old, 3)
    push(old[0])
    record = resharded(old, new, TIMEOUT_S)
    [promoted] = activate([standby], None, force=False, timeout_s=TIMEOUT_S)
    assert promoted == Topology(2, (old[0], standby), 2)
    with pytest.raises(StaleEpochError):
        activate(new, record, force=False, timeout_s=TIMEOUT_S)
    push(old[0])
    check(standby, 2, epoch=2)
    # The next one is from the shards as they are by now.
    assert reshard([standby], new).epoch == 3
    push(old[1])
    check(new[0], 3, epoch=3)


def test_of_promotions_of_several_shards_at_once_each_ends_or_can_be_given_again(members: Members) -> None:
    old = start_shards(members, 3, COUNTS)
    new = start_standbys(members, old, 3)
    push(old[0])
    waiting = list(new)
    deadline_s = time.monotonic() + 3 * TIMEOUT_S
    pushes = 1
    while waiting:
        assert time.monotonic() < deadline_s
        with ThreadPoolExecutor(len(new)) as pool:
            outcomes = list(pool.map(promoted, waiting))
        waiting = [address for address, done in zip(waiting, outcomes, strict=True) if not done]
        push(old[0])
        pushes += 1
    check(old[0], pushes, epoch=1 + len(new))
    check(new[0], pushes, epoch=1 + len(new))


def promoted(address: str) -> bool:
    """False: others were faster."""
    try:
        activate([address], None, force=False, timeout_s=TIMEOUT_S)
    except (StaleEpochError, UnavailableError):
        return False
    return True
