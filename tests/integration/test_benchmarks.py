"""Every workload of the benchmarks runs and shows its figures beside what they are compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import data, peers, sizes
from benchmarks.harness import Absent, Contender, Settings, _order, race
from benchmarks.report import MARKS, markdown, summary
from benchmarks.workloads import GROUPS, WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
# Those that have a budget.
BUDGETED = {
    "pull",
    "skewed",
    "packed",
    "threads",
    "push",
    "insert",
    "growth",
    "memory",
    "expiry",
    "delta",
    "remote",
    "checkpoint",
    "follow",
}

# All but the one that starts a broker and a trainer, whose parts the demo's tests run; CI runs it by itself.
QUICK = [name for name in WORKLOADS if name != "freshness"]
# Those that start a process for each figure: one round is enough to see that they run.
OF_PROCESSES = {"memory", "expiry", "follow"}
# A quick run of everything is one fixture.
pytestmark = pytest.mark.timeout(300)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]], set[str]]:
    """What a quick run of everything printed, its JSON lines, and the names of the files it left."""
    directory = tmp_path_factory.mktemp("bench")
    target = directory / "lines.jsonl"
    options = ["--rounds", "5", "--dir", str(directory), "--peers", str(directory / "none"), "--json", str(target)]
    done = run(*QUICK, "--quick", *options)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    return done.stdout, lines, {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("workload", QUICK)
def test_a_workload_prints_value_reference_and_ratio(
    workload: str, quick: tuple[str, list[dict[str, Any]], set[str]]
) -> None:
    printed, lines, left = quick
    own = [line for line in lines if line["workload"] == workload]
    for line in own:
        assert line["value"]["median"] > 0
        assert line["figure"] in printed
        if line["absent"] is None:
            assert line["reference_value"]["median"] > 0
            assert line["ratio"]["median"] > 0
            assert line["rounds"] == (1 if workload in OF_PROCESSES else 5)
        assert line["parameters"]["command"].startswith(f"python -m benchmarks {workload} ")
        assert line["parameters"]["command"].splitlines()[0] in printed
    assert any(line["ratio"] for line in own), "some reference is always there"
    assert left == {"lines.jsonl"}, "nothing else is left behind"


def test_json_lines_become_markdown_in_a_document(
    quick: tuple[str, list[dict[str, Any]], set[str]], tmp_path: Path
) -> None:
    _, lines, _ = quick
    source, document = tmp_path / "lines.jsonl", tmp_path / "document.md"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    document.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    command = [sys.executable, "-m", "benchmarks.report", "--budgets", "--into", str(document), str(source)]
    subprocess.run(command, cwd=ROOT, check=True)
    written = document.read_text()
    judged = [line for line in lines if line["within_budget"] is not None]
    assert written.startswith(f"before\n{MARKS[0]}\n")
    assert written.endswith(f"{MARKS[1]}\nafter\n")
    assert "old" not in written
    assert written.count(" met |") + written.count("**missed**") == len(judged)
    assert all(line["reference"] in markdown(lines) for line in lines)
    assert summary(lines).startswith(f"{written.count(' met |')} of {len(judged)} budgets met")


def test_the_list_names_every_workload() -> None:
    done = run("--list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*WORKLOADS, *GROUPS]
    assert set(WORKLOADS) >= BUDGETED
    assert all(set(members) <= set(WORKLOADS) for members in GROUPS.values())


@pytest.mark.parametrize(
    "wrong", [["nonsense"], [], ["pull", "--rounds", "1"], ["pull", "--rows", "10"], ["pull", "--rows", "1,x"]]
)
def test_a_wrong_command_says_what_is_right(wrong: list[str]) -> None:
    done = run(*wrong)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_everyone_follows_everyone_else_in_some_round() -> None:
    everyone = [Contender(name, lambda number: {}) for name in "abcde"]
    orders = ["".join(one.name for one in _order(everyone, number)) for number in range(20)]
    assert all(sorted(order) == list("abcde") for order in orders)
    assert {order[0] for order in orders} == set("abcde")
    followers = {(order[at], order[at + 1]) for order in orders for at in range(4)}
    assert len(followers) == 5 * 4


def test_a_table_that_does_not_fit_gets_a_smaller_dim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(1000, 64, 10, 5, 2, 1, True, tmp_path, tmp_path)
    monkeypatch.setattr(sizes, "available_bytes", lambda: 200_000)
    assert sizes.fitted(settings, lambda dim: 2 * dim) == settings
    smaller = sizes.fitted(settings, lambda dim: 4 * dim)
    assert smaller.dim == 32
    assert smaller.note.startswith("dim 32 instead of 64")
    with pytest.raises(MemoryError, match="no smaller one fits"):
        sizes.fitted(settings, lambda dim: 1000 * dim)


def test_skewed_ids_are_skewed_and_a_tenth_is_missing(tmp_path: Path) -> None:
    settings = Settings(100_000, 4, 8192, 5, 20, 1, True, tmp_path, tmp_path)
    numbers = np.concatenate(data.skewed_batches(settings, 0, misses=0.1))
    missing = numbers >= settings.rows
    assert 0.09 < missing.mean() < 0.11
    counts = np.sort(np.unique(numbers[~missing], return_counts=True)[1])[::-1]
    # Zipf: the most frequent number occurs about 2**1.05 times as often as the second.
    assert 1.6 < counts[0] / counts[1] < 2.8
    assert counts[:100].sum() > 0.3 * counts.sum()
    assert len(np.unique(data.ids_of(settings, numbers))) == len(np.unique(numbers))


@pytest.mark.parametrize("python", ["here", None])
def test_a_peer_that_cannot_run_is_absent_and_says_why(python: str | None, tmp_path: Path) -> None:
    settings = Settings(1000, 4, 10, 5, 2, 1, True, tmp_path, tmp_path)
    if python is not None:
        (tmp_path / "tfra" / "bin").mkdir(parents=True)
        (tmp_path / "tfra" / "bin" / "python").symlink_to(sys.executable)
    with ExitStack() as stack:
        (absent,) = peers.contenders(settings, "insert", stack)
    assert isinstance(absent, Absent)
    assert absent.name == "TFRA upsert"
    # Whichever module it lacks first: a link to an interpreter leads to no installed packages.
    assert ("ModuleNotFoundError" if python else "make bench-peers") in absent.reason


def test_contenders_take_turns_and_ratios_are_of_one_round(tmp_path: Path) -> None:
    settings = Settings(100, 4, 10, 5, 2, 1, True, tmp_path, tmp_path)
    order: list[str] = []

    def contender(name: str, figures: list[float]) -> Contender:
        def turn(number: int) -> dict[str, float]:
            order.append(name)
            return {"ns/row": figures[number]}

        return Contender(name, turn)

    ours = contender("ours", [1.0, 20.0, 3.0, 4.0, 5.0])
    theirs = contender("theirs", [2.0, 40.0, 6.0, 8.0, 10.0])
    one, missing = race(
        settings,
        "w",
        "c",
        [ours],
        [theirs, Absent("gone", "not here")],
        budgets={("ns/row", "theirs"): 0.4},
        warm_up=False,
    )
    assert order == ["ours", "theirs", "theirs", "ours"] * 2 + ["ours", "theirs"]
    assert one.ratio is not None
    assert (one.ratio.median, one.ratio.low, one.ratio.high) == (0.5, 0.5, 0.5)
    assert one.value.median == 4.0
    assert one.within_budget() is False
    assert (missing.absent, missing.ratio, missing.within_budget()) == ("not here", None, None)
