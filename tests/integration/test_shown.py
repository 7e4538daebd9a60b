"""What commands print can be read: JSON by programs whatever the numbers are, and names as they are."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from processes import run

import embedstore as es
from embedstore.cli import shard as shard_command
from embedstore.cli.output import json_line
from embedstore.cli.sample import Member, Sample, take
from embedstore.cli.top import facts
from embedstore.freshness import EVENT_TO_VISIBLE, Distribution
from embedstore.interface import FollowerState, LeaderState
from embedstore.server.shard import Shard

TABLE = es.TableSpec("items", dim=2, optimizer=es.SGD(1.0), num_chunks=4)
TIMEOUT_S = 20.0


def strict(line: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(line, parse_constant=refuse)


def sample() -> Sample:
    """Of a process with nothing but numbers that are none."""
    with es.open(None, [TABLE]) as store:
        stats = store.stats()
    nothing = math.inf
    stats = replace(
        stats,
        followers=1,
        leaders=(LeaderState("a:1", False, nothing, 0, 0),),
        follower_states=(FollowerState("ipv6:[::1]:5", False, nothing, 0, 0, 0),),
        distributions={
            (EVENT_TO_VISIBLE, "items"): Distribution((1.0,), (0, 3), nothing),
            (EVENT_TO_VISIBLE, "users"): Distribution((1.0,), (0, 0), 0.0),
            ("of_another_release_seconds", "users"): Distribution((1.0,), (0, 1), 7.0),
        },
    )
    return Sample(time.monotonic(), (Member("b:1", "follower", 1, stats),))


def test_numbers_that_json_does_not_have_are_null() -> None:
    assert strict(json_line({"a": [math.inf, -math.inf, 1.5], "b": {"c": math.nan}, "d": True})) == {
        "a": [None, None, 1.5],
        "b": {"c": None},
        "d": True,
    }
    told = sample()
    shown = strict(json_line(facts(told, told)))
    assert shown["members"][0]["age_s"] is None
    for row in [*shard_command._times(told), *told.links()]:
        strict(json_line(row))


def test_a_follower_that_has_nothing_yet_is_shown(start: Callable[..., Shard]) -> None:
    follower = start(follow=["127.0.0.1:1"])
    for arguments in (("top", "--once", "--interval-s", "0.1"), ("shard", "lag")):
        done = run([*arguments, "--json", "--servers", follower.address])
        for line in done.stdout.splitlines():
            strict(line)
        assert "Traceback" not in done.stderr


def test_a_standby_is_shown_as_what_it_is(start: Callable[..., Shard], tmp_path: Path) -> None:
    leader = start(tables=[TABLE], data=tmp_path / "leader")
    standby = start(follow=[leader.address], standby=True, data=tmp_path / "standby")
    with es.connect(leader.address) as store:
        store.push({"items": ([1, 2, 3], np.ones((3, 2)))})
    row: dict[str, Any] = {}
    until_s = time.monotonic() + TIMEOUT_S
    while not (row.get("listed") and row.get("synced") and row.get("rows") == 3):
        assert time.monotonic() < until_s
        shown = take(leader.address, standby.address, TIMEOUT_S)
        _, row = facts(shown, shown)["members"]
    assert (row["role"], row["synced"], row["rows"]) == ("standby 0/1", True, 3)
    assert 0 <= row["age_s"] < TIMEOUT_S
    assert "problem" not in row
    done = run(["top", "--once", "--interval-s", "0.1", "--servers", leader.address, "--followers", standby.address])
    assert (done.returncode, "is a standby" in done.stdout, "listed" in done.stdout) == (0, False, True)


def test_how_much_of_a_first_copy_is_there_is_shown() -> None:
    def member(role: str, rows: int, **more: Any) -> Member:
        with es.open(None, [TABLE]) as store:
            if rows:
                store.push({"items": (np.arange(rows, dtype=np.uint64), np.ones((rows, 2)))})
            return Member(f"{role}:1", role, 1, store.stats(), **more)

    shards = [member(f"shard {i}/2", rows, place=(i, 2)) for i, rows in enumerate((100, 300))]
    copies = [
        member("standby 1/2", 30, place=(1, 2), synced=False),
        member("standby 0/4", 50, place=(0, 4), synced=False),
        member("follower", 100, synced=False),
        member("follower", 400),
    ]
    shown = Sample(time.monotonic(), (*shards, *copies))
    rows = facts(shown, shown)["members"][2:]
    assert [row.get("copied_share") for row in rows] == [0.1, 0.5, 0.25, None]
    assert [row.get("synced") for row in rows] == [False, False, False, True]
    stats = shards[0].stats
    assert stats is not None
    away = replace(stats, leaders=(LeaderState("a:1", False, 9.0, 1, 0),))
    shown = Sample(time.monotonic(), (replace(copies[3], stats=away),))
    assert facts(shown, shown)["members"][0]["problem"] == "is not connected to a:1"
    alone = Sample(time.monotonic(), (shards[0], *copies))
    assert "copied_share" not in facts(alone, alone)["members"][2]


def test_names_are_no_markup(start: Callable[..., Shard]) -> None:
    shard = start(tables=[TABLE])
    with es.connect(shard.address) as store:
        store.open_stream("[/bold]topic[red]", 0)
        store.push({"items": ([1], np.ones((1, 2)))}, origins=[es.Origin("[/bold]topic[red]", 0, 1)])
    done = run(["shard", "stats", "--servers", shard.address])
    assert (done.returncode, "[/bold]topic[red]" in done.stdout) == (0, True), done.stderr


def test_two_that_listen_everywhere_are_two(start: Callable[..., Shard]) -> None:
    first, second = (start(tables=[TABLE], listen="0.0.0.0:0", plaintext_beyond_loopback=True) for _ in range(2))
    addresses = [f"127.0.0.1:{shard.address.rpartition(':')[2]}" for shard in (first, second)]
    first._serving.address = second._serving.address = "0.0.0.0:7600"  # as in two containers
    assert [member.address for member in take(addresses[0], addresses[1], 5.0).members] == addresses
