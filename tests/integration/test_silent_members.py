"""What is said, and how soon, when a shard is away: by commands, and by whoever waits for it."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from members import Members, start_shards, start_standbys
from typer.testing import CliRunner

import embedstore as es
from embedstore import peers
from embedstore.cli import app
from embedstore.cli.sample import take
from embedstore.cli.top import facts
from embedstore.credentials import PLAIN
from embedstore.errors import UnavailableError
from embedstore.server import takeover
from embedstore.server.shard import Shard
from embedstore.status import Topology

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
    code, output, errors = run("shard", "lag", *at)
    assert code == 1 and errors.startswith(f"embedstore: {gone}: ") and "no followers" in output
    code, _, errors = run("shard", "lag", "--servers", alive, "--followers", gone, "--timeout-s", "1")
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


def test_processes_that_stand_still_delay_nobody_in_the_picture(members: Members) -> None:
    """One that was named, and one that is known only from the others."""
    timeout_s = 1.5
    alive, named, known = start_shards(members, 3, COUNTS)
    for name in ("old-1", "old-2"):
        members.running[name].process.send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    seen = take(f"{named},{alive}", "", timeout_s)
    assert time.monotonic() - began_s < 1.5 * timeout_s
    assert seen.at_s - began_s < 0.5 * timeout_s
    assert {member.address: (member.role, bool(member.stats)) for member in seen.members} == {
        alive: ("shard 0/3", True),
        named: ("?", False),
        known: ("?", False),
    }
    assert all(member.problem.startswith(f"{member.address}: ") for member in seen.members[1:])


def test_those_who_count_long_are_waited_for_together(
    start: Callable[..., Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout_s, over = 1.0, threading.Event()
    shards = [start(tables=[COUNTS]) for _ in range(4)]
    for shard in shards[:3]:
        counted = shard._serving.stats

        def count(counted: Callable[[], es.StoreStats] = counted) -> es.StoreStats:
            over.wait()
            return counted()

        monkeypatch.setattr(shard._serving, "stats", count)
    began_s = time.monotonic()
    try:
        seen = take(",".join(shard.address for shard in shards), "", timeout_s)
    finally:
        over.set()
    assert time.monotonic() - began_s < 1.9 * timeout_s
    assert [(member.role, bool(member.stats)) for member in seen.members] == [("shard 0/1", False)] * 3 + [
        ("shard 0/1", True)
    ]


def test_who_has_been_replaced_is_shown_with_those_who_serve_now(members: Members) -> None:
    [leader] = start_shards(members, 1, COUNTS)
    [standby] = start_standbys(members, [leader], 1)
    code, _, errors = run("shard", "promote", standby)
    assert code == 0, errors
    code, output, _ = run("top", "--once", "--json", "--interval-s", "0.1", "--servers", f"{leader},{standby}")
    assert code == 0
    now, before = json.loads(output)["members"]
    assert (now["address"], now["role"], now["epoch"]) == (standby, "shard 0/1", 2)
    said = f"{leader}: fenced by epoch 2, shard 0 is {standby} now"
    assert before == {"address": leader, "role": "fenced 0/1", "epoch": 2, "problem": said}
    assert said in run("shard", "lag", "--servers", leader)[2]


def test_who_has_not_heard_of_his_replacement_is_shown_as_such_and_counts_for_nothing(
    start: Callable[..., Shard],
) -> None:
    """As after having stood still, until it asks the others."""
    before, now = start(tables=[COUNTS]), start(tables=[COUNTS])
    with es.connect(before.address) as store:
        store.push({"counts": (np.arange(7, dtype=np.uint64), np.ones((7, 1)))})
    now._serving.adopt(Topology(2, (now.address,), 1))
    seen = take(before.address, now.address, 5.0)
    shown = facts(seen, seen)
    assert [(member["address"], member["role"]) for member in shown["members"]] == [
        (now.address, "shard 0/1"),
        (before.address, "replaced 0/1"),
    ]
    said = f"{before.address}: does not know of epoch 2 yet, shard 0 is {now.address} now"
    assert (shown["members"][1]["problem"], shown["members"][1]["rows"]) == (said, 7)
    assert [table["rows"] for table in shown["tables"]] == [0]


def silent_addresses(listener: socket.socket, count: int) -> set[str]:
    """All the same socket, which takes connections and says nothing."""
    return {f"127.0.1.{i}:{listener.getsockname()[1]}" for i in range(1, 1 + count)}


def test_a_new_record_reaches_whoever_can_be_reached_beside_many_who_cannot(start: Callable[..., Shard]) -> None:
    shard = start(tables=[COUNTS])
    record = Topology(2, (shard.address,), 1)
    with socket.create_server(("0.0.0.0", 0), backlog=512) as listener:
        silent = silent_addresses(listener, 40)
        began_s = time.monotonic()
        takeover.tell(record, {*silent, shard.address}, PLAIN)
        assert time.monotonic() - began_s < takeover.TELL_ALL_TIMEOUT_S + 1.0
    assert shard._serving.topology == record


def test_telling_ends_however_many_do_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(takeover, "TELL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(takeover, "TELL_ALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(takeover, "TOLD_AT_ONCE", 8)
    with socket.create_server(("0.0.0.0", 0), backlog=512) as listener:
        began_s = time.monotonic()
        takeover.tell(Topology(2, ("a:1",), 1), silent_addresses(listener, 100), PLAIN)
        assert time.monotonic() - began_s < 5.0
    *missed, rest = caplog.messages
    assert all("has not heard of epoch 2 yet" in said for said in missed)
    assert 8 <= len(missed) < 100
    assert rest.startswith(f"{100 - len(missed)} more have not heard of epoch 2")
