"""How commands speak: tables for people, JSON lines for programs, one line for a refusal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from embedstore.cli.grid import Grid
from embedstore.client import RemoteStore, connect
from embedstore.errors import EmbedstoreError, InvalidArgumentError

Servers = Annotated[
    str,
    typer.Option(
        "--servers", "-s", envvar="EMBEDSTORE_SERVERS", help="Shards, host:port,host:port; any one is enough."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
TimeoutS = Annotated[float, typer.Option("--timeout-s", help="Give up on a silent shard after this long.")]
SERVERS_DEFAULT = "localhost:7600"
WIDTH_OF_A_FILE = 240


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the command with exit code 1 and one line on stderr when something is refused."""
    try:
        yield
    except (EmbedstoreError, InvalidArgumentError) as error:
        typer.echo(f"embedstore: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def connected(servers: str, timeout_s: float) -> Iterator[RemoteStore]:
    """A store on ``servers``, for one command."""
    with one_line_errors(), connect(servers, timeout_s=timeout_s, retry_s=timeout_s) as store:
        yield store


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool, title: str) -> None:
    """Print rows that share their keys."""
    if as_json:
        for row in rows:
            typer.echo(json_line(row))
        return
    width = None if sys.stdout.isatty() else WIDTH_OF_A_FILE
    Console(file=sys.stdout, width=width).print(grid(rows, title) if rows else f"no {title}")


def grid(rows: Sequence[Mapping[str, Any]], title: str) -> Grid:
    """These values as people read them."""
    numeric = frozenset(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    return Grid(title, [{name: _cell(value) for name, value in row.items()} for row in rows], numeric)


def json_line(value: Any) -> str:
    """As JSON, which has no infinities and no NaN: they are null."""
    return json.dumps(_finite(value), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
