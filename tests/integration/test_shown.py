"""What commands print can be read: JSON by programs whatever the numbers are, and names as they are."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
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
