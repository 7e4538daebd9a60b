"""Standbys take over, by the commands that an operator gives, while things die: one shard, or all of them at once."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import grpc
import numpy as np
from fault_cluster import Cluster
from fault_members import Member, Server

from embedstore.v1 import admin_pb2, admin_pb2_grpc

STRIKES_WITHIN_S = 3.0
TIMEOUT_S = 15
FORCE_TIMEOUT_S = 5
NUM_SHARDS = (2, 3)
"""How many there are, in turn."""


class Takeovers:
    """Faults of :class:`~chaos.Chaos`. Each returns when the takeover is complete, or taken back, and those who were
    replaced know it, have been wiped, and stand by for those who replaced them."""

    def __init__(self, cluster: Cluster, rng: np.random.Generator) -> None:
        self._cluster = cluster
        self._rng = rng

    def promote(self) -> None:
        """A standby takes over from a leader that is there, while something dies."""
        number = int(self._rng.integers(len(self._cluster.shards)))
        leader, standby = self._cluster.shards[number], self._cluster.standbys[number]
        command = ["promote", standby.address]
        if not self._command(command, [leader, standby, self._cluster.trainer, self._cluster.follower]):
            if self._rng.random() < 0.3 and self._is_fenced(leader):
                self._take_back(number)
                return
            self._insist(command)
        self._replaced(number)

    def promote_by_force(self) -> None:
        """A standby takes over from a leader that is dead or stopped, which comes back later."""
        number = int(self._rng.integers(len(self._cluster.shards)))
        leader, standby = self._cluster.shards[number], self._cluster.standbys[number]
        self._cluster.down.add(leader)
        if self._rng.random() < 0.5:
            self._cluster.kill(leader)
        else:
            leader.send(signal.SIGSTOP)
        command = ["promote", standby.address, "--force"]
        done = self._command(command, [standby, self._cluster.trainer]) or self._command(command)
        leader.send(signal.SIGCONT)
        self._cluster.down.discard(leader)
        if not done:  # a standby that never had everything cannot take over, whatever force there is
            self._insist(command[:-1])
        self._replaced(number)

    def reshard(self) -> None:
        """All shards are replaced by another number of shards, while something dies."""
        cluster = self._cluster
        count = sum(NUM_SHARDS) - len(cluster.shards)
        targets = cluster.free(count)
        for number, target in enumerate(targets):
            cluster.stand_by(target, number, count)
        cluster.others += targets
        cluster.until(lambda: all(self._says(target) is not None for target in targets), "the new standbys are up")
        old = list(cluster.shards)
        command = ["reshard", "--servers", _join(old), "--to", _join(targets)]
        if not self._command(command, [*old, *targets, cluster.trainer, cluster.follower]):
            self._insist(command)
        for target in targets:
            target.kind = "shard"
        cluster.others = old
        cluster.shards, standbys = targets, cluster.standbys
        cluster.standbys = []
        for server in standbys:
            cluster.clear(server)
        for server in old:
            self._await_fenced(server)
            cluster.clear(server)
        cluster.others = []
        for number, server in enumerate(cluster.free(count)):
            cluster.stand_by(server, number, count)
            cluster.standbys.append(server)

    def promote_all(self) -> None:
        """At the end: every standby takes over, and then its leader dies for good."""
        cluster = self._cluster
        for number, (leader, standby) in enumerate(zip(cluster.shards, cluster.standbys, strict=True)):
            self._insist(["promote", standby.address])
            cluster.down.add(leader)
            cluster.kill(leader)
            cluster.shards[number], cluster.standbys[number] = standby, leader

    def _replaced(self, number: int) -> None:
        """The standby is the shard; the shard will be its standby, as soon as it knows."""
        cluster = self._cluster
        leader, standby = cluster.shards[number], cluster.standbys[number]
        standby.kind = "shard"
        cluster.shards[number], cluster.standbys[number] = standby, leader
        self._await_fenced(leader)
        cluster.clear(leader)
        cluster.stand_by(leader, number, len(cluster.shards))

    def _take_back(self, number: int) -> None:
        """The leader was told to go, and the standby has died with all that it had."""
        leader, standby = self._cluster.shards[number], self._cluster.standbys[number]
        self._cluster.clear(standby)
        self._cluster.down.add(standby)
        self._insist(["promote", leader.address, "--force"])
        self._cluster.down.discard(standby)

    def _insist(self, arguments: Sequence[str]) -> None:
        """Give a command until it has done what it was told; nothing is killed any more."""
        self._cluster.until(lambda: self._command(arguments), f"shard {' '.join(arguments)}", 300.0)

    def _command(self, arguments: Sequence[str], victims: Sequence[Member] = ()) -> bool:
        """Whether the command did what it was told; the command itself or one of ``victims`` dies meanwhile, mostly."""
        timeout_s = FORCE_TIMEOUT_S if "--force" in arguments else TIMEOUT_S
        command = self._cluster.command(["shard", *arguments, "--timeout-s", str(timeout_s)])
        if victims and self._rng.random() < 0.7:
            self._cluster.run_for(float(self._rng.uniform(0, STRIKES_WITHIN_S)))
            candidates = [command, command, *victims]
            self._cluster.kill(candidates[int(self._rng.integers(len(candidates)))])
        self._cluster.until(lambda: not command.running, "the command ends")
        assert command.process is not None
        return command.process.returncode == 0

    def _await_fenced(self, server: Server) -> None:
        self._cluster.until(lambda: self._is_fenced(server), f"{server.name} knows that it was replaced")

    def _is_fenced(self, server: Server) -> bool:
        answer = self._says(server)
        return answer is not None and answer.fenced

    def _says(self, server: Server) -> admin_pb2.TopologyResponse | None:
        """What it says of itself, asked directly."""
        with grpc.insecure_channel(server.listen) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            try:
                answer: admin_pb2.TopologyResponse = stub.Topology(admin_pb2.TopologyRequest(), timeout=2.0)
            except grpc.RpcError:
                return None
        return answer


def _join(servers: Sequence[Server]) -> str:
    return ",".join(server.address for server in servers)
