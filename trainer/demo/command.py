"""``embedtrain demo``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from trainer.demo.processes import DemoError
from trainer.demo.run import DemoOptions, run
from trainer.demo.view import make_view, summary_table

INTERRUPTED = 130

app = typer.Typer(rich_markup_mode="markdown", add_completion=False)


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=5.0, max=3600.0, help="How long events stream in.")] = 60.0,
    rate: Annotated[float, typer.Option(min=10.0, max=20_000.0, help="Events a second.")] = 1000.0,
    kafka: Annotated[bool, typer.Option("--kafka", help="Through a real Apache Kafka broker.")] = False,
    kill_shard_at: Annotated[
        float | None, typer.Option(min=0.0, help="SIGKILL a shard so many seconds into the stream.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where report, summary, logs and data go.")] = Path("build/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic world.")] = 1,
) -> None:
    """Two shards, a serving follower and a trainer learn from a live stream on this machine, for about a minute."""
    console = Console()
    asked: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        # An exception can get lost, in a destructor or a callback of a library: so it is remembered, too.
        asked.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    options = DemoOptions(out.resolve(), seconds, rate, seed, kafka, kill_shard_at, lambda: bool(asked))
    try:
        with make_view(console) as view:
            result = run(options, view)
    except KeyboardInterrupt:
        console.print("stopped; every process of the demo has ended")
        sys.exit(INTERRUPTED)
    except DemoError as error:
        sys.exit(f"embedtrain demo: {error}")
    console.print(summary_table(result))
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
