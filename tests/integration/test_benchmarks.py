"""Every workload of the benchmarks runs and shows its figures beside what they are compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Absent, Contender, Settings, race
from benchmarks.report import MARKS, markdown, summary
from benchmarks.workloads import GROUPS, WORKLOADS
from benchmarks.workloads.memory import ROUNDS_MAX

ROOT = Path(__file__).resolve().parents[2]
# Those that have a budget.
BUDGETED = {"pull", "skewed", "threads", "push", "insert", "growth", "memory", "delta", "remote", "checkpoint"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]], set[str]]:
    """What a quick run of everything printed, its JSON lines, and the names of the files it left."""
    directory = tmp_path_factory.mktemp("bench")
    target = directory / "lines.jsonl"
    options = ["--rounds", "5", "--dir", str(directory), "--peers", str(directory / "none"), "--json", str(target)]
    done = run(*WORKLOADS, "--quick", *options)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    return done.stdout, lines, {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("workload", WORKLOADS)
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
            assert line["rounds"] == (ROUNDS_MAX if workload == "memory" else 5)
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
