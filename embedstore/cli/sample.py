"""Asks running processes for their numbers, side by side, as ``shard lag`` and ``top`` need them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

import grpc
import typer

from embedstore import discovery, messages
from embedstore.credentials import Credentials
from embedstore.interface import StoreStats
from embedstore.peers import Peer, is_nowhere, parse_addresses
from embedstore.status import from_rpc_error
from embedstore.v1 import admin_pb2

Followers = Annotated[
    str, typer.Option("--followers", envvar="EMBEDSTORE_FOLLOWERS", help="Followers to ask, too: host:port,host:port.")
]


@dataclass(frozen=True)
class Member:
    """One process and what it said. ``role``: shard i/n, follower, standby i/n, or fenced i/n; ``problem``: why there
    are no ``stats``."""

    address: str
    role: str
    epoch: int
    stats: StoreStats | None
    problem: str = ""


@dataclass(frozen=True)
class Sample:
    """What all said at ``at_s``, a monotonic time."""

    at_s: float
    members: tuple[Member, ...]

    @property
    def stats(self) -> list[StoreStats]:
        """Of those that have some."""
        return [member.stats for member in self.members if member.stats is not None]


def take(servers: str, followers: str, timeout_s: float) -> Sample:
    """Ask these and every shard that they know of. Whoever does not answer is a member with a problem."""
    credentials = Credentials.from_environment()
    given = parse_addresses(servers)
    others = parse_addresses(followers) if followers else ()
    peers: dict[str, Peer] = {}
    with ExitStack() as stack:

        def reach(addresses: Iterable[str]) -> dict[str, Peer]:
            new = {address: Peer(address, credentials) for address in addresses if address not in peers}
            for peer in new.values():
                stack.callback(peer.close)
            peers.update(new)
            return new

        first = discovery.ask(reach([*given, *others]), timeout_s)
        records = [answer.topology for answer in first.found.values()]
        newest = max(records, key=lambda record: record.epoch, default=admin_pb2.TopologyRecord())
        more = discovery.ask(reach(newest.addresses), timeout_s)
        found = first.found | more.found
        problems = first.silent | first.failed | more.silent | more.failed
        # A process may be known by the address that it was started with and by another that somebody typed.
        named: dict[str, str] = {}
        for address in dict.fromkeys([*newest.addresses, *given, *others]):
            own = found[address].address if address in found else ""
            own = "" if is_nowhere(own) else own  # which many may say of themselves
            named.setdefault(own or address, address)
        members = tuple(
            _member(peers[each], found[each], timeout_s)
            if each in found
            else Member(each, "?", 0, None, str(problems[each]))
            for each in named.values()
        )
        return Sample(time.monotonic(), members)


def _member(peer: Peer, told: admin_pb2.TopologyResponse, timeout_s: float) -> Member:
    place = f"{told.shard}/{told.topology.num_shards}"
    role = "standby" if told.standby else "follower" if told.follower else "fenced" if told.fenced else "shard"
    role = role if role == "follower" else f"{role} {place}"
    try:
        answer = peer.unary("Stats")(admin_pb2.StatsRequest().SerializeToString(), timeout=timeout_s)
    except grpc.RpcError as error:
        return Member(peer.address, role, told.topology.epoch, None, str(from_rpc_error(error, peer.address)))
    stats = messages.stats_from_proto(admin_pb2.StatsResponse.FromString(answer))
    return Member(peer.address, role, told.topology.epoch, stats)
