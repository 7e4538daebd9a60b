"""``embedstore doctor``: looks for what should not be."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from embedstore.cli.output import SERVERS_DEFAULT, AsJson, Servers, TimeoutS, connected, one_line_errors, show
from embedstore.parity import compare

NAMED_MAX = 8
app = typer.Typer(help="Look for what should not be.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def parity(
    follower: Annotated[str, typer.Option(help="host:port of the follower to compare with its leaders.")],
    servers: Servers = SERVERS_DEFAULT,
    table: Annotated[str | None, typer.Option(help="One table; all of the follower's without.")] = None,
    keys: Annotated[int, typer.Option(help="How many random rows of each table.")] = 1000,
    wait_s: Annotated[float, typer.Option("--wait-s", help="How long a row may differ before it counts.")] = 5.0,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Compare random rows of a follower with its leaders': equal to the last bit, or exactly what packing gives.

    Exit code 1 when a row differs for longer than --wait-s. Rows that never stood still are counted as moving.
    """
    with connected(servers, timeout_s) as leaders, connected(follower, timeout_s) as there, one_line_errors():
        names = sorted(there.tables()) if table is None else [table]
        found = [compare(leaders, there, name, num_rows=keys, timeout_s=wait_s) for name in names]
    rows = [
        asdict(each) | {"different": len(each.different), "ids": list(each.different[:NAMED_MAX])} for each in found
    ]
    show(rows, as_json=as_json, title="parity")
    if any(each.different for each in found):
        raise typer.Exit(1)
