"""What commands print fits the terminal, and no name and no number is cut."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console, RenderableType

import embedstore as es
from embedstore.cli import top
from embedstore.cli.doctor import verdict
from embedstore.cli.output import grid
from embedstore.cli.sample import Member, Sample
from embedstore.interface import FollowerState, LeaderState
from embedstore.parity import DenseParity, Parity

ADDRESSES = [f"127.0.0.1:{port}" for port in (47600, 47601, 47700, 47701, 47702)]
PROBLEM = (
    "does not answer: connection refused by the machine, again and again, for all of the 2 s that it was asked for"
)
WIDTHS = (60, 80, 100, 240)


def drawn(what: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    return lines


def sample() -> Sample:
    table = es.TableSpec("items_of_the_shop", dim=2, optimizer=es.SGD(1.0), num_chunks=4)
    with es.open(None, [table]) as store:
        store.push({table.name: (np.arange(12_345, dtype=np.uint64), np.ones((12_345, 2)))})
        stats = replace(store.stats(), last_checkpoint_s=time.time() - 12_345, uptime_s=1_234_567.0)
    states = (
        FollowerState(ADDRESSES[2], False, 1234.5, 8 << 20, 3 << 40, 7, 2),
        FollowerState(ADDRESSES[4], True, 599.0, 0, 5 << 30, 7, 0),
    )
    leader = replace(stats, followers=2, follower_states=states)
    copy = replace(stats, leaders=(LeaderState(ADDRESSES[0], True, 9876.5, 1, 0),))
    away = replace(copy, leaders=(LeaderState(ADDRESSES[0], False, 9876.5, 1, 0),))
    return Sample(
        time.monotonic(),
        (
            Member(ADDRESSES[0], "shard 0/2", 3, leader),
            Member(ADDRESSES[1], "?", 0, None, f"{ADDRESSES[1]}: {PROBLEM}"),
            Member(ADDRESSES[2], "follower", None, copy),
            Member(ADDRESSES[3], "standby 0/2", 3, away),
        ),
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_top_shows_addresses_roles_and_numbers_whole(width: int) -> None:
    told = sample()
    lines = drawn(top._page(top.facts(told, told)), width)
    words = " ".join(lines).split()
    for address in ADDRESSES:
        assert {address, f"{address}:"} & set(words), address
    text = " ".join(words)
    for role in ("shard 0/2", "follower", "standby 0/2", "items_of_the_shop"):
        assert role in text
    for number in ("12,345", "9,876.50", "1,234.50"):
        assert number in words
    assert "8.0 MiB" in text
    assert ("1,234,567.00" in words) == (width == 240), "the least important column goes first"
    assert ("no room for uptime_s" in text) == (width < 240)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_problem_is_a_line_below_the_table(width: int) -> None:
    told = sample()
    lines = drawn(top._page(top.facts(told, told)), width)
    [begin] = [i for i, line in enumerate(lines) if line.startswith(f"{ADDRESSES[1]}: ")]
    told_lines = -(-len(PROBLEM) // (width - 30)) + 1
    assert PROBLEM in " ".join(" ".join(lines[begin : begin + told_lines]).split())
    assert f"{ADDRESSES[3]}: is not connected to {ADDRESSES[0]}" in " ".join(" ".join(lines).split())
    assert "problem" not in " ".join(lines)


def test_a_follower_that_has_gone_has_no_lag() -> None:
    told = sample()
    links = top.facts(told, told)["links"]
    assert [(link["follower"], link["lag_s"]) for link in links] == [(ADDRESSES[2], 1234.5), (ADDRESSES[4], None)]
    text = "\n".join(drawn(top._page(top.facts(told, told)), 240))
    assert "gone" in text and "599" not in text


@pytest.mark.parametrize("width", [20, 40, 80])
def test_columns_without_room_stand_below(width: int) -> None:
    numbers = {f"number_{i}": 1_000_000_000 + i for i in range(12)}
    rows = [{"table": name, **numbers} for name in ("items", "users")]
    words = " ".join(drawn(grid(rows, "tables"), width)).split()
    for number in numbers.values():
        assert words.count(f"{number:,}") == 2
    assert words.count("items") == words.count("users") > 1


@pytest.mark.parametrize("width", [80, 100])
def test_parity_shows_its_numbers_whole(width: int) -> None:
    row = {
        "table": "items_of_the_shop",
        "row_format": "fp32",
        "rows": 1_999_998,
        "equal": 1_999_997,
        "moving": 1_000_000,
    }
    row |= {"different": 1_234_567, "missing": 1_000_001, "extra": 1_000_002, "error_max": 0.125, "problem": ""}
    words = " ".join(drawn(grid([row], "tables"), width)).split()
    for value in row.values():
        assert (f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if isinstance(value, float) else value) in [
            *words,
            "",
        ]


def test_the_verdict_is_one_line() -> None:
    same, moving = Parity("items", rows=5, equal=5), Parity("items", rows=5, equal=3, moving=2)
    weights = DenseParity("model", 3, False, False, "the follower has version 2, the leaders have 3")
    assert verdict([same], []) == "equal"
    assert verdict([moving], []) == "equal, but for 2 rows and dense sets that never stood still"
    different = Parity("users", rows=5, different=(7, 9))
    many = Parity("many", rows=50, different=tuple(range(10)))
    assert verdict([same, different], [weights]) == (
        "different: users: 2 rows, ids 7, 9; model: the follower has version 2, the leaders have 3"
    )
    assert verdict([many], []) == "different: many: 10 rows, ids 0, 1, 2, 3, 4, 5, 6, 7, ..."
    assert verdict([Parity("gone", problem="the follower has no such table")], []) == (
        "different: gone: the follower has no such table"
    )
