"""Asks running processes for their numbers, side by side, as ``shard lag`` and ``top`` need them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import grpc
import typer

from embedstore import messages
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
    with ExitStack() as stack:
        told = _topologies(stack, [*given, *others], credentials, timeout_s)
        newest = max(
            (answer.topology for answer in told.values() if isinstance(answer, admin_pb2.TopologyResponse)),
            key=lambda record: record.epoch,
            default=admin_pb2.TopologyRecord(),
        )
        unknown = [address for address in newest.addresses if address not in told]
        told |= _topologies(stack, unknown, credentials, timeout_s)
        # A process may be known by the address that it was started with and by another that somebody typed.
        named: dict[str, str] = {}
        for address in dict.fromkeys([*newest.addresses, *given, *others]):
            answer = told[address]
            own = answer.address if isinstance(answer, admin_pb2.TopologyResponse) else ""
            own = "" if is_nowhere(own) else own  # which many may say of themselves
            named.setdefault(own or address, address)
        members = tuple(_member(stack, each, told[each], credentials, timeout_s) for each in named.values())
        return Sample(time.monotonic(), members)


def _topologies(
    stack: ExitStack, addresses: Iterable[str], credentials: Credentials, timeout_s: float
) -> dict[str, admin_pb2.TopologyResponse | grpc.RpcError]:
    request = admin_pb2.TopologyRequest().SerializeToString()
    calls = {
        address: _unary(stack, address, credentials, "Topology").future(request, timeout=timeout_s)
        for address in addresses
    }
    answers: dict[str, admin_pb2.TopologyResponse | grpc.RpcError] = {}
    for address, call in calls.items():
        error = call.exception()
        assert error is None or isinstance(error, grpc.RpcError)
        answers[address] = error or admin_pb2.TopologyResponse.FromString(call.result())
    return answers


def _member(
    stack: ExitStack,
    address: str,
    told: admin_pb2.TopologyResponse | grpc.RpcError,
    credentials: Credentials,
    timeout_s: float,
) -> Member:
    if not isinstance(told, admin_pb2.TopologyResponse):
        return Member(address, "?", 0, None, str(from_rpc_error(told, address)))
    place = f"{told.shard}/{told.topology.num_shards}"
    role = "standby" if told.standby else "follower" if told.follower else "fenced" if told.fenced else "shard"
    role = role if role == "follower" else f"{role} {place}"
    try:
        answer = _unary(stack, address, credentials, "Stats")(
            admin_pb2.StatsRequest().SerializeToString(), timeout=timeout_s
        )
    except grpc.RpcError as error:
        return Member(address, role, told.topology.epoch, None, str(from_rpc_error(error, address)))
    stats = messages.stats_from_proto(admin_pb2.StatsResponse.FromString(answer))
    return Member(address, role, told.topology.epoch, stats)


def _unary(stack: ExitStack, address: str, credentials: Credentials, method: str) -> Any:
    peer = Peer(address, credentials)
    stack.callback(peer.close)
    return peer.unary(method)
