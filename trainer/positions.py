"""Where everybody stands in the streams: the arithmetic of recovery, without any I/O.

Holders of state are the chunks of the store (their distinct watermarks), the trainer's own state (histories, catalog,
scores) and the dense weights. They are level when all have taken in the same part of every stream.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from embedstore.errors import StreamPositionError
from embedstore.interface import Origin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from embedstore.interface import StreamState

log = logging.getLogger("embedtrain")


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

    def lost(self, first: int) -> Iterator[Origin]:
        """What the log, which begins at ``first``, does not have any more: ranges without any event."""
        for begin, end in pairwise(mark for mark in self.marks if mark <= first):
            yield Origin(self.stream, begin, end)


def replays(
    states: Mapping[str, StreamState], own: Mapping[str, int], dense: Mapping[str, int], firsts: Mapping[str, int]
) -> list[Replay]:
    """What must be read again before all holders are level, one entry for each stream that is not, by name.

    ``firsts``: where each log begins; a replay that begins before that has a mark there.
    """
    plan = []
    for stream, first in sorted(firsts.items()):
        marks = {*states[stream].watermarks, states[stream].applied, own[stream], dense[stream]}
        if min(marks) < first:
            marks.add(first)
        if len(marks) > 1:
            plan.append(Replay(stream, tuple(sorted(marks))))
    return plan


def committable(cut: Mapping[str, int], states: Mapping[str, StreamState]) -> dict[str, int]:
    """Up to where the log is not needed any more: the cut and every shard have it on disk."""
    return {stream: min(position, states[stream].durable) for stream, position in cut.items() if stream in states}


def ahead(published: Mapping[str, int], cut: Mapping[str, int]) -> bool:
    """Whether the published dense weights stand further than the cut, and nowhere behind it."""
    return dict(published) != dict(cut) and all(published.get(stream, -1) >= end for stream, end in cut.items())


def check_forgotten(firsts: Mapping[str, int], known: Mapping[str, int], trained: Mapping[str, int]) -> None:
    """Raise when a shard of the store has forgotten a stream that the trainer goes on with, and the log cannot tell it
    all again. ``known``: what every shard knows; ``trained``: what the trainer's state and the dense set know."""
    for stream, first in sorted(firsts.items()):
        if first and stream in trained and stream not in known:
            raise StreamPositionError(
                stream, 0, f"a shard has forgotten it, and the log begins at {first}: [0, {first}) is gone"
            )


def check_log(
    plan: list[Replay], firsts: Mapping[str, int], ends: Mapping[str, int], *, accept_loss: bool = False
) -> None:
    """Raise unless the logs, from ``firsts`` to ``ends``, hold all of the plan; ``accept_loss``: what is gone from
    their beginnings is only told."""
    for replay in plan:
        first, end = firsts[replay.stream], ends[replay.stream]
        if replay.end > end:
            raise StreamPositionError(replay.stream, replay.end, f"the log ends at {end}")
        if replay.begin < first:
            problem = f"the log begins at {first}: [{replay.begin}, {first}) is gone"
            if not accept_loss:
                raise StreamPositionError(replay.stream, replay.begin, problem)
            log.warning("stream %r: %s; going on without it", replay.stream, problem)
