"""``embedstore shard``: what running shards say of themselves."""

from __future__ import annotations

import time
from typing import Any

import typer

from embedstore import messages
from embedstore.cli.output import SERVERS_DEFAULT, AsJson, Servers, TimeoutS, connected, show
from embedstore.interface import StoreStats
from embedstore.origins import is_client
from embedstore.v1 import admin_pb2

app = typer.Typer(help="Look at running shards and have them write checkpoints.", no_args_is_help=True)


@app.command()
def topology(servers: Servers = SERVERS_DEFAULT, as_json: AsJson = False, timeout_s: TimeoutS = 10.0) -> None:
    """Which shards there are, where, and whether they are ready."""
    request = admin_pb2.TopologyRequest().SerializeToString()
    with connected(servers, timeout_s) as store:
        rows = []
        for shard in range(len(store.peers)):
            answer = admin_pb2.TopologyResponse.FromString(store.peers.call(shard, "Topology", request))
            rows.append(
                {
                    "shard": f"{answer.shard}/{answer.topology.num_shards}",
                    "address": store.peers.address(shard),
                    "epoch": answer.topology.epoch,
                    "ready": answer.ready,
                    "follower": answer.follower,
                }
            )
    show(rows, as_json=as_json, title="shards")


@app.command()
def stats(servers: Servers = SERVERS_DEFAULT, as_json: AsJson = False, timeout_s: TimeoutS = 10.0) -> None:
    """Rows, memory, checkpoints and followers, shard by shard; streams (not those of clients) and leaders over all."""
    request = admin_pb2.StatsRequest().SerializeToString()
    with connected(servers, timeout_s) as store:
        answers = [
            (store.peers.address(shard), admin_pb2.StatsResponse.FromString(store.peers.call(shard, "Stats", request)))
            for shard in range(len(store.peers))
        ]
    found = [(address, messages.stats_from_proto(answer)) for address, answer in answers]
    show([_row(address, each) for address, each in found], as_json=as_json, title="shards")
    merged = messages.merge_stats([each for _, each in found])
    streams = [
        {"stream": name, "applied": state.applied, "durable": state.durable, "generation": state.generation}
        for name, state in sorted(merged.streams.items())
        if not is_client(name)
    ]
    leaders = [
        {"leader": leader.address, "connected": leader.connected, "age_s": leader.age_s, "deltas": leader.deltas}
        for leader in merged.leaders
    ]
    for rows, title in ((streams, "streams"), (leaders, "leaders")):
        if rows:
            show(rows, as_json=as_json, title=title)


@app.command()
def checkpoint(servers: Servers = SERVERS_DEFAULT, as_json: AsJson = False, timeout_s: TimeoutS = 10.0) -> None:
    """Have every shard write a checkpoint now, and wait for it."""
    with connected(servers, timeout_s) as store:
        result = store.checkpoint()
    row = {"chunks": result.chunks_written, "bytes": result.bytes_written, "seconds": result.seconds}
    show([row], as_json=as_json, title="checkpoint")


def _row(address: str, stats: StoreStats) -> dict[str, Any]:
    age_s = time.time() - stats.last_checkpoint_s if stats.last_checkpoint_s else None
    return {
        "address": address,
        "tables": len(stats.tables),
        "rows": sum(table.rows for table in stats.tables.values()),
        "memory_bytes": sum(table.memory_bytes for table in stats.tables.values()),
        "dropped_rows": sum(table.dropped_rows for table in stats.tables.values()),
        "expired_rows": sum(table.expired_rows for table in stats.tables.values()),
        "evicted_rows": sum(table.evicted_rows for table in stats.tables.values()),
        "sketch_bytes": sum(table.sketch_bytes for table in stats.tables.values()),
        "uptime_s": round(stats.uptime_s, 1),
        "checkpoint_age_s": "never" if age_s is None else round(age_s, 1),
        "followers": stats.followers,
        "corrupt_chunks": stats.corrupt_chunks,
    }
