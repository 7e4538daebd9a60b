"""Clusters of processes whose stores are exported and imported by the commands."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import COUNTED, STREAM, counts, expected_counts, ones, push_events, replay
from moved_stores import DENSE, NOW_MS, TABLES, make, whole
from processes import Process, free_port, run

import embedstore as es
from embedstore.client import RemoteStore


def serve_all(stack: ExitStack, paths: Sequence[Path]) -> tuple[list[Process], RemoteStore]:
    """A cluster over these directories, as an operator starts it, and a client."""
    ports = [free_port() for _ in paths]
    peers = ",".join(f"127.0.0.1:{port}" for port in ports)
    processes = [
        stack.enter_context(
            Process(
                "--listen",
                f"127.0.0.1:{port}",
                "--peers",
                peers,
                "--shard",
                f"{shard}/{len(paths)}",
                "--data",
                str(path),
            )
        )
        for shard, (path, port) in enumerate(zip(paths, ports, strict=True))
    ]
    return processes, stack.enter_context(es.connect(peers))


def command(*arguments: str | Path) -> None:
    done = run(["checkpoint", *map(str, arguments)])
    assert done.returncode == 0, done.stderr


def test_a_cluster_of_two_becomes_one_of_three_and_then_of_one_and_takes_what_comes_next(tmp_path: Path) -> None:
    """By its commands; a push that a shard had already is a repeat in whatever cluster the store is by then."""
    data = make(tmp_path, 2)
    at, ids = 9, np.arange(150, dtype=np.uint64)
    for after in (3, 1, 1):
        with ExitStack() as stack:
            processes, store = serve_all(stack, data)
            assert store.open_stream(STREAM, 0).watermarks == (at,)
            for position in (at - 1, at):
                parts = {"items": (ids, ones(150)), "counting": (ids, ones(150, 3))}
                pushed = store.push(parts, origins=[es.Origin(STREAM, position, position + 1)], event_time_ms=NOW_MS)
                assert pushed.repeated == (position < at)
            at += 1
            before = store.pull({spec.name: ids for spec in TABLES}, meta=True)
            dense = {name: store.get_dense(name).tensors["w"].tolist() for name in DENSE}
            assert [process.terminate() for process in processes] == [0] * len(data)
        command("export", *data, "--to", tmp_path / f"export-{at}")
        old, data = data, [tmp_path / f"{at}-{shard}" for shard in range(after)]
        for shard, path in enumerate(data):
            command("import", tmp_path / f"export-{at}", "--data", path, "--shard", f"{shard}/{after}")
        assert whole(data) == whole(old)
        with ExitStack() as stack:
            _, store = serve_all(stack, data)
            same(store.pull({spec.name: ids for spec in TABLES}, meta=True), before)
            assert {name: store.get_dense(name).tensors["w"].tolist() for name in DENSE} == dense


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, rows in expected.items():
        for field in ("embeddings", "found", "updates", "first_seen_s", "last_seen_s"):
            np.testing.assert_array_equal(getattr(found[name], field), getattr(rows, field), strict=True)


def test_a_shard_whose_disk_died_comes_back_from_an_export(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    peers = ",".join(f"127.0.0.1:{port}" for port in ports)
    data = [tmp_path / "0", tmp_path / "1"]
    export = tmp_path / "export"

    def start(shard: int) -> Process:
        return Process(
            *("--listen", f"127.0.0.1:{ports[shard]}", "--peers", peers, "--shard", f"{shard}/2"),
            *("--data", str(data[shard]), "--checkpoint-interval-s", "3600"),
        )

    with start(0), es.connect(peers) as store:
        with start(1) as lost:
            store.create_table(COUNTED)
            store.open_stream(STREAM, 0)
            push_events(store, 0, 50)
            assert run(["checkpoint", "create", "--servers", peers]).returncode == 0
            assert run(["checkpoint", "export", *map(str, data), "--to", str(export)]).returncode == 0
            generation = store.open_stream(STREAM, 0).generation
            store.open_stream("file/later/0", 3)
            push_events(store, 50, 120)
            lost.kill()
        shutil.rmtree(data[1])
        assert run(["checkpoint", "import", str(export), "--data", str(data[1]), "--shard", "1/2"]).returncode == 0
        with start(1):
            assert store.watermarks()[STREAM].watermarks == (50, 120)
            with pytest.raises(es.InvalidArgumentError, match="2 was never opened, the stream is at 1"):
                replay(store, 120)
            assert store.open_stream(STREAM, 0).generation == generation + 1
            replay(store, 120)
            np.testing.assert_array_equal(counts(store), expected_counts(120))
            assert store.watermarks()[STREAM].watermarks == (120,)
            assert store.open_stream("file/later/0", 3).watermarks == (3,)
            push_events(store, 120, 150)
            np.testing.assert_array_equal(counts(store), expected_counts(150))
