"""Who the leaders are: asks every known address for its topology record.

Given the address of one shard, all of them are found; given a follower's, that follower is the one leader (it holds
everything). The record with the highest epoch counts, and what answered at an address counts more than what a record
says about it. What is known stays known while nobody answers. Belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc

from embedstore import discovery
from embedstore.peers import CHANNEL_OPTIONS
from embedstore.status import Topology
from embedstore.v1 import admin_pb2, admin_pb2_grpc


@dataclass(frozen=True)
class Leaders:
    """``addresses`` of the shards that are known so far by number, of ``num_shards`` (0: not known yet)."""

    epoch: int = 0
    num_shards: int = 0
    addresses: Mapping[int, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every shard's address is known."""
        return self.num_shards > 0 and len(self.addresses) == self.num_shards


class Members:
    """Keeps what is known of the leaders and asks again."""

    def __init__(self, addresses: Sequence[str], timeout_s: float = 1.0) -> None:
        self._given = tuple(addresses)
        self._timeout_s = timeout_s
        self._channels: dict[str, grpc.Channel] = {}
        self.leaders = Leaders()

    def refresh(self) -> Leaders:
        """Ask everyone; returns what is known now."""
        asked: set[str] = set()
        answers: dict[str, admin_pb2.TopologyResponse] = {}
        waiting = [*self._given, *self.leaders.addresses.values()]
        while waiting := [address for address in dict.fromkeys(waiting) if address not in asked]:
            asked.update(waiting)
            found = self._ask(waiting)
            answers.update(found)
            shards = [answer for answer in found.values() if not answer.follower]
            waiting = [each for answer in shards for each in answer.topology.addresses if each]
        self.leaders = choose(self.leaders, answers)
        for address in [each for each in self._channels if each not in asked]:
            self._channels.pop(address).close()
        return self.leaders

    def newest(self) -> Topology | None:
        """The complete record with the highest epoch that anyone at the given addresses goes by."""
        return discovery.newest(self._ask(self._given))

    def close(self) -> None:
        """Close all connections."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def _ask(self, addresses: Sequence[str]) -> dict[str, admin_pb2.TopologyResponse]:
        calls = {}
        for address in addresses:
            if address not in self._channels:
                self._channels[address] = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
            stub = admin_pb2_grpc.AdminServiceStub(self._channels[address])
            calls[address] = stub.Topology.future(admin_pb2.TopologyRequest(), timeout=self._timeout_s)
        answers = {}
        for address, call in calls.items():
            if call.exception() is None:
                answers[address] = call.result()
        return answers


def choose(known: Leaders, answers: Mapping[str, admin_pb2.TopologyResponse]) -> Leaders:
    """What is known after ``answers`` (by the address that gave them)."""
    shards = {address: each for address, each in answers.items() if not each.follower and not each.fenced}
    if not shards:
        followers = [address for address, each in answers.items() if each.follower and not each.standby]
        if not followers or known.num_shards > 1 or known.addresses.get(0) in followers:
            return known
        return Leaders(answers[followers[0]].topology.epoch, 1, {0: followers[0]})
    record = max((each.topology for each in shards.values()), key=lambda topology: topology.epoch)
    if record.epoch < known.epoch or not record.num_shards:
        return known
    same = (record.epoch, record.num_shards) == (known.epoch, known.num_shards)
    addresses = dict(known.addresses) if same else {}
    addresses.update({shard: each for shard, each in enumerate(record.addresses) if each and shard not in addresses})
    direct = {each.shard: at for at, each in shards.items() if each.topology.epoch == record.epoch}
    for shard, address in direct.items():
        kept = addresses.get(shard)
        if kept not in shards or shards[kept].shard != shard:
            addresses[shard] = address
    return Leaders(record.epoch, record.num_shards, {k: v for k, v in addresses.items() if k < record.num_shards})
