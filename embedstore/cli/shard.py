"""``embedstore shard``: what running shards say of themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from embedstore import freshness, messages
from embedstore.cli.output import SERVERS_DEFAULT, AsJson, Servers, TimeoutS, connected, one_line_errors, show
from embedstore.cli.sample import Followers, Sample, take, with_gone
from embedstore.client import RemoteStore
from embedstore.credentials import Credentials
from embedstore.errors import UnavailableError
from embedstore.interface import StoreStats
from embedstore.origins import is_client
from embedstore.peers import check_address, parse_addresses
from embedstore.routes import Call, Reply
from embedstore.server.takeover import activate, resharded
from embedstore.status import Topology
from embedstore.v1 import admin_pb2

Force = Annotated[bool, typer.Option("--force", help="Also when a leader cannot be reached or is behind.")]
FORCE_HINT = "Start it again, or have the standby take over without it: --force (see --help for what that can cost)"
app = typer.Typer(help="Look at running shards, and have others take their place.", no_args_is_help=True)


@app.command()
def topology(servers: Servers = SERVERS_DEFAULT, as_json: AsJson = False, timeout_s: TimeoutS = 10.0) -> None:
    """Which shards there are, where, and whether they are ready; exit code 1 when one does not answer."""
    request = admin_pb2.TopologyRequest().SerializeToString()
    with connected(servers, timeout_s) as store:
        replies = _ask_all(store, "Topology", request)
    rows = []
    for reply in replies:
        silent = isinstance(reply.outcome, Exception)
        answer = admin_pb2.TopologyResponse.FromString(reply.outcome if isinstance(reply.outcome, bytes) else b"")
        rows.append(
            {
                "shard": f"{reply.call.shard if silent else answer.shard}/{len(replies)}",
                "address": reply.address,
                "epoch": None if silent or (answer.follower and not answer.standby) else answer.topology.epoch,
                "ready": answer.ready,
                "follower": answer.follower,
            }
        )
    show(rows, as_json=as_json, title="shards")
    _tell_silent(replies)


@app.command()
def stats(servers: Servers = SERVERS_DEFAULT, as_json: AsJson = False, timeout_s: TimeoutS = 10.0) -> None:
    """Rows, memory, checkpoints and followers, shard by shard; streams (not those of clients) and leaders over all.

    Exit code 1 when a shard does not answer; what is shown is of the others then.
    """
    request = admin_pb2.StatsRequest().SerializeToString()
    with connected(servers, timeout_s) as store:
        replies = _ask_all(store, "Stats", request)
    found = [
        (reply.address, messages.stats_from_proto(admin_pb2.StatsResponse.FromString(reply.outcome)))
        for reply in replies
        if isinstance(reply.outcome, bytes)
    ]
    if found:
        _show_stats(found, as_json=as_json)
    _tell_silent(replies)


def _ask_all(store: RemoteStore, method: str, request: bytes) -> list[Reply]:
    """What every shard answers, side by side; whoever is silent is a reply, too."""
    return store.peers.ask(lambda route: [Call(shard, method, request) for shard in range(len(route))])


def _tell_silent(replies: Sequence[Reply]) -> None:
    problems = [reply.outcome for reply in replies if isinstance(reply.outcome, Exception)]
    for problem in problems:
        typer.echo(f"embedstore: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


def _show_stats(found: Sequence[tuple[str, StoreStats]], *, as_json: bool) -> None:
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
def lag(
    servers: Servers = SERVERS_DEFAULT,
    followers: Followers = "",
    as_json: AsJson = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """How long events take to be trained, published and visible, and how far behind each follower is.

    Times in seconds, over all processes together, since each has started; docs/metrics.md says what each one is.
    Exit code 1 when a shard, or another process whose address was given, does not answer; what is shown is of the
    others then.
    """
    with one_line_errors():
        sample = take(servers, followers, timeout_s)
    silent = [member for member in sample.members if member.stats is None]
    for member in silent:
        typer.echo(f"embedstore: {member.problem}", err=True)
    if len(silent) == len(sample.members):
        raise typer.Exit(1)
    links = sample.links() if as_json else with_gone(sample.links())
    for rows, title in ((_times(sample), "times"), (links, "followers")):
        if rows or not as_json:
            show(rows, as_json=as_json, title=title)
    if any(member.named and not member.role.startswith("fenced") for member in silent):
        raise typer.Exit(1)


def _times(sample: Sample) -> list[dict[str, Any]]:
    found = freshness.merge(stats.distributions for stats in sample.stats)
    order = list(freshness.MEANINGS)

    def place(measure: str) -> int:  # another release may have others
        return order.index(measure) if measure in order else len(order)

    return [
        {
            "measure": measure.removesuffix("_seconds"),
            "table": table,
            "count": each.num_values,
            "p50_s": each.quantile(0.5),
            "p90_s": each.quantile(0.9),
            "p99_s": each.quantile(0.99),
            "mean_s": each.total / max(each.num_values, 1),
        }
        for (measure, table), each in sorted(found.items(), key=lambda item: (place(item[0][0]), item[0][1]))
    ]


@app.command()
def promote(
    standby: Annotated[str, typer.Argument(help="host:port of the standby that shall take its leader's place.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also when the leader cannot be reached or is behind.")
    ] = False,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 60.0,
) -> None:
    """Have a standby take the place of the shard that it follows.

    The leader applies its last write, sends what it still has, and refuses everything from then on. Without a leader
    that answers this needs --force: updates without origins that it applied and did not send are gone then, and it must
    not come back where it can reach none of the others.
    """
    with one_line_errors():
        check_address("standby", standby)
        credentials = Credentials.from_environment()
        try:
            [record] = activate([standby], None, force=force, timeout_s=timeout_s, credentials=credentials)
        except UnavailableError as problem:
            if force or problem.address == standby:
                raise
            raise UnavailableError(problem.address, f"{problem.problem}. {FORCE_HINT}") from None
    show(_record_rows(record), as_json=as_json, title=f"epoch {record.epoch}")


@app.command()
def reshard(
    to: Annotated[
        str, typer.Option(help="Addresses of all standbys of the new number of shards: host:port,host:port.")
    ],
    servers: Servers = SERVERS_DEFAULT,
    force: Force = False,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 60.0,
) -> None:
    """Have standbys of another number of shards take over from all present ones, in one step.

    Start a standby for each new shard first (embedstore serve --follow ... --standby --shard i/m). When it fails
    half-way, run it again: what was begun is finished.
    """
    with one_line_errors():
        targets = parse_addresses(to)
        credentials = Credentials.from_environment()
        record = resharded(parse_addresses(servers), targets, timeout_s, credentials, force=force)
        [record, *_] = activate(targets, record, force=force, timeout_s=timeout_s, credentials=credentials)
    show(_record_rows(record), as_json=as_json, title=f"epoch {record.epoch}")


def _record_rows(record: Topology) -> list[dict[str, Any]]:
    return [{"shard": f"{i}/{record.num_shards}", "address": at} for i, at in enumerate(record.addresses)]


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
        "standbys": ",".join(stats.standbys),
        "corrupt_chunks": stats.corrupt_chunks,
    }
