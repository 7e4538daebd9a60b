"""Who may follow at once: so many followers and so many standbys, three quarters of either from one host.

A standby has a place of its own, because durable waits for it. A caller that has not said yet what it is has none; of
those there are a few, and the oldest goes when there are too many. Belongs to whoever holds its owner's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from embedstore.errors import LimitError
from embedstore.server.doors import of_one_host

FOLLOWERS_MAX = 16
STANDBYS_MAX = 8
ASKED_MAX = 16
Cut = Callable[[], object]
Call = TypeVar("Call", bound=Hashable)


def follow_calls_max(followers_max: int) -> int:
    """How many calls there can be at once."""
    return followers_max + STANDBYS_MAX + ASKED_MAX


class Place(NamedTuple):
    """Where a caller is, what it is, and how to cut it off."""

    host: str
    standby: bool
    cut: Cut


class FollowPlaces(Generic[Call]):
    """See the module. ``taken``: by those who have said what they are."""

    def __init__(self, followers_max: int = FOLLOWERS_MAX) -> None:
        self._followers_max = followers_max
        self._asked: dict[Call, Cut] = {}
        self.taken: dict[Call, Place] = {}

    @property
    def calls(self) -> list[Call]:
        """All that there are."""
        return [*self._asked, *self.taken]

    def ask(self, call: Call, cut: Cut) -> Cut | None:
        """A call has begun. Returns how to cut another one off, whose place this one needs."""
        oldest = self._asked.pop(next(iter(self._asked))) if len(self._asked) >= ASKED_MAX else None
        self._asked[call] = cut
        return oldest

    def take(self, call: Call, host: str, *, standby: bool) -> bool:
        """It has said what it is. :class:`LimitError` without a place for it; False: it has gone."""
        cut = self._asked.pop(call, None)
        if cut is None:
            return False
        kind, limit = ("standbys", STANDBYS_MAX) if standby else ("followers", self._followers_max)
        hosts = [place.host for place in self.taken.values() if place.standby == standby]
        if len(hosts) >= limit:
            raise LimitError(kind, len(hosts) + 1, limit)
        if (count := hosts.count(host)) >= of_one_host(limit):
            raise LimitError(f"{kind} of one host", count + 1, of_one_host(limit))
        self.taken[call] = Place(host, standby, cut)
        return True

    def leave(self, call: Call) -> bool:
        """It has ended. Whether it had taken a place."""
        self._asked.pop(call, None)
        return self.taken.pop(call, None) is not None
