"""The demo does what its page says: also when a shard is killed on the way, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EMBEDTRAIN = str(Path(sys.executable).with_name("embedtrain"))
TIMEOUT_S = 170.0


def children_of(out: Path) -> list[int]:
    """Processes that were started with a path below ``out``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{out}/data".encode() in command:
            found.append(int(entry.name))
    return found


@pytest.mark.timeout(TIMEOUT_S + 10)
def test_a_killed_shard_costs_a_replay_and_no_event(tmp_path: Path) -> None:
    command = [EMBEDTRAIN, "demo", "--seconds", "10", "--rate", "300", "--kill-shard-at", "4", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["events"] == 3000 and summary["kills"] == 1
    assert summary["catch_up_s"][0] > 0
    assert summary["follower_reconnects"] >= 1
    assert summary["new_items"] > 100 and summary["new_items_unseen"] == 0
    assert summary["rows"] == summary["follower_rows"] == summary["new_items"] + 6
    assert 0 < summary["time_to_first_embedding_p50_s"] <= summary["time_to_first_embedding_p99_s"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4 and "shard 1 killed" in page
    assert "level again" in done.stdout
    assert children_of(tmp_path) == []


@pytest.mark.timeout(TIMEOUT_S + 10)
def test_an_interrupt_ends_every_process(tmp_path: Path) -> None:
    command = [EMBEDTRAIN, "demo", "--seconds", "100", "--rate", "100", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        seen = ""
        while not re.search(r"/100 s", seen):
            line = demo.stdout.readline()
            assert line, seen
            seen += line
        assert len(children_of(tmp_path)) >= 3
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130 and "every process of the demo has ended" in output
    assert children_of(tmp_path) == []


@pytest.mark.timeout(TIMEOUT_S + 10)
def test_a_trainer_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    command = [EMBEDTRAIN, "demo", "--seconds", "100", "--rate", "100", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        deadline = time.monotonic() + 60
        while not (trainers := [pid for pid in children_of(tmp_path) if is_trainer(pid)]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(trainers[0], signal.SIGKILL)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1 and "trainer ended with signal SIGKILL" in errors
    assert children_of(tmp_path) == []


def is_trainer(pid: int) -> bool:
    return b"embedtrain\0stream" in Path(f"/proc/{pid}/cmdline").read_bytes()
