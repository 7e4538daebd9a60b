"""``embedstore top``: a live view of running processes, their tables and who follows whom."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from embedstore import messages
from embedstore.cli.grid import Grid
from embedstore.cli.output import (
    SERVERS_DEFAULT,
    WIDTH_OF_A_FILE,
    AsJson,
    Servers,
    TimeoutS,
    json_line,
    one_line_errors,
)
from embedstore.cli.sample import Followers, Member, Sample, take, with_gone
from embedstore.errors import InvalidArgumentError
from embedstore.freshness import EVENT_TO_VISIBLE, TIME_TO_FIRST_EMBEDDING
from embedstore.interface import StoreStats

INTERVAL_S_MAX = 3600.0
LEAST = {
    "processes": ("uptime_s", "followers", "checkpoint_age_s", "copied_share", "epoch"),
    "tables": ("inserted_rows_per_s", "bytes_per_row", "missed_share"),
    "followers": ("sent_bytes",),
}
"""Columns that a narrow console does without, the first of them first."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def top(
    servers: Servers = SERVERS_DEFAULT,
    followers: Followers = "",
    interval_s: Annotated[float, typer.Option("--interval-s", help="Time between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, over one interval, print it and end.")] = False,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 2.0,
) -> None:
    """Watch shards, followers and tables: rows, memory, pulls and pushes a second, lag. Ends with Ctrl-C.

    With --json one object a line for every look, for programs. With --once exit code 1 when nobody answers.
    """
    with one_line_errors():
        if not 0 < interval_s <= INTERVAL_S_MAX:
            raise InvalidArgumentError("interval-s", f"must be in (0, {INTERVAL_S_MAX:g}], not {interval_s:g}")
        try:
            _watch(lambda: take(servers, followers, timeout_s), interval_s, once=once, as_json=as_json)
        except KeyboardInterrupt:
            raise typer.Exit from None


def _watch(look: Callable[[], Sample], interval_s: float, *, once: bool, as_json: bool) -> None:
    before = look()
    if as_json or once:
        while True:
            time.sleep(interval_s)
            now = look()
            if as_json:
                typer.echo(json_line(facts(before, now)))
            else:
                width = None if sys.stdout.isatty() else WIDTH_OF_A_FILE
                Console(file=sys.stdout, width=width).print(_page(facts(before, now)))
            if once:
                if not now.stats:
                    raise typer.Exit(1)
                return
            before = now
    with Live(_page(facts(before, before)), screen=sys.stdout.isatty(), auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            now = look()
            live.update(_page(facts(before, now)), refresh=True)
            before = now


def facts(before: Sample, now: Sample) -> dict[str, Any]:
    """What is shown, as plain values; rates are over the time between the two looks, 0 without one."""
    seconds = now.at_s - before.at_s
    known = {member.address: member.stats for member in before.members}
    members = [_member(member, known.get(member.address), seconds) | _copy(now, member) for member in now.members]
    shards = [member.stats for member in now.members if member.stats is not None and member.role.startswith("shard")]
    earlier = [known.get(member.address) for member in now.members if member.role.startswith("shard")]
    tables = _tables(shards, [each for each in earlier if each], seconds)
    copies = [copy for member in now.members for copy in _copies(member, known.get(member.address), seconds)]
    return {
        "members": members,
        "tables": tables,
        "copies": copies,
        "dense_sets": _dense_sets(now),
        "links": _links(now),
    }


def _member(member: Member, before: StoreStats | None, seconds: float) -> dict[str, Any]:
    stats = member.stats
    if stats is None:
        return {"address": member.address, "role": member.role, "epoch": member.epoch, "problem": member.problem}
    tables = stats.tables.values()
    shown = {
        "address": member.address,
        "role": member.role,
        "epoch": member.epoch,
        "rows": member.rows,
        "memory_bytes": sum(table.memory_bytes for table in tables),
        "pulled_rows_per_s": _rate(stats, before, "pulled_rows", seconds),
        "pushed_rows_per_s": _rate(stats, before, "pushed_rows", seconds),
        "followers": stats.followers,
        "age_s": max((leader.age_s for leader in stats.leaders), default=0.0),
        "checkpoint_age_s": max(time.time() - stats.last_checkpoint_s, 0.0) if stats.last_checkpoint_s else None,
        "uptime_s": stats.uptime_s,
    }
    return shown | ({"problem": member.problem} if member.problem else {})


def _copy(now: Sample, member: Member) -> dict[str, Any]:
    """What there is to say of one that follows only."""
    shown: dict[str, Any] = {}
    if member.role.startswith("standby"):
        shown["listed"] = not now.standbys.isdisjoint({member.address, member.own})
    if shown or member.role == "follower":
        shown["synced"] = member.synced
    away = [leader.address for leader in member.stats.leaders if not leader.connected] if member.stats else []
    if shown and away and not member.problem:
        shown["problem"] = f"is not connected to {', '.join(away)}"
    share = now.copied_share(member)
    return shown if share is None else shown | {"copied_share": share}


def _rate(now: StoreStats, before: StoreStats | None, counter: str, seconds: float, table: str | None = None) -> float:
    """A process that was started anew counts from nothing, and shows no rate rather than a negative one."""
    if before is None or seconds <= 0 or before.uptime_s > now.uptime_s:
        return 0.0
    names = now.tables if table is None else [table]
    new = sum(getattr(now.tables[name], counter) for name in names if name in now.tables)
    old = sum(getattr(before.tables[name], counter) for name in names if name in before.tables)
    return float(max(new - old, 0)) / seconds


def _tables(shards: list[StoreStats], before: list[StoreStats], seconds: float) -> list[dict[str, Any]]:
    if not shards:
        return []
    now = messages.merge_stats(shards)
    old = messages.merge_stats(before) if len(before) == len(shards) else None
    return [
        {
            "table": name,
            "rows": table.rows,
            "memory_bytes": table.memory_bytes,
            "bytes_per_row": table.memory_bytes / table.rows if table.rows else 0.0,
            "pulled_rows_per_s": _rate(now, old, "pulled_rows", seconds, name),
            "pushed_rows_per_s": _rate(now, old, "pushed_rows", seconds, name),
            "inserted_rows_per_s": _rate(now, old, "inserted_rows", seconds, name),
            "missed_share": table.missed_rows / table.pulled_rows if table.pulled_rows else 0.0,
        }
        for name, table in sorted(now.tables.items())
    ]


def _copies(member: Member, before: StoreStats | None, seconds: float) -> list[dict[str, Any]]:
    """A follower's own tables, which may be kept smaller than the shards'."""
    stats = member.stats
    if stats is None or member.role != "follower":
        return []
    return [
        {
            "follower": member.address,
            "table": name,
            "rows": table.rows,
            "memory_bytes": table.memory_bytes,
            "bytes_per_row": table.memory_bytes / table.rows if table.rows else 0.0,
            "pulled_rows_per_s": _rate(stats, before, "pulled_rows", seconds, name),
        }
        for name, table in sorted(stats.tables.items())
    ]


def _dense_sets(now: Sample) -> list[dict[str, Any]]:
    """The versions that each process has: who is behind shows."""
    return [
        {"process": member.address, "dense_set": name, "version": found.version}
        for member in now.members
        for name, found in (member.stats.dense_sets.items() if member.stats else ())
    ]


def _links(now: Sample) -> list[dict[str, Any]]:
    """Who follows whom: as leaders see it, and how fresh followers are."""
    fresh: dict[tuple[str, str], dict[str, Any]] = {}
    for member in now.members:
        for (measure, table), found in member.stats.distributions.items() if member.stats else ():
            if measure in (EVENT_TO_VISIBLE, TIME_TO_FIRST_EMBEDDING):
                name = measure.removesuffix("_seconds")
                row = fresh.setdefault((member.address, table), {"follower": member.address, "table": table})
                row |= {f"{name}_p50_s": found.quantile(0.5), f"{name}_p99_s": found.quantile(0.99)}
    return [*now.links(), *fresh.values()]


def _page(shown: Mapping[str, Any]) -> Group:
    links = with_gone([link for link in shown["links"] if "lag_s" in link])
    fresh = [link for link in shown["links"] if "table" in link]
    parts = (
        ("processes", shown["members"]),
        ("tables", shown["tables"]),
        ("followers' tables", shown["copies"]),
        ("dense sets", shown["dense_sets"]),
        ("followers", links),
        ("freshness", fresh),
    )
    shown_parts = [each for title, rows in parts if rows for each in (Text(), _grid(title, rows))]
    return Group(Text(time.strftime("embedstore  %Y-%m-%d %H:%M:%S"), style="bold"), *shown_parts)


def _grid(title: str, rows: Sequence[Mapping[str, Any]]) -> Grid:
    numeric = {_header(name) for row in rows for name, value in row.items() if isinstance(value, int | float)}
    cells = [{_header(name): _cell(name, value) for name, value in row.items()} for row in rows]
    return Grid(title, cells, frozenset(numeric), [_header(name) for name in LEAST.get(title, ())])


def _header(name: str) -> str:
    return name.removesuffix("_bytes").replace("_per_s", "/s")


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column.endswith("_bytes"):
        return _bytes(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if column.endswith("_s") or value < 10 else f"{value:,.0f}"


def _bytes(value: float) -> str:
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
