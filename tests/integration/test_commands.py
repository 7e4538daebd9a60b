"""The commands that talk to running shards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import COMMAND
from typer.testing import CliRunner

import embedstore as es
from embedstore.cli import app
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard

TABLES = "[tables.items]\ndim = 2\nnum_chunks = 8\n[tables.users]\ndim = 3\nnum_chunks = 8\n"


@pytest.fixture
def servers() -> Iterator[str]:
    shards = [Shard(ShardOptions("127.0.0.1:0", i, 2)) for i in range(2)]
    for shard in shards:
        shard.start()
    yield ",".join(shard.address for shard in shards)
    for shard in shards:
        shard.stop()


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def lines(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments, "--json").splitlines()]


def test_tables_are_created_listed_described_and_dropped(servers: str, tmp_path: Path) -> None:
    file = tmp_path / "tables.toml"
    file.write_text(TABLES)
    at = ("--servers", servers)
    assert "no tables" in run("table", "list", *at)
    assert [row["created"] for row in lines("table", "create", str(file), *at)] == [True, True]
    assert [row["created"] for row in lines("table", "create", str(file), *at)] == [False, False]
    with es.connect(servers) as store:
        store.push({"items": (np.arange(9, dtype=np.uint64), np.ones((9, 2)))})
    assert [(row["table"], row["rows"]) for row in lines("table", "list", *at)] == [("items", 9), ("users", 0)]
    assert "items" in run("table", "list", *at)
    [facts] = lines("table", "describe", "items", *at)
    assert (facts["dim"], facts["rows"], facts["optimizer"], facts["chunks"]) == (2, 9, "Adagrad", 8)
    assert "optimizer.lr" in run("table", "describe", "items", *at)
    told = CliRunner().invoke(app, ["table", "drop", "users", "--servers", servers], input="n\n")
    assert (told.exit_code, "all its rows on 2 shards?" in told.output) == (1, True)
    assert "dropped users" in run("table", "drop", "users", "--yes", *at)
    assert [row["table"] for row in lines("table", "list", *at)] == ["items"]
    assert "embedstore: table 'users' does not exist" in run("table", "drop", "users", "--yes", *at, code=1)
    assert "does not exist" in run("table", "describe", "users", *at, code=1)
    file.write_text(TABLES.replace("dim = 2", "dim = 4"))
    assert "exists with dim 2, not 4" in run("table", "create", str(file), *at, code=1)


@pytest.mark.parametrize("asked", [None, "ERROR"])
def test_the_log_of_grpc_is_left_out_unless_it_is_asked_for(asked: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    if asked is not None:
        environment["GRPC_VERBOSITY"] = asked
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [*COMMAND, "serve", "--shard", "0/1", "--listen", listen]
        told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].startswith(f"embedstore: {listen}: ")
    assert ("add_port.cc" in told.stderr) == (asked is not None)


def test_shards_are_looked_at_and_write_checkpoints(servers: str) -> None:
    at = ("--servers", servers)
    with es.connect(servers) as store:
        store.create_table(es.TableSpec("items", 2, num_chunks=8))
        store.open_stream("s", 3)
    rows = lines("shard", "topology", *at)
    assert [(row["shard"], row["address"], row["ready"]) for row in rows] == [
        (f"{i}/2", address, True) for i, address in enumerate(servers.split(","))
    ]
    *shards, stream = lines("shard", "stats", *at)
    assert [row["tables"] for row in shards] == [1, 1]
    assert stream == {"stream": "s", "applied": 3, "durable": 3, "generation": 1}
    assert "followers" in run("shard", "stats", *at)
    assert lines("checkpoint", "create", *at)[0].keys() == {"chunks", "bytes", "seconds"}


def test_a_silent_server_is_one_line() -> None:
    output = run("shard", "stats", "--servers", "127.0.0.1:1", "--timeout-s", "0.3", code=1)
    assert output.startswith("embedstore: 127.0.0.1:1: ")
    assert len(output.splitlines()) == 1


def test_bad_settings_of_serve_are_one_line() -> None:
    output = run("serve", "--shard", "3/2", code=1)
    assert output.startswith("embedstore: shard: must be an integer in [0, 1]")


def test_help_shows_brackets_and_the_version_is_told() -> None:
    assert "[tables.NAME]" in run("table", "create", "--help")
    assert "[tables.NAME]" in run("serve", "--help")
    assert run("--version").startswith("embedstore 0.")


def test_a_follower_does_not_list_the_streams_of_clients(servers: str) -> None:
    with es.connect(servers) as store:
        store.create_table(es.TableSpec("items", dim=2, num_chunks=8))
        store.open_stream("clicks", 0)
        ids, grads = np.arange(9, dtype=np.uint64), np.ones((9, 2), np.float32)
        store.push({"items": (ids, grads)})
        store.push({"items": (ids, grads)}, origins=[es.Origin("clicks", 0, 9)])
    follower = Shard(ShardOptions("127.0.0.1:0", follow=tuple(servers.split(","))))
    follower.start()
    try:
        assert follower.wait_ready(10)
        rows = lines("shard", "stats", "--servers", follower.address)
    finally:
        follower.stop()
    assert [row["stream"] for row in rows if "stream" in row] == ["clicks"]


LIMITED = """
[tables.clicks]
dim = 2
num_chunks = 8
optimizer = { kind = "sgd", lr = 1.0 }
admission = { kind = "min_count", count = 2, memory_bytes = 65536 }
ttl_s = 3600
rows_max = 1000
"""


def test_what_a_table_keeps_is_altered_swept_and_told(servers: str, tmp_path: Path) -> None:
    file, at = tmp_path / "tables.toml", ("--servers", servers)
    file.write_text(LIMITED)
    run("table", "create", str(file), *at)
    ids, grads, now_ms = np.arange(100, dtype=np.uint64), np.ones((100, 2), np.float32), time.time_ns() // 1_000_000
    with es.connect(servers) as store:
        assert store.tables()["clicks"].admission == es.MinCount(2, memory_bytes=65536)
        for _ in range(2):
            store.push({"clicks": (ids, grads)}, event_time_ms=now_ms - 1800_000)
        store.push({"clicks": (ids[:40], grads[:40])}, event_time_ms=now_ms)
    altered = lines("table", "alter", "clicks", "--ttl-s", "900", "--rows-max", "none", "--lr", "0.5", *at)
    assert altered == [{"table": "clicks", "lr": 0.5, "ttl_s": 900.0, "rows_max": None, "bytes_max": None}]
    [dry] = lines("table", "sweep", "clicks", "--dry-run", *at)
    assert (dry["rows_expired"], dry["complete"]) == (60, True)
    assert [row["rows"] for row in lines("table", "list", *at)] == [100]
    [swept] = lines("table", "sweep", *at)
    assert (swept["table"], swept["rows_expired"]) == ("clicks", 60)
    assert lines("table", "sweep", "clicks", "--budget-ms", "50", *at)[0]["rows_expired"] == 0
    [row] = lines("table", "list", *at)
    assert (row["rows"], row["dropped_rows"], row["expired_rows"], row["evicted_rows"]) == (40, 100, 60, 0)
    [facts] = lines("table", "describe", "clicks", *at)
    assert (facts["ttl_s"], facts["admission"], facts["admission.count"]) == (900.0, "MinCount", 2)
    assert facts["sketch_bytes"] > 0 and facts["sketch_halvings"] == 0
    assert sum(shard["expired_rows"] for shard in lines("shard", "stats", *at) if "expired_rows" in shard) == 60
    assert "--ttl-s: must be a number, or none" in run("table", "alter", "clicks", "--ttl-s", "soon", *at, code=1)
    assert "TableSpec.bytes_max" in run("table", "alter", "clicks", "--bytes-max", "10", *at, code=1)
    for command in (["alter", "users", "--lr", "1"], ["sweep", "users"]):
        assert "does not exist" in run("table", *command, *at, code=1)
