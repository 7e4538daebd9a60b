"""``embedstore checkpoint``: have running shards write one; look at, verify, export and import directories."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from embedstore.cli.config import shard_of
from embedstore.cli.output import SERVERS_DEFAULT, AsJson, Servers, TimeoutS, connected, one_line_errors, show
from embedstore.export import export_store, import_store
from embedstore.recovery import SavedTable
from embedstore.snapshot import read_directory, verify
from embedstore.v1 import manifest_pb2

app = typer.Typer(help="Write, list, verify, export and import checkpoints.", no_args_is_help=True)
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A shard's data directory; the shard may be running.")]


@app.command()
def create(servers: Servers = SERVERS_DEFAULT, as_json: AsJson = False, timeout_s: TimeoutS = 10.0) -> None:
    """Have every shard write a checkpoint now, and wait for it."""
    with connected(servers, timeout_s) as store:
        store.stats()  # A checkpoint waits much longer for a shard that is away.
        result = store.checkpoint()
    row = {"chunks": result.chunks_written, "bytes": result.bytes_written, "seconds": result.seconds}
    show([row], as_json=as_json, title="checkpoint")


@app.command("list")
def list_checkpoints(directory: Directory, as_json: AsJson = False) -> None:
    """Which checkpoints a directory holds, newest last, and the tables of each."""
    with one_line_errors():
        store, contents = read_directory(directory)
        kept = {each.number: (each.taken_ms, list(each.tables)) for each in contents.kept}
        if contents.tables or store.checkpoint:
            kept[store.checkpoint] = (store.checkpoint_ms, contents.tables)
        shard = f"{store.shard}/{store.num_shards}"
        rows = [
            {"checkpoint": number, "shard": shard, "taken": _moment(taken_ms), **_row(message)}
            for number, (taken_ms, tables) in sorted(kept.items())
            for message in tables
        ]
    show(rows, as_json=as_json, title="checkpoints")


@app.command("verify")
def verify_directory(directory: Directory, as_json: AsJson = False) -> None:
    """Read every blob of every checkpoint and put all chunks together; exit code 1 when one is bad."""
    with one_line_errors():
        verified = verify(directory)
    for bad in verified.bad:
        show([asdict(bad)], as_json=True, title="") if as_json else typer.echo(
            f"{bad.file}, offset {bad.offset}: table {bad.table}, chunk {bad.chunk}: "
            f"{bad.problem.removeprefix(f'{bad.file}: ')}"
        )
    summary = {"blobs": verified.blobs, "bytes": verified.bytes, "bad": len(verified.bad)}
    show([summary], as_json=as_json, title=str(directory))
    if verified.bad:
        raise typer.Exit(1)


@app.command()
def export(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Data directories of all shards.")],
    to: Annotated[Path, typer.Option("--to", help="The directory to make; it must not be there.")],
    checkpoint: Annotated[
        list[int] | None, typer.Option(help="A kept checkpoint instead of the last: once for each directory.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the checkpoints of all shards to one plain directory."""
    with one_line_errors():
        moved = export_store(directories, to, checkpoint or [])
    show([asdict(moved)], as_json=as_json, title=f"exported to {to}")


@app.command("import")
def import_directory(
    source: Annotated[Path, typer.Argument(metavar="EXPORT", help="A directory that export made.")],
    data: Annotated[Path, typer.Option(help="The data directory to make; it must be new, or empty.")],
    shard: Annotated[str, typer.Option(help='Which shard it is for: "i/m".')] = "0/1",
    as_json: AsJson = False,
) -> None:
    """Make the data directory of one shard, of any number of shards, from an export."""
    with one_line_errors():
        moved = import_store(source, data, *shard_of(shard))
    show([asdict(moved)], as_json=as_json, title=f"imported to {data}")


def _row(message: manifest_pb2.TableManifest) -> dict[str, Any]:
    saved = SavedTable.read(message)
    blobs = [blob for chunk in saved.chunks for blob in saved.blobs(chunk)]
    return {
        "table": saved.spec.name,
        "chunks": len(saved.chunks),
        "blobs": len(blobs),
        "bytes": sum(blob.length for blob in blobs),
        "segments": len(saved.segments()),
    }


def _moment(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000)) if ms else "never"
