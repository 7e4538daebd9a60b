"""Calls that need no token keep those who have one from nothing."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import embedstore as es
from embedstore.credentials import Credentials
from embedstore.server.leader import Window
from embedstore.server.options import ShardOptions
from embedstore.server.shard import OPEN_CALLS_MAX, Shard

TABLE = es.TableSpec("t", dim=2, optimizer=es.SGD(1.0), num_chunks=4)
HEALTH = "/grpc.health.v1.Health/"


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_checks_whose_requests_never_come_hold_no_others_up(tmp_path: Path, method: str) -> None:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "tokens.toml").write_text(
        f'[tokens.a]\nrole = "admin"\nsha256 = "{hashlib.sha256(b"secret").hexdigest()}"\n'
    )
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield from ()

    tokens = tmp_path / "tokens.toml"
    options = ShardOptions("127.0.0.1:0", tables=[TABLE], tokens=tokens, requests_max=4, followers_max=2, drain_s=0.1)
    shard = Shard(options)
    shard.start()
    with ExitStack() as stack:
        stack.callback(shard.stop)
        stack.callback(over.set)
        channel = stack.enter_context(grpc.insecure_channel(shard.address))
        silent: list[Any] = [
            channel.stream_stream(HEALTH + method, None, None)(nothing()) for _ in range(OPEN_CALLS_MAX + 8)
        ]
        with pytest.raises(grpc.RpcError) as caught:  # the oldest has to go
            next(silent[0])
        assert caught.value.code() == grpc.StatusCode.CANCELLED
        with es.connect(shard.address, credentials=Credentials(token_file=tmp_path / "token"), timeout_s=5.0) as store:
            for _ in range(5):
                store.push({"t": ([1], np.ones((1, 2), np.float32))})
        check = channel.unary_unary(HEALTH + "Check", None, None)
        for _ in range(3 * OPEN_CALLS_MAX):
            assert check(b"", timeout=10.0, wait_for_ready=True) == b"\x08\x01"
        watch: Any = channel.unary_stream(HEALTH + "Watch", None, None)(b"", timeout=10.0)
        assert next(watch) == b"\x08\x01"
        watch.cancel()


def test_calls_that_are_refused_for_their_token_are_counted_by_methods_that_there_are(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tokens.a]\nrole = "read"\nsha256 = "{hashlib.sha256(b"secret").hexdigest()}"\n')
    shard = Shard(ShardOptions("127.0.0.1:0", tables=[TABLE], tokens=tokens, metrics_listen="127.0.0.1:0"))
    shard.start()
    try:
        with grpc.insecure_channel(shard.address) as channel:
            for path in ("/embedstore.v1.EmbeddingService/Push", *(f"/made.up/Name{i}" for i in range(20))):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(path, None, None)(b"", timeout=10.0)
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(path, None, None)(
                        b"", timeout=10.0, metadata=(("authorization", "Bearer secret"),)
                    )
        with urllib.request.urlopen(f"http://{shard.metrics_address}/metrics", timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("embedstore_refused")]
    finally:
        shard.stop()
    assert sorted(line for line in lines if "_total" in line) == [
        'embedstore_refused_requests_total{error="PermissionDeniedError",method="Push"} 1.0',
        'embedstore_refused_requests_total{error="PermissionDeniedError",method="unknown"} 20.0',
        'embedstore_refused_requests_total{error="UnauthenticatedError",method="Push"} 1.0',
        'embedstore_refused_requests_total{error="UnauthenticatedError",method="unknown"} 20.0',
    ]


def test_a_follower_whose_process_stands_still_loses_its_place() -> None:
    """Its system takes bytes until its buffers are full, and answers nothing."""
    table = es.TableSpec("t", dim=64, optimizer=es.SGD(1.0), num_chunks=4)
    shard = Shard(ShardOptions("127.0.0.1:0", tables=[table], sync_interval_ms=10, drain_s=0.1))
    shard.start()
    serve = [sys.executable, "-m", "embedstore.cli", "serve", "--listen", "127.0.0.1:0", "--follow", shard.address]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            assert "serving follower" in follower.stdout.readline()
            sync = shard._serving.sync()
            sync._window = Window(stall_s=0.5)
            follower.send_signal(signal.SIGSTOP)
            deadline_s = time.monotonic() + 30.0
            with es.connect(shard.address) as store:
                while sync.followers:
                    assert time.monotonic() < deadline_s
                    store.push({"t": (np.arange(50_000, dtype=np.uint64), np.ones((50_000, 64), np.float32))})
        finally:
            follower.send_signal(signal.SIGCONT)
            follower.terminate()
            shard.stop()
