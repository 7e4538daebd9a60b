"""``embedtrain convert``: foreign data sets -> event files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from embedstore.errors import InvalidArgumentError
from trainer import converters
from trainer.eventfiles import write_events, writer_of

app = typer.Typer(
    help="Turn a data set into an event file, sorted by event time.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)

YEAR_MS = 365 * 24 * 3600 * 1000
"""Seconds or minutes taken for milliseconds end before it."""

Inputs = Annotated[list[Path], typer.Argument(help="Input files, read one after another.", metavar="IN...")]
Out = Annotated[Path, typer.Option("--out", help="Event file to write: .jsonl, .csv or .parquet.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Write only the first N events in time order.")]


def _finish(converted: converters.Converted, inputs: list[Path], out: Path, limit: int | None) -> None:
    events, skipped = converted
    report = write_events(events, out, origin=str(inputs[0]), limit=limit, skipped=skipped)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{out}: {report}", markup=False)
    if report.last_ms is not None and report.last_ms < YEAR_MS:
        console.print("every event is in 1970: see --time-unit", markup=False)


@app.command()
def movielens(inputs: Inputs, out: Out, limit: Limit = None) -> None:
    """MovieLens ratings.csv; a rating of 3.5 or more is a "like", any other a "rate"."""
    writer_of(out)
    _finish(converters.read_movielens(inputs), inputs, out, limit)


@app.command()
def s3rec(inputs: Inputs, out: Out, limit: Limit = None) -> None:
    """S3-Rec sequence files; the times, which they lack, keep each user's order (day k for step k)."""
    writer_of(out)
    _finish(converters.read_s3rec(inputs), inputs, out, limit)


@app.command()
def globo(inputs: Inputs, out: Out, limit: Limit = None) -> None:
    """Globo.com news clicks in Parquet."""
    writer_of(out)
    _finish(converters.read_globo(inputs), inputs, out, limit)


@app.command()
def columns(
    inputs: Inputs,
    out: Out,
    mapping: Annotated[
        str,
        typer.Option(
            "--map",
            help="EVENT_NAME=COLUMN,...: user_id, item_id, event_time, action (or --action-value); if there are any, "
            "surface, session_id, request_id.",
        ),
    ],
    limit: Limit = None,
    time_unit: Annotated[str, typer.Option(help="Unit of event_time: s, ms, us, ns or iso.")] = "ms",
    action_value: Annotated[str | None, typer.Option(help="The action of every event, instead of a column.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="CSV delimiter; default a comma, for .tsv a tab.")] = None,
    header: Annotated[str | None, typer.Option(help="Column names, for a CSV without a header line.")] = None,
) -> None:
    """Any CSV, TSV, JSON-lines or Parquet files, by a column mapping."""
    writer_of(out)
    names = header.split(",") if header else None
    converted = converters.read_columns(
        inputs,
        parse_mapping(mapping),
        time_unit=time_unit,
        action_value=action_value,
        delimiter=delimiter.replace("\\t", "\t") if delimiter else None,
        header=names,
    )
    _finish(converted, inputs, out, limit)


def parse_mapping(text: str) -> dict[str, str]:
    """``a=b,c=d`` as a dict; :class:`InvalidArgumentError` naming the part that is not of this form."""
    mapping: dict[str, str] = {}
    for part in text.split(","):
        name, separator, column = part.partition("=")
        if not (name and separator and column) or name in mapping:
            raise InvalidArgumentError("map", f"{part!r} is not a new EVENT_NAME=COLUMN")
        mapping[name] = column
    return mapping
