"""Updates that come without an origin, carried by the client's own streams (:mod:`embedstore.client_streams`).

An update is split by shard and sent side by side; every part has a number of a stream towards its shard, and keeps it
however often it is repeated, also to whoever has taken that shard over. When the number of shards changes under way,
the streams end with the old shards: parts that these have refused are split anew, and a part that may or may not have
been carried out is reported as that. Usable from any thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from embedstore.batches import CheckedPush, Keys
from embedstore.client_streams import ClientStream
from embedstore.errors import LostUpdatesWarning, UnavailableError
from embedstore.interface import Origin
from embedstore.peers import Deadline
from embedstore.routes import Call, Reply, Route
from embedstore.session import Session, decoded

P = TypeVar("P", CheckedPush, Keys)

UNKNOWN = "did not answer before other shards took over: whether the update was carried out is unknown"


@dataclass(frozen=True)
class Update(Generic[P]):
    """How one kind of update is sent: ``encode(part, epoch, origin)`` makes a request, ``answer`` reads its answer."""

    method: str
    encode: Callable[[P, int, Origin], bytes]
    answer: Callable[[bytes], Any]


class _Outcome:
    """What became of an update so far."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.lost = 0
        self.errors: list[bytes | Exception] = []

    def answered(self, reply: Reply, answer: Any, stream: ClientStream) -> None:
        self.answers.append(answer)
        news = stream.applied(answer.lost_updates)
        self.lost += news
        if news:
            warnings.warn(LostUpdatesWarning(reply.address, news), stacklevel=5)


def send(session: Session, update: Update[P], whole: P) -> tuple[list[Any], int]:
    """Carry the update out at every shard that holds one of its ids; their answers, and how many updates were lost."""
    deadline = Deadline(session.peers.patience)
    outcome, waiting = _Outcome(), [whole]
    while waiting:
        waiting += _send_split(session, update, waiting.pop(), deadline, outcome)
    session.raise_worst(outcome.errors)
    return outcome.answers, outcome.lost


def _send_split(session: Session, update: Update[P], whole: P, deadline: Deadline, outcome: _Outcome) -> list[P]:
    """The same over the shards there are now; returns what must be split anew."""
    with session.peers.route() as route:
        streams, parts = route.streams, whole.split(len(route))
    if not parts:
        return []
    with streams.take(list(parts)) as taken:
        origins = {shard: taken[shard].origin() for shard in parts}

        def plan(route: Route) -> list[Call]:
            return [
                Call(shard, update.method, update.encode(part, route.epoch, origins[shard]))
                for shard, part in parts.items()
            ]

        replies = session.peers.ask(plan, deadline, streams)
        for reply in replies:
            shard = reply.call.shard
            if reply.moved and reply.doubtful:
                outcome.errors.append(UnavailableError(reply.address, UNKNOWN))
            elif isinstance(reply.outcome, bytes):
                outcome.answered(reply, decoded(reply, update.answer), taken[shard])
            elif not reply.moved:
                outcome.errors.append(reply.outcome)
    return [parts[reply.call.shard] for reply in replies if reply.moved and not reply.doubtful] if replies else [whole]
