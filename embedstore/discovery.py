"""Who the shards are: what members answer when they are asked for their topology record.

A record counts when it is *complete*, that is, names every shard's address; of several the one with the highest epoch.
Followers are asked like any other member, but what they say of themselves makes no record; a standby says what it knows
of those that it follows. Usable from any thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError

from embedstore.credentials import Credentials
from embedstore.errors import EmbedstoreError, InvalidArgumentError, UnavailableError
from embedstore.peers import Deadline, Patience, Peer, Questions, parse_addresses
from embedstore.placement import NUM_SHARDS_MAX
from embedstore.status import Topology, may_come_again, topology_from_proto
from embedstore.v1 import admin_pb2

EPOCH_MAX = (1 << 63) - 1
TOPOLOGY_REQUEST = admin_pb2.TopologyRequest().SerializeToString()
log = logging.getLogger(__name__)


class Answers(NamedTuple):
    """What members said by their addresses; who could not be reached; and who answered something else."""

    found: dict[str, admin_pb2.TopologyResponse]
    silent: dict[str, Exception]
    failed: dict[str, Exception]

    def of(self, address: str) -> admin_pb2.TopologyResponse:
        """What this one said; raises why it did not."""
        if address in self.found:
            return self.found[address]
        raise (self.silent | self.failed)[address]


def is_complete(record: Topology) -> bool:
    """Whether the record names every shard's address, in a form that can be."""
    if not 1 <= record.epoch <= EPOCH_MAX or record.num_shards < 1 or len(record.addresses) != record.num_shards:
        return False
    try:
        return parse_addresses(record.addresses) == record.addresses
    except InvalidArgumentError:
        return False


def newest(answers: Mapping[str, admin_pb2.TopologyResponse]) -> Topology | None:
    """The complete record with the highest epoch."""
    spoken = [answer for answer in answers.values() if answer.standby or not answer.follower]
    records = [topology_from_proto(answer.topology) for answer in spoken]
    return max(filter(is_complete, records), key=lambda record: record.epoch, default=None)


def ask(peers: Mapping[str, Peer], timeout_s: float) -> Answers:
    """Ask these members side by side. :class:`ClosedError` when a channel was closed meanwhile."""
    questions = Questions(timeout_s)
    for peer in peers.values():
        questions.ask(peer, "Topology", TOPOLOGY_REQUEST)
    outcomes = {answer.peer: answer.outcome for answer in questions.answers()}
    answers = Answers({}, {}, {})
    for address, peer in peers.items():
        outcome = outcomes[peer]
        if isinstance(outcome, bytes):
            try:
                answers.found[address] = admin_pb2.TopologyResponse.FromString(outcome)
            except DecodeError as error:
                answers.failed[address] = EmbedstoreError(f"{address}: malformed answer: {error}")
        else:
            silent = isinstance(outcome, grpc.RpcError) and may_come_again(outcome)
            (answers.silent if silent else answers.failed)[address] = peer.explain(outcome)
    return answers


def ask_at(addresses: Iterable[str], timeout_s: float, credentials: Credentials) -> Answers:
    """Ask those at these addresses, over connections of their own."""
    with ExitStack() as stack:
        peers = {address: stack.enter_context(closing(Peer(address, credentials))) for address in addresses}
        return ask(peers, timeout_s)


def first_record(peers: Mapping[str, Peer], patience: Patience) -> Topology:
    """The record to begin with, from members that may still be starting.

    Any one that knows every address is enough. When none does (shards started without peers), these must be all
    shards, in any order: each is asked which shard it is.
    """
    found: dict[str, admin_pb2.TopologyResponse] = {}
    deadline, never = Deadline(patience), threading.Event()
    while True:
        waiting = {address: peer for address, peer in peers.items() if address not in found}
        for peer in waiting.values():
            peer.renew()
        answers = ask(waiting, patience.timeout_s)
        for address, answer in answers.found.items():
            if answer.standby and not is_complete(topology_from_proto(answer.topology)):
                answers.silent[address] = UnavailableError(address, "is a standby that does not know its leaders yet")
            else:
                found[address] = answer
        record = newest(found)
        if record is not None:
            return record
        if answers.failed:
            raise next(iter(answers.failed.values()))
        if not answers.silent:
            return _assembled(found)
        silent = next(iter(answers.silent.values()))
        if not deadline.pause(never, silent):
            raise silent


def _assembled(found: Mapping[str, admin_pb2.TopologyResponse]) -> Topology:
    """The record of members of which none knows the others; beside a shard, followers are no shards."""
    shards = {address: answer for address, answer in found.items() if not answer.follower} or dict(found)
    num_shards = next(iter(shards.values())).topology.num_shards
    by_shard = {answer.shard: address for address, answer in shards.items()}
    for address, answer in shards.items():
        if not 1 <= answer.topology.num_shards <= NUM_SHARDS_MAX:
            raise EmbedstoreError(f"{address}: malformed answer: one of {answer.topology.num_shards} shards")
        if answer.topology.num_shards != num_shards:
            raise InvalidArgumentError("addresses", f"{address} is one of {answer.topology.num_shards} shards")
    for address, answer in shards.items():
        if by_shard[answer.shard] != address:
            raise InvalidArgumentError("addresses", f"{address} and {by_shard[answer.shard]} are both {answer.shard}")
    missing = sorted(set(range(num_shards)) - set(by_shard))
    if missing:
        raise InvalidArgumentError("addresses", f"shard {missing[0]} of {num_shards} is not among {list(shards)}")
    epoch = max(answer.topology.epoch for answer in shards.values())
    return Topology(epoch, tuple(by_shard[shard] for shard in range(num_shards)), num_shards)
