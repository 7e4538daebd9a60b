"""A trainer whose shards are replaced under it learns what it would have learnt otherwise, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from members import Members, start_shards, start_standbys
from processes import run

import embedstore as es
from embedstore.server.takeover import activate

EVENTS = 12000
WORLD = f"synthetic://?seed=5&items=300&users=200&events={EVENTS}"
CONFIG = """
[model]
dim = 16
layers = 1
heads = 2
length = 4
[train]
batch_events = 64
head_negatives = 60
tail_negatives = 40
[tables]
num_chunks = 8
[run]
threads = 1
"""
TIMEOUT_S = 100.0


def trainer(folder: Path, store: str) -> list[str]:
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    return [
        *(sys.executable, "-c", "from trainer.cli import main; main()", "stream", "--events", WORLD, "--store", store),
        *("--config", str(folder / "config.toml"), "--state", str(folder / "state")),
        *("--summary", str(folder / "summary.json")),
    ]


def rows_of(store: es.LocalStore | es.RemoteStore) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ids and embeddings of every table, by id."""
    found = {}
    for table in store.tables():
        pieces = list(store.scan(table))
        ids = np.concatenate([piece_ids for piece_ids, _ in pieces])
        rows = np.concatenate([rows.embeddings for _, rows in pieces])
        order = np.argsort(ids)
        found[table] = ids[order], rows[order]
    return found


def wait_applied(address: str, position: int) -> None:
    """Until every chunk has absorbed so many events."""
    deadline_s = time.monotonic() + TIMEOUT_S
    with es.connect(address) as store:
        while not any(state.applied >= position for state in store.watermarks().values()):
            assert time.monotonic() < deadline_s


@pytest.mark.timeout(300)
def test_training_goes_on_through_a_promotion_and_a_resharding(tmp_path: Path) -> None:
    quiet = subprocess.run(
        trainer(tmp_path / "quiet", str(tmp_path / "embedded")), capture_output=True, text=True, check=False
    )
    assert quiet.returncode == 0, quiet.stderr
    with ExitStack() as stack:
        members = Members(stack, tmp_path)
        old = start_shards(members, 2)
        standby = members.start("standby-1", "--follow", ",".join(old), "--standby", "--shard", "1/2")
        new = start_standbys(members, old, 3)
        command = trainer(tmp_path / "moved", f"grpc://{old[0]},{old[1]}")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            stack.callback(process.kill)
            wait_applied(old[0], EVENTS // 12)
            done = run(["shard", "promote", standby])
            assert done.returncode == 0, done.stderr
            members.kill("old-1")
            wait_applied(old[0], EVENTS // 4)
            done = run(["shard", "reshard", "--servers", old[0], "--to", ",".join(new)])
            assert done.returncode == 0, done.stderr
            members.kill("old-0")
            members.kill("standby-1")
            assert process.poll() is None, "the takeovers came while it was learning"
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, errors
        with es.connect(new[0]) as store, es.open(tmp_path / "embedded") as expected:
            rows, others = rows_of(store), rows_of(expected)
            assert rows.keys() == others.keys()
            for table, (ids, embeddings) in others.items():
                assert np.array_equal(rows[table][0], ids), table
                assert np.array_equal(rows[table][1], embeddings), table
        assert activate(new, None, force=False, timeout_s=5)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("quiet", "moved")]
    print(summaries)
    assert summaries[0]["events"] == summaries[1]["events"] == EVENTS
