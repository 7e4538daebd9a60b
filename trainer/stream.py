"""``embedtrain stream``: learn from a stream while it comes in."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedstore.errors import (
    InvalidArgumentError,
    StaleGenerationError,
    TableExistsError,
    TableNotFoundError,
    UnknownStreamError,
)

if TYPE_CHECKING:
    from embedstore.interface import Store
    from trainer.config import Settings
    from trainer.online import Trainer

app = typer.Typer(rich_markup_mode="markdown", add_completion=False)
REMOTE = "grpc://"
LOST = "did a shard come back without its data? Started again, the trainer makes what is missing and reads on"


@app.command()
def stream(
    events: Annotated[
        str,
        typer.Option(
            help=".parquet, .csv or .jsonl file, kafka://HOST:PORT/TOPIC or synthetic://?seed=1&events=100000"
        ),
    ],
    store: Annotated[str, typer.Option(help="directory of an embedded store, or grpc://HOST:PORT,HOST:PORT")],
    config: Annotated[Path | None, typer.Option(help="settings, TOML; see docs/trainer.md")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    score_from: Annotated[
        str | None, typer.Option(help="event time of the first scored event, ISO 8601; UTC if it has no zone")
    ] = None,
    metrics: Annotated[Path | None, typer.Option(help="append a JSON line a second here")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="host:port where Prometheus finds the trainer")] = None,
    summary: Annotated[Path | None, typer.Option(help="write the final numbers here, JSON")] = None,
    state: Annotated[Path | None, typer.Option(help="the trainer's own directory; see above")] = None,
    max_events: Annotated[int | None, typer.Option(min=1, help="stop after so many events")] = None,
    group: Annotated[str, typer.Option(help="Kafka group that offsets are committed for")] = "embedtrain",
    passes: Annotated[int, typer.Option(min=1, help="how often a file is read over")] = 1,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="go on although the log has lost events or was replaced")
    ] = False,
) -> None:
    """Predict each event, score the prediction, learn from it; push rows and publish weights as it goes.

    Without --state, an embedded store's trainer keeps its state in DIRECTORY/trainer, a remote store's under
    $XDG_STATE_HOME/embedtrain. SIGINT and SIGTERM end the run after the batch at hand, with a cut.
    """
    from trainer.config import load_settings
    from trainer.exposition import Exposition
    from trainer.metrics import write_summary
    from trainer.online import Trainer
    from trainer.sources import open_source

    settings = load_settings(config)
    score_from_ms = _parse_time(score_from)
    _check_device(device)
    _check_output("metrics", metrics)
    _check_output("summary", summary)
    logging.basicConfig(level=logging.INFO, format="embedtrain: %(message)s", stream=sys.stderr)
    logging.getLogger("kafka").setLevel(logging.WARNING)
    with ExitStack() as stack:
        source = open_source(events, passes=passes, group=group)
        stack.callback(source.close)
        opened = _open_store(store, settings)
        stack.callback(opened.close)
        exposition = Exposition()
        on_report = stack.enter_context(_reporter(metrics, exposition.update))
        trainer = Trainer(
            settings,
            opened,
            source,
            state_dir=state or _default_state_dir(store, events),
            durable_store=not store.startswith(REMOTE),
            device=device,
            score_from_ms=score_from_ms,
            accept_loss=accept_loss,
            on_report=on_report,
        )
        stack.callback(trainer.close)
        if metrics_listen is not None:
            stack.enter_context(exposition.served(metrics_listen, trainer.event_to_trained))
        try:
            with _stopped_by_signals(trainer):
                result = trainer.run(max_events)
        except StaleGenerationError as problem:
            sys.exit(f"embedtrain: replaced by a newer trainer of the same stream ({problem})")
        except (TableNotFoundError, UnknownStreamError) as problem:
            sys.exit(f"embedtrain: {problem}: {LOST}")
        result |= {"device": device, "rows": opened.stats().tables[settings.tables.items].rows}
    if summary is not None:
        write_summary(summary, result)
    _print_result(result)


def _open_store(where: str, settings: Settings) -> Store:
    import embedstore

    if not where.startswith(REMOTE):
        if "://" in where:
            raise InvalidArgumentError("store", f"{where!r} is neither a path nor {REMOTE}HOST:PORT[,HOST:PORT]")
        try:
            return embedstore.open(where, tables=settings.table_specs())
        except TableExistsError as problem:
            raise InvalidArgumentError("store", f"{where}: {problem} as [model] and [tables] ask for") from problem
    store: Store = embedstore.connect(where.removeprefix(REMOTE))
    known = store.tables()
    for spec in settings.table_specs():
        if known.get(spec.name, spec).dim != spec.dim:
            store.close()
            raise InvalidArgumentError("model.dim", f"table {spec.name!r} has {known[spec.name].dim}, not {spec.dim}")
        if known.get(spec.name, spec).on_miss != spec.on_miss:
            store.close()
            raise InvalidArgumentError("store", f"table {spec.name!r} must have on_miss {spec.on_miss!r}")
        # Also what is known: a shard that came back with an empty disk has no tables.
        store.create_table(known.get(spec.name, spec))
    return store


def _default_state_dir(store: str, events: str) -> Path:
    if not store.startswith(REMOTE):
        return Path(store) / "trainer"
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    digest = hashlib.blake2b(f"{store}\n{events}".encode(), digest_size=8).hexdigest()
    return Path(base) / "embedtrain" / digest


def _parse_time(text: str | None) -> int:
    if text is None:
        return 0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as problem:
        raise InvalidArgumentError("score-from", f"{text!r} is not an ISO 8601 time") from problem
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as problem:
        raise InvalidArgumentError("device", f"{device!r} is none that torch knows") from problem
    if kind not in ("cpu", "cuda"):
        raise InvalidArgumentError("device", f"must be cpu or cuda, not {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError("device", "torch finds no CUDA device here")


def _check_output(label: str, path: Path | None) -> None:
    """Refuse at the start what could not be written at the end of a long run."""
    if path is None:
        return
    if path.is_dir():
        raise InvalidArgumentError(label, f"{path} is a directory")
    if not path.absolute().parent.is_dir():
        raise InvalidArgumentError(label, f"the directory of {path} does not exist")


@contextmanager
def _stopped_by_signals(trainer: Trainer) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the trainer to stop; a second one of the same kind has its usual effect."""

    def ask(number: int, frame: object) -> None:
        signal.signal(number, previous[signal.Signals(number)])
        trainer.stop()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _reporter(path: Path | None, update: Callable[[dict[str, Any]], None]) -> Iterator[Any]:
    """A function that takes reports: to ``update``, to a JSONL file, and to a live table where standard error is a
    terminal."""
    from rich.console import Console
    from rich.live import Live

    from trainer.metrics import MetricsFile

    console = Console(stderr=True)
    with ExitStack() as stack:
        file = None if path is None else MetricsFile(path)
        if file is not None:
            stack.callback(file.close)
        live = stack.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal else None

        def take(report: dict[str, Any]) -> None:
            update(report)
            if file is not None:
                file.write(report)
            if live is not None:
                live.update(_panel(report), refresh=True)

        yield take


def _panel(report: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("", "window", "scored", title=f"{report['events']:,} events, {report['lag_records']:,} to come")
    table.add_row("HR@10", _number(report["window_hr_at_10"]), _number(report["hr_at_10"]))
    table.add_row("MRR@10", _number(report["window_mrr_at_10"]), _number(report["mrr_at_10"]))
    table.add_row("recall@10", _number(report["window_recall_at_10"]), _number(report["recall_at_10"]))
    table.add_row("tests", f"{report['window_tests']:,}", f"{report['tests']:,}")
    table.add_row("loss", _number(report["loss"]), "")
    table.add_row("events/s", f"{report['window_events_per_s']:,.0f}", f"{report['events_per_s']:,.0f}")
    table.add_row("items", f"{report['items']:,}", "")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print_result(result: dict[str, Any]) -> None:
    now = f", {result['events_per_s']:,.0f}/s"
    if result["run_events"] < result["events"]:
        now = f", {result['run_events']:,} of them now" + (now if result["run_events"] else "")
    typer.echo(
        f"{result['events']:,} events{now}; {result['tests']:,} tests, "
        f"HR@10 {_number(result['hr_at_10'])}, MRR@10 {_number(result['mrr_at_10'])}; {result['rows']:,} item rows"
    )
