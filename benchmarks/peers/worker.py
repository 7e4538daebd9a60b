"""The process of one peer: ``python -m benchmarks.peers.worker PEER TASK SETTINGS``, run by its own environment.

It prints a line of JSON when it is ready, then one with the figures for each line that names a contender and a round.
Whatever the libraries print goes to standard error. It ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from benchmarks.harness import Figures, Settings
from benchmarks.reference import keep_memory

Runs = Mapping[str, Callable[[int], Figures]]


def main() -> None:
    peer, task, told = sys.argv[1:4]
    given = json.loads(told)
    directories = {name: Path(given[name]) for name in ("work_dir", "peers_dir")}
    settings = Settings(**{**given, **directories})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    keep_memory()
    runs: Runs = import_module(f"benchmarks.peers.{peer}").prepare(task, settings)
    print(json.dumps(list(runs)), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(runs[asked["contender"]](asked["round"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
