"""What is said, and how soon, when a shard is away: by commands, and by whoever waits for it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from members import Members, start_shards, start_standbys
from typer.testing import CliRunner

import embedstore as es
from embedstore import peers
from embedstore.cli import app
from embedstore.errors import UnavailableError
from embedstore.server import takeover

COUNTS = es.TableSpec("counts", dim=1, optimizer=es.SGD(1.0), num_chunks=8)


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stdout, done.stderr


def test_one_shard_that_is_away_hides_no_other(members: Members) -> None:
    alive, gone = start_shards(members, 2, COUNTS)
    at = ("--servers", alive, "--timeout-s", "1")
    members.kill("old-1")
    code, output, errors = run("shard", "topology", "--json", *at)
    rows = [json.loads(line) for line in output.splitlines()]
    assert [(row["shard"], row["address"], row["ready"], row["epoch"]) for row in rows] == [
        ("0/2", alive, True, 1),
        ("1/2", gone, False, None),
    ]
    assert code == 1 and errors.startswith(f"embedstore: {gone}: ")
    assert f" {gone} " in run("shard", "topology", *at)[1]
    code, output, errors = run("shard", "stats", "--json", *at)
    assert [json.loads(line)["address"] for line in output.splitlines()] == [alive]
    assert code == 1 and errors.startswith(f"embedstore: {gone}: ")


def test_no_checkpoint_is_waited_for_that_a_shard_cannot_write(members: Members) -> None:
    alive, gone = start_shards(members, 2, COUNTS)
    members.kill("old-1")
    code, _, errors = run("checkpoint", "create", "--servers", alive, "--timeout-s", "1")
    assert code == 1 and errors.startswith(f"embedstore: {gone}: ")


def test_promote_says_what_to_do_without_a_leader(members: Members) -> None:
    leaders = start_shards(members, 1, COUNTS)
    [standby] = start_standbys(members, leaders, 1)
    with es.connect(leaders) as store:
        while not store.stats().standbys:
            store.push({"counts": (np.arange(3, dtype=np.uint64), np.ones((3, 1)))})
    members.kill("old-0")
    code, _, errors = run("shard", "promote", standby)
    assert code == 1 and errors.startswith(f"embedstore: {leaders[0]}: ")
    assert "--force" in errors
    code, output, _ = run("shard", "promote", standby, "--force", "--json")
    assert code == 0 and json.loads(output)["address"] == standby


def test_promote_sends_a_standby_of_another_number_of_shards_to_reshard(members: Members) -> None:
    leaders = start_shards(members, 2, COUNTS)
    standby, *_ = start_standbys(members, leaders, 3)
    code, _, errors = run("shard", "promote", standby, "--timeout-s", "20")
    assert code == 1 and errors.startswith("embedstore: standby: ")
    assert "of 3, but there are 2 now" in errors and "reshard" in errors


def test_reshard_says_whom_it_waits_for(
    members: Members, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(takeover, "WORD_INTERVAL_S", 0.2)
    leaders = start_shards(members, 2, COUNTS)
    members.kill("old-1")
    [standby] = start_standbys(members, leaders, 1)
    with caplog.at_level(logging.WARNING, "embedstore"):
        code, _, errors = run("shard", "reshard", "--servers", leaders[0], "--to", standby, "--timeout-s", "2")
    assert code == 1 and errors.startswith(f"embedstore: {standby}: has not received everything")
    assert all(said.startswith(f"{standby}: ") and "waiting on for" in said for said in caplog.messages)
    assert 1 <= len(caplog.messages) <= 10


def test_whoever_waits_for_a_shard_says_so(
    members: Members, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peers, "WORD_INTERVAL_S", 0.2)
    alive, gone = start_shards(members, 2, COUNTS)
    with es.connect(alive, retry_s=1.0) as store, caplog.at_level(logging.WARNING, "embedstore"):
        store.pull({"counts": np.arange(100, dtype=np.uint64)})
        assert not caplog.messages
        members.kill("old-1")
        with pytest.raises(UnavailableError):
            store.pull({"counts": np.arange(100, dtype=np.uint64)})
        assert 1 <= len(caplog.messages) <= 5
        assert all(gone in said and "trying on for" in said for said in caplog.messages)
        caplog.clear()
        members.kill("old-0")
        with pytest.raises(UnavailableError):
            es.connect(alive, retry_s=1.0)
        assert alive in caplog.messages[0]
