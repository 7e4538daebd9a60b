"""The ``embedstore`` command: run shards and followers, look after tables.

``embedstore serve`` is a shard or a follower; ``embedstore table`` and ``embedstore shard`` talk to running ones,
``embedstore checkpoint`` looks after what they keep on disk, ``embedstore token`` lets somebody in, ``embedstore top``
watches. Output is for people, or JSON lines with ``--json``. Any refusal is one line on stderr and exit code 1.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated

import typer

# Errors say what gRPC's own log would say again, in its words. It reads this when it is imported: below.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from embedstore.cli import checkpoint, doctor, serve, shard, table, token, top

app = typer.Typer(
    name="embedstore",
    help="A collision-less embedding store that learns from a live stream.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # which joins the lines of a paragraph
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"embedstore {version('embedstore')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("serve")(serve.serve)
app.command("token")(token.token)
app.command("top")(top.top)
app.add_typer(table.app, name="table")
app.add_typer(shard.app, name="shard")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(doctor.app, name="doctor")


def main() -> None:
    """Entry point of the ``embedstore`` command."""
    app()
