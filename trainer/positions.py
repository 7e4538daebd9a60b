"""Where everybody stands in the streams: the arithmetic of recovery, without any I/O.

Holders of state are the chunks of the store (their distinct watermarks), the trainer's own state (histories, catalog,
scores) and the dense weights. They are level when all have taken in the same part of every stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from embedstore.interface import StreamState


@dataclass(frozen=True)
class Replay:
    """One stream to be read again from the first to the last of ``marks``, in batches that cross none of them."""

    stream: str
    marks: tuple[int, ...]

    @property
    def begin(self) -> int:
        """Where the one who lacks most stands."""
        return self.marks[0]

    @property
    def end(self) -> int:
        """Where all will be level."""
        return self.marks[-1]

    def stop_after(self, position: int) -> int:
        """The next mark above ``position``."""
        return next(mark for mark in self.marks if mark > position)


def replays(
    states: Mapping[str, StreamState], own: Mapping[str, int], dense: Mapping[str, int], streams: Iterable[str]
) -> list[Replay]:
    """What must be read again before all holders are level, one entry for each stream that is not, by name."""
    plan = []
    for stream in sorted(streams):
        marks = {*states[stream].watermarks, states[stream].applied, own[stream], dense[stream]}
        if len(marks) > 1:
            plan.append(Replay(stream, tuple(sorted(marks))))
    return plan


def committable(cut: Mapping[str, int], states: Mapping[str, StreamState]) -> dict[str, int]:
    """Up to where the log is not needed any more: the cut and every shard have it on disk."""
    return {stream: min(position, states[stream].durable) for stream, position in cut.items() if stream in states}
