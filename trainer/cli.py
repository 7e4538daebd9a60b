"""``embedtrain``: the trainer's commands. Each is imported only when it is called, so that none waits for another."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from embedstore.errors import EmbedstoreError, InvalidArgumentError

COMMANDS = {
    "demo": ("trainer.demo.command", "Watch shards, a follower and a trainer learn from a live stream."),
    "convert": ("trainer.convert", "Turn a data set into an event file."),
    "produce": ("trainer.produce", "Send an event file to a Kafka topic."),
    "stream": ("trainer.stream", "Learn from a stream while it comes in, and say how well."),
}
"""Command -> the module whose ``app`` runs it, and what the overview says about it."""

app = typer.Typer(
    help="Learn embeddings from a stream of activity.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"embedtrain {version('embedstore')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _runner(module: str) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        importlib.import_module(module).app(args=context.args, prog_name=f"embedtrain {context.info_name}")

    return run


for _name, (_module, _help) in COMMANDS.items():
    app.command(
        _name,
        help=_help,
        context_settings={
            "allow_extra_args": True,
            "allow_interspersed_args": False,
            "ignore_unknown_options": True,
            "help_option_names": [],
        },
    )(_runner(_module))


def main() -> None:
    """Run ``embedtrain``; a wrong argument or a failure is one line on stderr, not a traceback."""
    # Errors say what gRPC's own log would say again, in its words. It reads this when it is imported: by a command.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app(prog_name="embedtrain")
    except (InvalidArgumentError, EmbedstoreError) as error:
        sys.exit(f"embedtrain: {error}")
