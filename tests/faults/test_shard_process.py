"""A shard as a process: stopped, killed, silent, or in somebody's way, and nothing is lost or counted twice."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from processes import COMMAND, Process, free_port, run

import embedstore as es
from embedstore.client import RemoteStore

COUNTED = es.TableSpec("counted", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=8)
TABLES = """
[tables.counted]
dim = 1
num_chunks = 8
optimizer = { kind = "sgd", lr = 1.0 }
"""
IDS = np.arange(20, dtype=np.uint64)
GRADS = np.ones((20, 1), np.float32)


def serve(directory: Path, listen: str = "127.0.0.1:0", *more: str, shard: str = "0/1") -> Process:
    directory.mkdir(exist_ok=True)
    tables = directory / "tables.toml"
    tables.write_text(TABLES)
    data = directory / f"data-{shard.partition('/')[0]}"
    return Process("--listen", listen, "--shard", shard, "--data", str(data), "--tables", str(tables), *more)


def counts(store: RemoteStore) -> set[float]:
    return set((-store.pull({"counted": IDS})["counted"][:, 0]).tolist())


def push(store: RemoteStore, begin: int, end: int) -> es.PushResult:
    """Count the events [begin, end) of stream s, once for every id."""
    return store.push({"counted": (IDS, GRADS * (end - begin))}, origins=[es.Origin("s", begin, end)])


def test_sigterm_drains_checkpoints_and_a_restart_finds_everything(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        directory = tmp_path / number.name
        with serve(directory, "127.0.0.1:0", "--checkpoint-interval-s", "3600") as process:
            assert process.ready_line == f"embedstore: serving shard 0/1 on {process.address}"
            with es.connect(process.address) as store:
                store.open_stream("s", 0)
                push(store, 0, 3)
                store.push({"counted": (IDS, GRADS)})
                store.put_dense("weights", {"w": np.arange(3.0)}, {"s": 3})
            assert process.terminate(number) == 0
            assert process.rest_of_output() == ""
        with serve(directory) as process, es.connect(process.address) as store:
            assert counts(store) == {4.0}
            assert store.get_dense("weights").tensors["w"].tolist() == [0, 1, 2]
            assert store.open_stream("s", 0).durable == 3
            assert push(store, 0, 3).repeated
            assert counts(store) == {4.0}


def test_sigterm_ends_a_recovery(tmp_path: Path) -> None:
    """Many chunks, so that the signal meets the recovery; should it come after its end, the rest still holds."""
    spec = es.TableSpec("counted", dim=64, optimizer=es.SGD(lr=1.0), num_chunks=1 << 12)
    with es.open(tmp_path / "data", tables=[spec]) as store:
        for ids in np.arange(100_000, dtype=np.uint64).reshape(10, -1):
            store.assign("counted", ids, np.ones((len(ids), 64), np.float32))
    command = [*COMMAND, "serve", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        line = process.stderr.readline()
        assert "recovering table counted: 0 of 4096 chunks" in line
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
        assert "stopped while recovering" in process.stderr.read()
    with es.open(tmp_path / "data") as store:
        assert store.stats().tables["counted"].rows == 100_000


def test_with_sync_durability_a_kill_costs_no_update_without_origin(tmp_path: Path) -> None:
    port = free_port()
    options = ("--checkpoint-interval-s", "3600", "--durability", "sync")
    for turn in range(3):
        with (
            serve(tmp_path, f"127.0.0.1:{port}", *options) as process,
            es.connect(process.address, retry_s=60.0) as store,
        ):
            for _ in range(5):
                store.push({"counted": (IDS, GRADS)})
            assert counts(store) == {5.0 * (turn + 1)}
            process.kill()


def test_a_checkpoint_comes_when_enough_has_changed(tmp_path: Path) -> None:
    options = ("--checkpoint-interval-s", "3600", "--checkpoint-bytes", "1000")
    with serve(tmp_path, "127.0.0.1:0", *options) as process, es.connect(process.address) as store:
        store.open_stream("s", 0)
        push(store, 0, 1)
        deadline_s = time.monotonic() + 30
        position = 1
        while store.watermarks()["s"].durable == 0 and time.monotonic() < deadline_s:
            push(store, position, position + 1)
            position += 1
        assert store.watermarks()["s"].durable > 0


def test_pushes_go_on_over_a_restart_and_count_once(tmp_path: Path) -> None:
    port = free_port()
    total, done = 60, threading.Event()
    with serve(tmp_path, f"127.0.0.1:{port}") as process, es.connect(process.address, retry_s=60.0) as store:
        store.open_stream("s", 0)
        pushed: list[int] = []

        def work() -> None:
            for position in range(total):
                push(store, position, position + 1)
                pushed.append(position)
            done.set()

        worker = threading.Thread(target=work)
        worker.start()
        while len(pushed) < 10:
            assert not done.wait(0.005)
        assert process.terminate() == 0
        with serve(tmp_path, f"127.0.0.1:{port}"):
            worker.join(60)
            assert done.is_set()
            assert counts(store) == {float(total)}


def test_a_killed_shard_comes_back_and_the_replay_counts_once(tmp_path: Path) -> None:
    port = free_port()
    with serve(tmp_path, f"127.0.0.1:{port}") as process, es.connect(process.address, retry_s=60.0) as store:
        store.open_stream("s", 0)
        push(store, 0, 5)
        store.checkpoint()
        push(store, 5, 9)
        process.kill()
        with serve(tmp_path, f"127.0.0.1:{port}", "--checkpoint-interval-s", "3600") as again:
            started = time.monotonic()
            with pytest.raises(es.GapError) as caught:
                push(store, 9, 10)
            assert time.monotonic() - started < 3.0, "the shard was back on its port"
            [lowest, *_] = caught.value.watermarks["s"]
            assert lowest in (5, 9), "9 when the background checkpoint came in between"
            if lowest < 9:
                push(store, lowest, 9)
            push(store, 9, 10)
            assert counts(store) == {10.0}
            again.kill()


def test_updates_without_origin_that_a_kill_took_back_are_told_once(tmp_path: Path) -> None:
    port = free_port()
    address, never = f"127.0.0.1:{port}", ("--checkpoint-interval-s", "3600")
    with serve(tmp_path, address, *never) as process, es.connect(address, retry_s=60.0) as store:
        store.push({"counted": (IDS, GRADS)})
        store.checkpoint()
        for _ in range(3):
            store.push({"counted": (IDS, GRADS)})
        process.kill()
        with serve(tmp_path, address, *never):
            with pytest.warns(es.LostUpdatesWarning) as told:
                result = store.push({"counted": (IDS, GRADS)})
            assert [warning.message.count for warning in told] == [3]  # type: ignore[union-attr]
            assert result.lost_updates == 3
            assert counts(store) == {2.0}
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                store.push({"counted": (IDS, GRADS)})
                store.assign("counted", IDS[:1], [[5.0]])
                assert store.delete("counted", IDS[:2]) == 2


def test_one_shard_down_is_named_and_repeating_the_push_is_safe(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    peers = ("--peers", ",".join(addresses), "--checkpoint-interval-s", "3600")
    with (
        serve(tmp_path, addresses[0], *peers, shard="0/2"),
        serve(tmp_path, addresses[1], *peers, shard="1/2") as second,
        es.connect(addresses[0], timeout_s=2.0, retry_s=2.0) as store,
    ):
        assert store.topology.addresses == tuple(addresses)
        store.open_stream("s", 0)
        push(store, 0, 2)
        store.checkpoint()
        second.kill()
        started = time.monotonic()
        with pytest.raises(es.UnavailableError) as caught:
            push(store, 2, 5)
        assert caught.value.address == addresses[1]
        assert time.monotonic() - started < 5.0
        with pytest.raises(es.UnavailableError, match=addresses[1]):
            store.pull({"counted": IDS})
        with serve(tmp_path, addresses[1], *peers, shard="1/2"):
            assert not push(store, 2, 5).repeated
            assert counts(store) == {5.0}
            assert push(store, 2, 5).repeated


def test_a_silent_peer_is_unavailable_within_the_deadline() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(es.UnavailableError) as caught:
            es.connect(address, timeout_s=0.5, retry_s=1.5)
        assert caught.value.address == address
        assert time.monotonic() - started < 4.0


def test_a_port_or_directory_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with serve(tmp_path) as process:
        taken = run(["serve", "--listen", process.address])
        assert taken.returncode == 1
        assert taken.stderr.splitlines()[-1].startswith(f"embedstore: {process.address}: cannot listen there")
        locked = run(["serve", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "data-0")])
        assert locked.returncode == 1
        assert "is open already" in locked.stderr.splitlines()[-1]
        for failed in (taken, locked):
            assert "Traceback" not in failed.stderr
            assert failed.stdout == ""
        with es.connect(process.address) as store:
            assert store.tables() == {"counted": COUNTED}


def test_a_follower_process_reads_and_refuses_every_write(tmp_path: Path) -> None:
    with serve(tmp_path) as leader, es.connect(leader.address) as writer:
        writer.open_stream("s", 0)
        push(writer, 0, 4)
        writer.put_dense("weights", {"w": np.ones(2)}, {"s": 4})
        with Process("--follow", leader.address, "--listen", "127.0.0.1:0", "--sync-interval-ms", "20") as process:
            assert process.ready_line.startswith("embedstore: serving follower on 127.0.0.1:")
            with es.connect(process.address) as reader:
                assert counts(reader) == {4.0}
                assert reader.get_dense("weights").position == {"s": 4}
                assert reader.tables() == {"counted": COUNTED}
                assert [state.address for state in reader.stats().leaders] == [leader.address]
                assert sum(len(ids) for ids, _ in reader.scan("counted")) == len(IDS)
                for write in (
                    lambda: reader.push({"counted": (IDS, GRADS)}),
                    lambda: reader.assign("counted", IDS, GRADS),
                    lambda: reader.delete("counted", IDS),
                    lambda: reader.open_stream("t", 0),
                    lambda: reader.put_dense("w", {}, {}),
                    lambda: reader.create_table(COUNTED),
                    lambda: reader.alter_table(COUNTED),
                    lambda: reader.drop_table("counted"),
                    reader.checkpoint,
                ):
                    with pytest.raises(es.ReadOnlyError):
                        write()
                push(writer, 4, 6)
                deadline = time.monotonic() + 20
                while counts(reader) != {6.0}:
                    assert time.monotonic() < deadline
            assert process.terminate() == 0


STUCK = """
import sys, threading
from embedstore.cli import app
from embedstore.server.admin import AdminService

AdminService.stats = lambda self, request: threading.Event().wait()
app(["serve", "--listen", "127.0.0.1:0", "--drain-s", "0.2", "--data", sys.argv[1]])
"""


def test_a_request_that_never_returns_does_not_keep_a_process_from_ending(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUCK, str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            with es.connect(address, timeout_s=0.5, retry_s=0.5) as store:
                store.create_table(COUNTED)
                store.push({"counted": (IDS, GRADS)})
                with pytest.raises(es.UnavailableError):
                    store.stats()
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "(most recent call first)" in errors, "SIGUSR1 tells what every thread is doing"
    assert "a request does not end:" in errors
    with es.open(tmp_path / "data") as kept:
        assert (kept.pull({"counted": IDS})["counted"] == -1).all(), "the last checkpoint was written"
