"""``embedstore serve``: run one shard, or one follower, until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from embedstore.cli.config import load_settings
from embedstore.cli.output import one_line_errors
from embedstore.server.shard import Shard, ShardOptions

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def serve(
    listen: Annotated[str | None, typer.Option(help="host:port to serve on; port 0 takes a free one.")] = None,
    shard: Annotated[str | None, typer.Option(help='Which shard this is: "i/n".')] = None,
    data: Annotated[Path | None, typer.Option(help="Directory of the checkpoints; without one: memory only.")] = None,
    tables: Annotated[Path | None, typer.Option(help="TOML file of tables to have: \\[tables.NAME] sections.")] = None,
    peers: Annotated[str | None, typer.Option(help="Addresses of all shards in order: host:port,host:port.")] = None,
    follow: Annotated[str | None, typer.Option(help="Be a read-only follower of these shards.")] = None,
    checkpoint_interval_s: Annotated[float | None, typer.Option(help="Seconds between checkpoints (5).")] = None,
    drain_s: Annotated[float | None, typer.Option(help="How long requests may still take at the end (10).")] = None,
    workers: Annotated[int | None, typer.Option(help="Requests that run at once (32).")] = None,
    sync_interval_ms: Annotated[int | None, typer.Option(help="Shortest time between deltas of a chunk (200).")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these, named alike.")] = None,
) -> None:
    """Serve one shard of the store, or a follower of shards.

    Prints one line on stdout when requests are answered. SIGTERM or SIGINT: drain, checkpoint, exit 0.
    """
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    flags: dict[str, Any] = {
        "listen": listen,
        "shard": shard,
        "data": data,
        "tables": tables,
        "peers": peers,
        "follow": follow,
        "checkpoint_interval_s": checkpoint_interval_s,
        "drain_s": drain_s,
        "workers": workers,
        "sync_interval_ms": sync_interval_ms,
    }
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with one_line_errors():
        run(load_settings(config, flags).options(), stop)


def run(options: ShardOptions, stop: threading.Event) -> None:
    """Serve until ``stop`` is set."""
    server = Shard(options)
    server.start()
    try:
        while not server.wait_ready(0.1) and not stop.is_set():
            pass
        if not stop.is_set():
            what = "follower" if options.follow else f"shard {options.shard}/{options.num_shards}"
            typer.echo(f"embedstore: serving {what} on {server.address}")
        stop.wait()
    finally:
        server.stop()
