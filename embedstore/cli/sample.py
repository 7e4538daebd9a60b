"""Asks running processes for their numbers, side by side, as ``shard lag`` and ``top`` need them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from google.protobuf.message import DecodeError

from embedstore import discovery, messages
from embedstore.credentials import Credentials
from embedstore.errors import EmbedstoreError, InvalidArgumentError, UnauthenticatedError
from embedstore.interface import StoreStats
from embedstore.peers import Peer, Questions, is_address, is_nowhere, parse_addresses
from embedstore.placement import NUM_SHARDS_MAX
from embedstore.status import Topology, topology_from_proto
from embedstore.v1 import admin_pb2

FOUND_MAX = 128
"""Followers that are asked because somebody told that they follow."""

_UNKNOWN = Topology(0, (), 0)
_STATS_REQUEST = admin_pb2.StatsRequest().SerializeToString()

Followers = Annotated[
    str,
    typer.Option(
        "--followers",
        envvar="EMBEDSTORE_FOLLOWERS",
        help="Followers to ask beside those that leaders name, and with the token: host:port,host:port.",
    ),
]


@dataclass(frozen=True)
class Member:
    """One process and what it said. ``role``: shard i/n, follower, standby i/n, fenced i/n (others have its place), or
    replaced i/n (they have, and it does not know yet). ``problem``: why there are no ``stats``, or who has its place.
    ``place``: that i and n; ``synced``: everything that its leaders have has been there once; ``own``: the address that
    it gives as its own. ``epoch``: of its topology record; None of a follower, which goes by none. ``named``: somebody
    gave its address, or a topology record has it; else only its leader says that it is there.
    """

    address: str
    role: str
    epoch: int | None
    stats: StoreStats | None
    problem: str = ""
    place: tuple[int, int] = (0, 1)
    synced: bool = True
    own: str = ""
    named: bool = True

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(table.rows for table in self.stats.tables.values()) if self.stats is not None else 0


@dataclass(frozen=True)
class Sample:
    """What all said when they were asked at ``at_s``, a monotonic time."""

    at_s: float
    members: tuple[Member, ...]

    @property
    def stats(self) -> list[StoreStats]:
        """Of those that have some."""
        return [member.stats for member in self.members if member.stats is not None]

    @property
    def standbys(self) -> set[str]:
        """Addresses of the standbys that what is durable waits for."""
        return {address for stats in self.stats for address in stats.standbys}

    def copied_share(self, member: Member) -> float | None:
        """How much of its first copy a follower or standby has, by the number of rows; None: not known, or over."""
        shards = [other for other in self.members if other.role.startswith("shard")]
        num_shards = len(shards)
        if member.synced or not shards or any(o.stats is None or o.place[1] != num_shards for o in shards):
            return None
        shard, parts = member.place if member.role.startswith("standby") else (0, 1)
        rows = sum(other.rows for other in shards if parts != num_shards or other.place[0] == shard)
        wanted = rows if parts in (1, num_shards) else rows / parts
        return min(member.rows / wanted, 1.0) if wanted else None

    def links(self) -> list[dict[str, Any]]:
        """Who follows whom, as leaders see it; one without calls has gone, and no lag is said of it."""
        return [
            {
                "leader": member.address,
                "follower": each.peer,
                "standby": each.standby,
                "calls": each.calls,
                "lag_s": each.lag_s if each.calls else None,
                "in_flight_bytes": each.in_flight_bytes,
                "sent_bytes": each.sent_bytes,
            }
            for member in self.members
            if member.stats is not None
            for each in member.stats.follower_states
        ]


def with_gone(links: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Links as people read them."""
    return [link if link["calls"] else link | {"lag_s": "gone"} for link in links]


def take(servers: str, followers: str, timeout_s: float) -> Sample:
    """Ask these and every shard and follower that they know of, all side by side, for ``timeout_s`` at most. Whoever
    does not answer is a member with a problem."""
    given = parse_addresses(servers)
    given += parse_addresses(followers) if followers else ()
    with _Look(timeout_s) as look:
        look.at(given)
        return look.sample(given)


class _Look:
    """Asks processes, and those that they name, as answers come in."""

    def __init__(self, timeout_s: float) -> None:
        self._at_s = time.monotonic()
        self._credentials = Credentials.from_environment()
        self._questions = Questions(timeout_s)
        self._connections = ExitStack()
        self._asked: set[str] = set()
        self._found: dict[str, None] = {}
        self._told: dict[str, admin_pb2.TopologyResponse] = {}
        self._stats: dict[str, StoreStats] = {}
        self._problems: dict[str, Exception] = {}
        self._newest = _UNKNOWN

    def __enter__(self) -> _Look:
        return self

    def __exit__(self, *error: object) -> None:
        self._connections.close()

    def at(self, addresses: Iterable[str], credentials: Credentials | None = None) -> None:
        """Ask those at these addresses; both questions at once, so that nobody waits for another's answer."""
        for address in set(addresses) - self._asked:
            self._asked.add(address)
            try:
                peer = self._connections.enter_context(closing(Peer(address, credentials or self._credentials)))
            except InvalidArgumentError as error:  # of what is needed to reach this one
                self._problems[address] = error
                continue
            self._questions.ask(peer, "Topology", discovery.TOPOLOGY_REQUEST)
            self._questions.ask(peer, "Stats", _STATS_REQUEST)

    def sample(self, given: Sequence[str]) -> Sample:
        """What was answered, when all have answered or the time is over."""
        for peer, method, outcome in self._questions.answers():
            try:
                if not isinstance(outcome, bytes):
                    self._problems[peer.address] = peer.explain(outcome)
                elif method == "Stats":
                    stats = messages.stats_from_proto(admin_pb2.StatsResponse.FromString(outcome))
                    self._stats[peer.address] = stats
                    self._find(stats)
                else:
                    self._hear(peer.address, admin_pb2.TopologyResponse.FromString(outcome))
            except DecodeError as error:
                self._problems[peer.address] = EmbedstoreError(f"{peer.address}: malformed answer: {error}")
        heard = [
            address for address in [*given, *self._told] if address in self._told and address not in self._found
        ]  # not as they came in
        told = [self._told[address] for address in heard]
        self._newest = max(
            map(_record, told), key=lambda record: (record.epoch, len(record.addresses)), default=_UNKNOWN
        )
        # A process may be known by the address that it was started with and by another that somebody typed.
        named: dict[str, str] = {}
        for address in dict.fromkeys([*self._newest.addresses, *given, *self._found]):
            own = self._told[address].address if address in self._told else ""
            own = "" if is_nowhere(own) else own  # which many may say of themselves
            named.setdefault(own or address, address)
        return Sample(self._at_s, tuple(self._member(address) for address in named.values()))

    def _hear(self, address: str, told: admin_pb2.TopologyResponse) -> None:
        self._told[address] = told
        if address in self._found:
            return
        record = _record(told)
        if record.epoch >= self._newest.epoch:
            self._newest = record
            self.at(record.addresses)

    def _find(self, stats: StoreStats) -> None:
        """Ask the followers that somebody has. They name themselves, so they get no token, and what they say counts
        only for themselves."""
        for follower in stats.follower_states:
            address = follower.peer
            if not follower.calls or not is_address(address) or is_nowhere(address) or address in self._asked:
                continue
            if len(self._found) < FOUND_MAX:
                self._found[address] = None
                self.at([address], replace(self._credentials, token_file=None))

    def _member(self, address: str) -> Member:
        told, stats = self._told.get(address), self._stats.get(address)
        named = address not in self._found
        problem = "" if stats is not None else str(self._problems.get(address, ""))
        if address in self._found and isinstance(self._problems.get(address), UnauthenticatedError):
            problem = f"{address}: gets the token when --followers names it"
        if told is None:
            return Member(address, "?", None, stats, problem, named=named)
        epoch, role = told.topology.epoch, "shard"
        here = {address, told.address} & set(self._newest.addresses)
        if told.standby:
            role = "standby"
        elif told.follower:
            role = "follower"
        elif told.fenced or (epoch < self._newest.epoch and not here):
            role, problem = "fenced" if told.fenced else "replaced", f"{address}: {self._replaced(told)}"
        place = told.shard, told.num_shards
        shown = role if role == "follower" else f"{role} {told.shard}/{told.num_shards}"
        synced = told.synced or not told.follower
        known = None if role == "follower" else epoch
        return Member(address, shown, known, stats, problem, place, synced, told.address, named)

    def _replaced(self, told: admin_pb2.TopologyResponse) -> str:
        """Who has the place of a process that others have taken it from."""
        record = self._newest
        if told.num_shards == record.num_shards == len(record.addresses):
            now = f"shard {told.shard} is {record.addresses[told.shard]} now"
        else:
            now = f"there are {record.num_shards} shards now: {', '.join(record.addresses)}"
        by = f"fenced by epoch {told.topology.epoch}" if told.fenced else f"does not know of epoch {record.epoch} yet"
        return f"{by}, {now}"


def _record(told: admin_pb2.TopologyResponse) -> Topology:
    """What an answer says of who the shards are; a follower's says nothing."""
    if told.follower and not told.standby:
        return _UNKNOWN
    record = topology_from_proto(told.topology)
    return record._replace(addresses=tuple(filter(is_address, record.addresses[:NUM_SHARDS_MAX])))
