"""``embedstore serve``: run one shard, or one follower, until SIGTERM or SIGINT."""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from embedstore.cli.config import load_settings
from embedstore.cli.output import one_line_errors
from embedstore.cli.recovery import StoppedError, reported
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard

STOP_S_MAX = 600.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def serve(
    listen: Annotated[str | None, typer.Option(help="host:port to serve on; port 0 takes a free one.")] = None,
    shard: Annotated[str | None, typer.Option(help='Which shard this is: "i/n".')] = None,
    data: Annotated[Path | None, typer.Option(help="Directory of the checkpoints; without one: memory only.")] = None,
    tables: Annotated[Path | None, typer.Option(help="TOML file of tables to have: \\[tables.NAME] sections.")] = None,
    peers: Annotated[str | None, typer.Option(help="Addresses of all shards in order: host:port,host:port.")] = None,
    follow: Annotated[str | None, typer.Option(help="Be a read-only follower of these shards.")] = None,
    rows: Annotated[str | None, typer.Option(help="How a follower keeps rows: fp32, fp16, int8 or int4.")] = None,
    standby: Annotated[bool | None, typer.Option("--standby", help="Follow to take the shard's place one day.")] = None,
    advertise: Annotated[str | None, typer.Option(help="host:port where others reach this process.")] = None,
    checkpoint_interval_s: Annotated[float | None, typer.Option(help="Seconds between checkpoints (5).")] = None,
    checkpoint_bytes: Annotated[int | None, typer.Option(help="Or when so many bytes changed (1 GiB).")] = None,
    keep_checkpoints: Annotated[int | None, typer.Option(help="Checkpoints that stay readable (1).")] = None,
    durability: Annotated[
        str | None, typer.Option(help="When an update without origin is answered: checkpoint (at once), or sync.")
    ] = None,
    drain_s: Annotated[float | None, typer.Option(help="How long requests may still take at the end (10).")] = None,
    workers: Annotated[int | None, typer.Option(help="Requests that run at once (32).")] = None,
    sync_interval_ms: Annotated[int | None, typer.Option(help="A chunk has one delta in it at most (200).")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="host:port where Prometheus finds this process.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM): the port speaks TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Authorities of the others' certificates (PEM).")] = None,
    mtls: Annotated[bool | None, typer.Option("--mtls", help="Callers need a certificate from there, too.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="TOML file of bearer tokens and their roles.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="The token with which this process calls others.")] = None,
    plaintext_beyond_loopback: Annotated[
        bool | None, typer.Option("--plaintext-beyond-loopback", help="Serve a network without TLS.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these, named alike.")] = None,
) -> None:
    """Serve one shard of the store, or a follower of shards.

    Prints one line on stdout when requests are answered. SIGTERM or SIGINT: drain, checkpoint, exit 0. SIGUSR1: what
    every thread is doing, on stderr.
    """
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    flags: dict[str, Any] = {
        "listen": listen,
        "shard": shard,
        "data": data,
        "tables": tables,
        "peers": peers,
        "follow": follow,
        "rows": rows,
        "standby": standby,
        "advertise": advertise,
        "checkpoint_interval_s": checkpoint_interval_s,
        "checkpoint_bytes": checkpoint_bytes,
        "keep_checkpoints": keep_checkpoints,
        "durability": durability,
        "drain_s": drain_s,
        "workers": workers,
        "sync_interval_ms": sync_interval_ms,
        "metrics_listen": metrics_listen,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_ca": tls_ca,
        "mtls": mtls,
        "tokens": tokens,
        "token_file": token_file,
        "plaintext_beyond_loopback": plaintext_beyond_loopback,
    }
    signals = Signals(signal.SIGTERM, signal.SIGINT)
    with one_line_errors():
        options = load_settings(config, flags).options()
        faulthandler.register(signal.SIGUSR1)
        run(options, signals)
    _leave()


class Signals:
    """Lets the main thread wait for signals.

    The system may give a signal to any thread, and a main thread that waits for a lock then sleeps on with the handler
    never run. It waits for a pipe instead, which is written to wherever the signal arrives.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        for number in numbers:
            signal.signal(number, lambda *_: None)

    def arrived(self, timeout_s: float | None = 0.0) -> bool:
        """Whether one has come; waits ``timeout_s`` for it, None: for ever."""
        return bool(select.select([self._read], [], [], timeout_s)[0])


def run(options: ShardOptions, signals: Signals) -> None:
    """Serve until there is a signal. What keeps it from stopping is told on stderr; past a limit it exits with 1."""
    try:
        with reported(signals.arrived, Console(stderr=True)) as progress:
            server = Shard(options, progress=progress)
            server.start()
    except StoppedError as told:
        logging.getLogger(__name__).info("%s", told)
        return
    try:
        while not server.wait_ready(0.1) and not signals.arrived():
            pass
        if not signals.arrived():
            typer.echo(f"embedstore: {server.doing}")
        signals.arrived(None)
    finally:
        faulthandler.dump_traceback_later(options.drain_s + STOP_S_MAX, exit=True)
        server.stop()
        faulthandler.cancel_dump_traceback_later()


def _leave() -> NoReturn:
    """Exit 0 now: everything is closed, and an ordinary exit would wait for every request's thread, even one that never
    returns."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
