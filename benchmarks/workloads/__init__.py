"""The workloads by name. Each is a function from settings to lines; its docstring's first line is its description."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import Line, Settings
from benchmarks.workloads.checkpoint import checkpoint
from benchmarks.workloads.delta import delta
from benchmarks.workloads.insert import insert
from benchmarks.workloads.memory import memory
from benchmarks.workloads.pull import pull
from benchmarks.workloads.push import push
from benchmarks.workloads.remote import remote

Workload = Callable[[Settings], list[Line]]

WORKLOADS: dict[str, Workload] = {
    "pull": pull,
    "push": push,
    "insert": insert,
    "remote": remote,
    "memory": memory,
    "delta": delta,
    "checkpoint": checkpoint,
}


def description(name: str) -> str:
    """What a workload measures, in a line."""
    return (WORKLOADS[name].__doc__ or "").splitlines()[0]
