"""``embedstore doctor``: looks for what should not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from embedstore.cli.output import SERVERS_DEFAULT, AsJson, Servers, TimeoutS, connected, one_line_errors, show
from embedstore.parity import DenseParity, Parity, compare, compare_dense, dense_sets_of_both, tables_of_both

NAMED_MAX = 8
app = typer.Typer(help="Look for what should not be.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def parity(
    follower: Annotated[str, typer.Option(help="host:port of the follower to compare with its leaders.")],
    servers: Servers = SERVERS_DEFAULT,
    table: Annotated[str | None, typer.Option(help="One table; everything of both sides without.")] = None,
    keys: Annotated[int, typer.Option(help="How many random rows of each table, from each side.")] = 1000,
    wait_s: Annotated[float, typer.Option("--wait-s", help="How long something may differ before it counts.")] = 5.0,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Compare a follower with its leaders: which tables there are, random rows of both sides, the dense sets.

    Rows are equal to the last bit, or exactly what packing gives. Exit code 1 when something differs for longer than
    --wait-s: a row, a table or dense set that one side lacks. Rows that never stood still are counted as moving.
    The last line is the verdict: equal, or different with what differs.
    """
    with connected(servers, timeout_s) as leaders, connected(follower, timeout_s) as there, one_line_errors():
        names = tables_of_both(leaders, there) if table is None else [table]
        found = [compare(leaders, there, name, num_rows=keys, timeout_s=wait_s) for name in names]
        sets = dense_sets_of_both(leaders, there) if table is None else []
        dense = [compare_dense(leaders, there, name, timeout_s=wait_s) for name in sets]
    rows = [_row(each, as_json=as_json) for each in found]
    for shown, title in ((rows, "tables"), ([asdict(each) for each in dense], "dense sets")):
        if shown or not as_json:
            show(shown, as_json=as_json, title=title)
    if not as_json:
        typer.echo(verdict(found, dense))
    if not all(each.holds for each in found) or not all(each.holds for each in dense):
        raise typer.Exit(1)


def _row(found: Parity, *, as_json: bool) -> dict[str, Any]:
    row = asdict(found) | {"different": len(found.different)}
    return row | {"ids": list(found.different[:NAMED_MAX])} if as_json else row


def verdict(found: Sequence[Parity], dense: Sequence[DenseParity]) -> str:
    """What all of it comes to, in one line."""
    said = [f"{each.table}: {each.problem or _ids(each.different)}" for each in found if not each.holds]
    said += [f"{each.dense_set}: {each.problem}" for each in dense if not each.holds]
    if said:
        return f"different: {'; '.join(said)}"
    moving = sum(each.moving for each in found) + sum(each.moving for each in dense)
    return f"equal, but for {moving:,} rows and dense sets that never stood still" if moving else "equal"


def _ids(different: Sequence[int]) -> str:
    named = ", ".join(map(str, different[:NAMED_MAX]))
    return f"{len(different):,} rows, ids {named}{', ...' if len(different) > NAMED_MAX else ''}"
