"""Who the leaders are: asks every known address for its topology record.

Given the address of one shard, all of them are found; given a follower's, that follower is the one leader (it holds
everything). The record with the highest epoch counts. In the first epoch, whose addresses somebody wrote down, a shard
that answers elsewhere than there counts more than the record; in a later one it was replaced. What is known stays known
while nobody answers. Belongs to one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from embedstore import discovery
from embedstore.credentials import Credentials
from embedstore.errors import InvalidArgumentError
from embedstore.peers import Peer
from embedstore.placement import NUM_SHARDS_MAX
from embedstore.status import Topology
from embedstore.v1 import admin_pb2

FIRST_EPOCH = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leaders:
    """``addresses`` of the shards that are known so far by number, of ``num_shards`` (0: not known yet)."""

    epoch: int = 0
    num_shards: int = 0
    addresses: Mapping[int, str] = field(default_factory=dict)
    replaced: Leaders | None = None
    """Those who served before and still answer, fenced."""

    @property
    def complete(self) -> bool:
        """Whether every shard's address is known."""
        return self.num_shards > 0 and len(self.addresses) == self.num_shards


class Members:
    """Keeps what is known of the leaders and asks again."""

    def __init__(self, addresses: Sequence[str], credentials: Credentials, timeout_s: float = 1.0) -> None:
        self._given = tuple(addresses)
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._peers: dict[str, Peer] = {}
        self._problems: dict[str, str] = {}
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
        replaced = choose(self.leaders.replaced or Leaders(), _as_they_were(answers))
        self.leaders = replace(choose(self.leaders, answers), replaced=replaced if replaced.num_shards else None)
        for address in [each for each in self._peers if each not in asked]:
            self._peers.pop(address).close()
        self._problems = {address: each for address, each in self._problems.items() if address in asked}
        return self.leaders

    def newest(self) -> Topology | None:
        """The complete record with the highest epoch that anyone at the given addresses goes by."""
        return discovery.newest(self._ask(self._given))

    def close(self) -> None:
        """Close all connections."""
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def _ask(self, addresses: Sequence[str]) -> dict[str, admin_pb2.TopologyResponse]:
        peers = {}
        for address in addresses:
            try:
                if address not in self._peers:
                    self._peers[address] = Peer(address, self._credentials)
                self._peers[address].renew()
            except InvalidArgumentError as error:  # which is as good as no answer
                self._note(address, error)
                continue
            peers[address] = self._peers[address]
        answers = discovery.ask(peers, self._timeout_s)
        for address in answers.found:
            self._problems.pop(address, None)
        for address, problem in answers.silent.items():
            self._note(address, problem, told=False)
        for address, problem in answers.failed.items():
            self._note(address, problem)
        return answers.found

    @property
    def problem(self) -> str:
        """Why somebody did not answer when last asked; "" when all did."""
        return next(iter(self._problems.values()), "")

    def _note(self, address: str, error: Exception, *, told: bool = True) -> None:
        problem = str(error)
        if told and self._problems.get(address) != problem:
            log.error("%s does not say who the shards are: %s", address, problem)
        self._problems[address] = problem


def _as_they_were(answers: Mapping[str, admin_pb2.TopologyResponse]) -> dict[str, admin_pb2.TopologyResponse]:
    """What fenced members would answer if nobody had replaced them."""
    return {
        address: admin_pb2.TopologyResponse(topology=answer.previous, shard=answer.shard)
        for address, answer in answers.items()
        if answer.fenced and answer.HasField("previous")
    }


def choose(known: Leaders, answers: Mapping[str, admin_pb2.TopologyResponse]) -> Leaders:
    """What is known after ``answers`` (by the address that gave them)."""
    shards = {address: each for address, each in answers.items() if not each.follower}
    shards = {address: each for address, each in shards.items() if 1 <= each.topology.num_shards <= NUM_SHARDS_MAX}
    if not shards:
        followers = [address for address, each in answers.items() if each.follower and not each.standby]
        if not followers or known.num_shards > 1 or known.addresses.get(0) in followers:
            return known
        return Leaders(answers[followers[0]].topology.epoch, 1, {0: followers[0]})
    record = max((each.topology for each in shards.values()), key=lambda topology: topology.epoch)
    if record.epoch < known.epoch:
        return known
    named = {shard: each for shard, each in enumerate(record.addresses[: record.num_shards]) if each}
    same = (record.epoch, record.num_shards) == (known.epoch, known.num_shards)
    before = known.addresses if same else {}
    there: dict[int, list[str]] = {}
    for address, each in shards.items():
        replaced = each.fenced or (record.epoch > FIRST_EPOCH and named.get(each.shard, address) != address)
        if each.topology.epoch == record.epoch and each.shard < record.num_shards and not replaced:
            there.setdefault(each.shard, []).append(address)
    addresses = {**named, **before}
    for shard, found in there.items():
        addresses[shard] = next((each for each in (named.get(shard), before.get(shard)) if each in found), found[0])
    if record.epoch > FIRST_EPOCH:
        addresses.update(named)
    return Leaders(record.epoch, record.num_shards, addresses)
