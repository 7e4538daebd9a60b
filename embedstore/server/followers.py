"""Who follows a process, by name.

A follower names itself: the address at which others reach it, or its machine. So its numbers stay its own when it
connects again, and whoever asks finds it. A name becomes a label of metrics, so its characters and its length are
bounded, and so is how many names are remembered.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple
from urllib.parse import unquote

from embedstore.errors import InvalidArgumentError, LimitError
from embedstore.interface import FollowerState
from embedstore.peers import is_address, is_nowhere
from embedstore.server.doors import host_of
from embedstore.v1 import sync_pb2

NAMES_MAX = 64
"""Names that a process remembers; whoever comes then is one of ``OTHERS``."""

FORGET_MS = 600_000
"""How long one is remembered after it has gone."""

OTHERS = "others"
WANTED_MAX = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9_.:\[\]%@/+-]{1,255}")


def check_name(field: str, name: str) -> None:
    """Raise :class:`InvalidArgumentError` unless a follower can be called so."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = name[:64] if isinstance(name, str) else name
        raise InvalidArgumentError(field, f"must be 1-255 of a-z A-Z 0-9 and _ . : [ ] % @ / + -, not {shown!r}")


def own_name(address: str = "") -> str:
    """What a follower calls itself that others reach at ``address`` ("": at none); "" where that can be no name."""
    host, port = socket.gethostname(), address.rpartition(":")[2]
    name = host if not address else f"{host}:{port}" if is_nowhere(address) else address
    return name if _NAME.fullmatch(name) else ""


def check_wants(wants: sync_pb2.FollowWants) -> None:
    """Raise :class:`InvalidArgumentError` or :class:`LimitError` unless a follower can say this of itself."""
    for name in ("tables", "only_tables", "dense_checksums"):
        if len(getattr(wants, name)) > WANTED_MAX:
            raise LimitError(f"FollowWants.{name}", len(getattr(wants, name)), WANTED_MAX)
    if wants.name:
        check_name("FollowWants.name", wants.name)
    if wants.standby.address and not is_address(wants.standby.address):
        raise InvalidArgumentError("StandbyPlace.address", "must be host:port")


def name_of(wants: sync_pb2.FollowWants, peer: str) -> str:
    """What a follower is called: by itself, or else by where its connection comes from, whatever the port."""
    return wants.name or wants.standby.address or unquote(host_of(peer).partition(":")[2]) or peer


class Named(NamedTuple):
    """Whose calls and bytes are counted together."""

    name: str
    standby: bool


class _Known:
    calls = 0
    sent_bytes = 0
    sent_messages = 0
    lag_s = float("inf")
    gone_ms = 0


class Followers:
    """What is known of those who follow, and did so lately. For one thread at a time."""

    def __init__(self, monotonic_ms: Callable[[], int]) -> None:
        self._monotonic_ms = monotonic_ms
        self._known: dict[Named, _Known] = {}

    def came(self, name: str, *, standby: bool) -> Named:
        """A call began. Returns what it counts as."""
        self._forget()
        named = Named(name, standby)
        if named not in self._known and len(self._known) >= NAMES_MAX:
            named = Named(OTHERS, standby)
        self._known.setdefault(named, _Known()).calls += 1
        return named

    def went(self, named: Named, last: FollowerState) -> None:
        """A call has ended, and stood so."""
        known = self._known[named]
        known.calls -= 1
        known.sent_bytes += last.sent_bytes
        known.sent_messages += last.sent_messages
        known.lag_s, known.gone_ms = last.lag_s, self._monotonic_ms()

    def states(self, calls: Iterable[tuple[Named, FollowerState]]) -> tuple[FollowerState, ...]:
        """Everyone, of whom these are the calls that have come and not gone."""
        self._forget()
        present: dict[Named, list[FollowerState]] = {}
        for named, state in calls:
            present.setdefault(named, []).append(state)
        return tuple(self._state(named, known, present.get(named, [])) for named, known in self._known.items())

    def _state(self, named: Named, known: _Known, calls: list[FollowerState]) -> FollowerState:
        gone_s = (self._monotonic_ms() - known.gone_ms) / 1000
        return FollowerState(
            named.name,
            named.standby,
            lag_s=max((call.lag_s for call in calls), default=known.lag_s + gone_s),
            in_flight_bytes=sum(call.in_flight_bytes for call in calls),
            sent_bytes=known.sent_bytes + sum(call.sent_bytes for call in calls),
            sent_messages=known.sent_messages + sum(call.sent_messages for call in calls),
            calls=len(calls),
        )

    def _forget(self) -> None:
        before_ms = self._monotonic_ms() - FORGET_MS
        self._known = {named: known for named, known in self._known.items() if known.calls or known.gone_ms > before_ms}
