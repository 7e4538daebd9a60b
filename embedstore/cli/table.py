"""``embedstore table``: list, create, alter, sweep, drop and describe tables of running shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from embedstore.cli.output import SERVERS_DEFAULT, AsJson, Servers, TimeoutS, connected, show
from embedstore.cli.tables import read_tables
from embedstore.errors import InvalidArgumentError, TableNotFoundError
from embedstore.spec import TableSpec

app = typer.Typer(help="List, create, alter, sweep, drop and describe tables.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The table's name.")]


@app.command("list")
def list_tables(servers: Servers = SERVERS_DEFAULT, as_json: AsJson = False, timeout_s: TimeoutS = 10.0) -> None:
    """List all tables with their sizes over all shards."""
    with connected(servers, timeout_s) as store:
        stats = store.stats().tables
        rows = [_row(spec, stats.get(name)) for name, spec in sorted(store.tables().items())]
    show(rows, as_json=as_json, title="tables")


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="TOML file, a section \\[tables.NAME] for each table.")],
    servers: Servers = SERVERS_DEFAULT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Create the tables of a file on every shard; one that exists with the same spec stays as it is."""
    with connected(servers, timeout_s) as store:
        rows = [{"table": spec.name, "created": store.create_table(spec)} for spec in read_tables(file)]
    show(rows, as_json=as_json, title="tables")


@app.command()
def alter(
    name: Name,
    lr: Annotated[float | None, typer.Option(help="Learning rate of pushes that give none.")] = None,
    ttl_s: Annotated[str | None, typer.Option(help="Seconds that a row lives without events; none: ever.")] = None,
    rows_max: Annotated[str | None, typer.Option(help="Most rows over all shards; none: no bound.")] = None,
    bytes_max: Annotated[str | None, typer.Option(help="Most bytes of rows over all shards; none: no bound.")] = None,
    servers: Servers = SERVERS_DEFAULT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Change what can change in a table's life, on every shard; what is not given stays."""
    with connected(servers, timeout_s) as store:
        spec = store.tables().get(name)
        if spec is None:
            raise TableNotFoundError(name)
        limits = {
            "ttl_s": _limit("--ttl-s", ttl_s, float, spec.ttl_s),
            "rows_max": _limit("--rows-max", rows_max, int, spec.rows_max),
            "bytes_max": _limit("--bytes-max", bytes_max, int, spec.bytes_max),
        }
        optimizer = spec.optimizer if lr is None else replace(spec.optimizer, lr=lr)
        store.alter_table(replace(spec, optimizer=optimizer, **limits))
    show([{"table": name, "lr": optimizer.lr, **limits}], as_json=as_json, title="tables")


@app.command()
def sweep(
    name: Annotated[str | None, typer.Argument(help="The table's name; without one, all tables.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would expire; change nothing.")] = False,
    budget_ms: Annotated[float | None, typer.Option(help="Stop about then, on each shard; default: a round.")] = None,
    servers: Servers = SERVERS_DEFAULT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Remove expired rows and give their memory back, on every shard."""
    with connected(servers, timeout_s) as store:
        swept = store.sweep(name, budget_ms=budget_ms, dry_run=dry_run)
    rows = [{"table": table, **asdict(result)} for table, result in sorted(swept.items())]
    show(rows, as_json=as_json, title="tables, dry run" if dry_run else "tables")


@app.command()
def drop(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    servers: Servers = SERVERS_DEFAULT,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Drop a table and all its rows."""
    with connected(servers, timeout_s) as store:
        if name not in store.tables():
            raise TableNotFoundError(name)
        if not yes:
            shards = "1 shard" if len(store.peers) == 1 else f"{len(store.peers)} shards"
            typer.confirm(f"Drop table {name!r} and all its rows on {shards}?", abort=True)
        store.drop_table(name)
    typer.echo(f"dropped {name}")


@app.command()
def describe(
    name: Name, servers: Servers = SERVERS_DEFAULT, as_json: AsJson = False, timeout_s: TimeoutS = 10.0
) -> None:
    """Everything about one table: its spec and its counters over all shards."""
    with connected(servers, timeout_s) as store:
        spec = store.tables().get(name)
        if spec is None:
            raise TableNotFoundError(name)
        stats = store.stats().tables[name]
    facts: dict[str, Any] = {**_flat(spec), **asdict(stats)}
    if as_json:
        show([facts], as_json=True, title=name)
    else:
        show([{"field": key, "value": str(value)} for key, value in facts.items()], as_json=False, title=name)


def _row(spec: TableSpec, stats: Any) -> dict[str, Any]:
    return {
        "table": spec.name,
        "dim": spec.dim,
        "optimizer": type(spec.optimizer).__name__,
        "lr": spec.optimizer.lr,
        "chunks": spec.num_chunks,
        "rows": stats.rows if stats else 0,
        "memory_bytes": stats.memory_bytes if stats else 0,
        "dropped_rows": stats.dropped_rows if stats else 0,
        "expired_rows": stats.expired_rows if stats else 0,
        "evicted_rows": stats.evicted_rows if stats else 0,
    }


def _limit(option: str, text: str | None, kind: Callable[[str], Any], present: Any) -> Any:
    if text is None:
        return present
    if text == "none":
        return None
    try:
        return kind(text)
    except ValueError as problem:
        raise InvalidArgumentError(option, f"must be a number, or none, not {text!r}") from problem


def _flat(spec: TableSpec) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for key, value in asdict(spec).items():
        if isinstance(value, dict):
            facts[key] = type(getattr(spec, key)).__name__
            facts.update({f"{key}.{name}": item for name, item in value.items()})
        else:
            facts[key] = value
    return facts
