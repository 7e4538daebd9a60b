"""Send every RPC broken, nonsensical and slightly changed messages, and look at what becomes of the server.

``fuzz.py --messages 100000 --seed 1`` prints one table. Each message must be answered, or refused with the right
status: one of the server's own errors, never INTERNAL, and where an argument is to blame it is named. A refused message
changes nothing, nor does one of an RPC that only reads; and the server goes on. The messages of an RPC depend on the
seed and its name alone, so ``--rpc Push --seed 1`` fails again as it did.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import math
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fuzz_servers import (
    LocalServer,
    WireServer,
    all_rpcs,
)
from fuzzer import Errors, Fuzzer, Note, Tally

ROLES = {"leader": 0.9, "fenced": 0.05, "follower": 0.05}
SILENT_S = 60.0
NOTE_BYTES = 16 << 20
EMPTY = '""'
_NOTE = struct.Struct("<QQ")


def run(
    *, messages: int, wire_messages: int, seed: int, rpcs: Sequence[str], note: Note, directory: Path
) -> Iterator[Tally]:
    """Fuzz these RPCs (none: all) in this process, then over a connection."""
    chosen = [rpc for rpc in all_rpcs() if not rpcs or rpc.name in rpcs]
    with Errors() as errors:
        servers = {role: LocalServer(role) for role in ROLES}
        for rpc in chosen:
            total = Tally(rpc.name, "local")
            for role, share in ROLES.items():
                fuzzer = Fuzzer(rpc, servers[role], seed, "local", note, errors)
                total.add(fuzzer.run(math.ceil(messages * share)))
            yield total
        with contextlib.closing(WireServer(directory)) as server:
            for rpc in chosen if wire_messages else []:
                yield Fuzzer(rpc, server, seed, "wire", note, errors).run(wire_messages)


class Notebook:
    """A file in which another process can read what this one is at."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(NOTE_BYTES)
            self._map = mmap.mmap(file.fileno(), NOTE_BYTES)
        self._calls = 0

    def write(self, label: str, messages: Sequence[bytes]) -> None:
        """Before each call."""
        self._calls += 1
        text = f"{label}: {' '.join(message.hex() or EMPTY for message in messages)}".encode()[
            : NOTE_BYTES - _NOTE.size
        ]
        _NOTE.pack_into(self._map, 0, self._calls, len(text))
        self._map[_NOTE.size : _NOTE.size + len(text)] = text

    @staticmethod
    def read(path: Path) -> tuple[int, str]:
        """How many calls, and the last one."""
        data = path.read_bytes()
        if len(data) < _NOTE.size:
            return 0, ""
        calls, length = _NOTE.unpack_from(data)
        return calls, data[_NOTE.size : _NOTE.size + length].decode()


def work(options: argparse.Namespace) -> int:
    """What the child does."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    note = Notebook(options.worker)
    started_s, failed, sent = time.perf_counter(), False, 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        for tally in run(
            messages=options.messages,
            wire_messages=options.wire_messages,
            seed=options.seed,
            rpcs=options.rpc,
            note=note.write,
            directory=Path(directory),
        ):
            print("\n".join([tally.line(), *tally.problems]), flush=True)
            failed |= bool(tally.problems)
            sent += tally.messages
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{sent:,} messages, {time.perf_counter() - started_s:.0f} s, at most {peak_mib} MiB, seed {options.seed}")
    return 1 if failed else 0


def watch(command: Sequence[str], notes: Path) -> int:
    """Run the child; tell what it was at when it dies or gets stuck."""
    child = subprocess.Popen([*command, "--worker", str(notes)])
    calls, silent_since_s = 0, time.monotonic()
    try:
        while True:
            try:
                status = child.wait(1.0)
            except subprocess.TimeoutExpired:
                now, last = Notebook.read(notes)
                if now != calls:
                    calls, silent_since_s = now, time.monotonic()
                elif time.monotonic() - silent_since_s > SILENT_S:
                    print(f"no answer for {SILENT_S:g} s: {last}", file=sys.stderr)
                    child.send_signal(signal.SIGUSR1)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(2.0)
                    return 1
                continue
            if status < 0:
                print(f"killed by signal {-status}: {Notebook.read(notes)[1]}", file=sys.stderr)
            return abs(status)
    finally:
        child.kill()
        child.wait()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=100_000, help="to each RPC (default %(default)s)")
    parser.add_argument("--wire-messages", type=int, default=2000, help="and over gRPC (default %(default)s)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--rpc", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        return work(options)
    print(f"seed {options.seed}", flush=True)
    given = ["--messages", options.messages, "--wire-messages", options.wire_messages, "--seed", options.seed]
    given += [text for rpc in options.rpc for text in ("--rpc", rpc)]
    with tempfile.NamedTemporaryFile(prefix="fuzz-") as notes:
        return watch([sys.executable, __file__, *map(str, given)], Path(notes.name))


if __name__ == "__main__":
    sys.exit(main())
