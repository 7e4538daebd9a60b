"""Broker, shards, standbys, follower and trainer as real processes: whoever ends is started again.

Everything belongs to one thread, except what :class:`LossyProxy` says of itself. Processes write to logs of their own,
and a process that ended by itself must have said why in a way that an operator's restart is the answer to.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from fault_members import HERE, Member, Server, Unexpected
from kafka_broker import KafkaTopics
from offset_clock import write_offset
from processes import COMMAND, free_port

import embedstore as es

NUM_PARTITIONS = 2
BATCH_EVENTS = 128
WAIT_S = 120.0
TABLES = """
[tables.items]
dim = 2
num_chunks = 16
on_miss = "init"
optimizer = { kind = "sgd", lr = 1.0 }

[tables.users]
dim = 1
num_chunks = 16
optimizer = { kind = "adagrad", lr = 0.1 }
"""
CONFIG = f"""
[model]
dim = 2
layers = 1
heads = 1
length = 2
[train]
batch_events = {BATCH_EVENTS}
head_negatives = 8
tail_negatives = 8
refresh_rows = 4
[tables]
num_chunks = 16
[run]
threads = 1
cut_interval_s = 0.7
poll_timeout_s = 0.1
retry_max_s = 0.5
rebuild_events = 20000
"""
NUM_SERVERS = 8
"""Room for three shards and their standbys beside the two standbys that are to become shards."""
UNFINISHED = "was left by a takeover that did not end: remove it"
ACCEPTED_ENDS = {
    "trainer": (
        "replaced by a newer trainer",
        "is not open; call open_stream first",
        "' does not exist",
        "127.0.0.1:",
        "File too large",
    ),
    "shard": ("File too large",),
    "standby": ("File too large", UNFINISHED),
    "follower": (),
}
"""What a process that ended by itself may have said last, beside what its faults allow."""


class Cluster:
    """See the module. ``kills`` counts SIGKILLs of running processes by kind, ``restarts`` the ends that were
    nobody's kill and ``ends`` says why."""

    def __init__(self, directory: Path, num_shards: int = 2) -> None:
        self.directory = directory
        self.kills: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.ends: list[str] = []
        self._stack = ExitStack()
        self._all: list[Member] = []
        self._commands: list[Member] = []
        self._logs = directory / "logs"
        self._logs.mkdir(parents=True)
        self.clock = directory / "clock-offset"
        write_offset(self.clock, 0)
        (directory / "tables.toml").write_text(TABLES)
        (directory / "config.toml").write_text(CONFIG)
        self._starter = self._stack.enter_context(ThreadPoolExecutor(1))
        self._broker_start: Future[str] | None = None
        self.kafka = KafkaTopics(directory / "kafka")
        self._stack.callback(lambda: self.kafka.broker.stop(kill=True))
        self.topic = self.kafka.create(partitions=NUM_PARTITIONS)
        self.servers = [
            Server(number, directory, self._logs, self.clock, directory / "tables.toml")
            for number in range(NUM_SERVERS)
        ]
        for server in self.servers:
            self._stack.enter_context(server.proxy)
        self._all += self.servers
        self.addresses = [server.address for server in self.servers]
        """Of every place where a shard may ever be."""
        self.shards = self.servers[:num_shards]
        self.standbys = self.servers[num_shards : 2 * num_shards]
        self.others: list[Server] = []
        """Standbys of another number of shards, and shards that have been replaced: kept running, too."""
        self.down: set[Member] = set()
        """Those that are not started again for now."""
        self.on_tend: Callable[[], object] = lambda: None
        for number, (shard, standby) in enumerate(zip(self.shards, self.standbys, strict=True)):
            shard.serve(number, num_shards, [each.address for each in self.shards])
            self.stand_by(standby, number, num_shards)
        self.follower_address = f"127.0.0.1:{free_port()}"
        self.follower = self._follower()
        self._num_trainers = 0
        self._stopped: Member | None = None
        self.trainer = self.new_trainer()
        self.tend()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in (*self._commands, *self._all):
            member.kill()
        self._broker_back()
        self._stack.close()

    @property
    def members(self) -> list[Member]:
        return [*self.shards, *self.standbys, *self.others, self.follower, self.trainer]

    def free(self, count: int) -> list[Server]:
        """Places where nothing runs."""
        return [each for each in self.servers if each not in self.members][:count]

    def stand_by(self, server: Server, shard: int, num_shards: int) -> None:
        """From its next start on a standby, of whoever has the shard then."""
        server.stand_by(shard, num_shards, [each for each in self.addresses if each != server.address])

    def clear(self, server: Server) -> None:
        """End what runs there, and empty its disk."""
        self.kill(server)
        server.wipe()

    def _follower(self) -> Member:
        serve = ["serve", "--follow", ",".join(self.addresses), "--listen", self.follower_address]
        return self._member(
            "follower", "follower", ["offset_clock.py", str(self.clock), *serve, "--sync-interval-ms", "50"]
        )

    def new_trainer(self) -> Member:
        """A trainer with a state directory of its own; not started."""
        name = f"trainer-{self._num_trainers}"
        self._num_trainers += 1
        stream = ["stream", "--events", self.kafka.uri(self.topic), "--config", str(self.directory / "config.toml")]
        stream += ["--store", "grpc://" + ",".join(self.addresses)]
        stream += ["--state", str(self.directory / name), "--summary", str(self.directory / f"{name}.json")]
        return self._member(name, "trainer", ["counting_trainer.py", str(self.clock), *stream])

    def command(self, arguments: Sequence[str]) -> Member:
        """An ``embedstore`` command that has been started, and that nobody starts again."""
        member = Member("command", "command", [*COMMAND, *arguments], self._logs / "command.log")
        self._commands.append(member)
        member.start()
        return member

    def _member(self, name: str, kind: str, arguments: Sequence[str]) -> Member:
        script, *rest = arguments
        member = Member(name, kind, [sys.executable, str(HERE / script), *rest], self._logs / f"{name}.log")
        self._all.append(member)
        return member

    # -- faults

    def kill(self, member: Member) -> None:
        """SIGKILL, counted if there was anything to kill."""
        self.kills[member.kind] += member.kill()

    def kill_broker(self) -> None:
        """SIGKILL of the broker, and its start on a thread of its own."""
        self._broker_back()
        self.kills["broker"] += bool(self.kafka.broker.stop(kill=True))
        self._broker_start = self._starter.submit(self.kafka.broker.start)

    def signal_broker(self, number: signal.Signals) -> bool:
        """Whether there was a broker to signal."""
        if self._broker_start is not None and not self._broker_start.done():
            return False
        pid = self.kafka.broker.pid()
        if pid is not None:
            os.kill(pid, number)
        return pid is not None

    def replace_trainer(self) -> None:
        """Stop the trainer, let another take its streams over, wake it: one of the two ends as replaced.

        That is the older one, unless it was stopped before it had opened its streams.
        """
        self.settle()
        old = self.trainer
        old.send(signal.SIGSTOP)
        before = self.until(self.generations, "every shard answers")
        new = self.new_trainer()
        new.start()
        self.trainer = new

        def taken_over() -> bool:
            now = self.generations()
            return all(now.get(stream, 0) > generation for stream, generation in before.items())

        self.until(taken_over, "taken over")
        self.run_for(0.5)
        old.send(signal.SIGCONT)
        both = (old, new)
        self.trainer = self.until(lambda: next((m for m in both if not m.running), None), "one is replaced", tend=False)
        self._check_end(self.trainer)
        self.trainer = old if self.trainer is new else new

    def _broker_back(self) -> None:
        if self._broker_start is not None:
            self._broker_start.result(WAIT_S)
            self._broker_start = None

    def wipe(self, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)

    # -- keeping

    def tend(self) -> None:
        """Start again whoever has ended, except who shall be down and a trainer that was told to end."""
        self.on_tend()
        for member in self.members:
            if not member.running and member is not self._stopped and member not in self.down:
                self.restarts[member.kind] += self._check_end(member)
                member.start()

    def _check_end(self, member: Member) -> bool:
        """Whether it ended by itself, for a reason that may be; False: it was killed."""
        code = None if member.process is None else member.process.returncode
        if code in (None, -signal.SIGKILL):
            return False
        said = member.output().strip().splitlines()[-1:] or [""]
        accepted = any(text in said[0] for text in ACCEPTED_ENDS[member.kind]) and "INTERNAL" not in said[0]
        if code == 1 and accepted:
            self.ends.append(f"{member.name}: {said[0]}")
            if isinstance(member, Server) and UNFINISHED in said[0]:
                member.wipe()
            return True
        raise Unexpected(f"{member.name} ended with {code}:\n{member.output()[-4000:]}")

    def generations(self) -> dict[str, int]:
        """Of every partition's stream; empty while a shard is away."""
        return {stream: state.generation for stream, state in self._states().items()}

    def applied(self) -> int:
        """Positions that every chunk of every shard has, summed over the partitions; 0 while a shard is away."""
        return sum(state.applied for state in self._states().values())

    def _states(self) -> dict[str, es.StreamState]:
        try:
            with es.connect(self.addresses, timeout_s=2.0, retry_s=2.0) as store:
                return {s: state for s, state in store.watermarks().items() if s.startswith("kafka/")}
        except es.UnavailableError:
            return {}

    def run_for(self, seconds: float) -> None:
        """Let everything go on, and start again whoever ends."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.tend()
            time.sleep(min(left_s, 0.05))
        self.tend()

    def settle(self) -> None:
        """No faults any more, and everything runs."""
        for server in self.servers:
            server.proxy.delay_replies(0.0)
            server.proxy.reset()
        self._broker_back()
        self.signal_broker(signal.SIGCONT)
        for member in self.members:
            member.send(signal.SIGCONT)
        self.tend()

    def until(self, done: Callable[[], Any], what: str, timeout_s: float = WAIT_S, *, tend: bool = True) -> Any:
        """Ask again and again, because processes tell nobody when they change, and keep them running meanwhile."""
        deadline_s = time.monotonic() + timeout_s
        while not (found := done()):
            if time.monotonic() > deadline_s:
                raise Unexpected(f"after {timeout_s:.0f} s: {what}\n{self._what_all_do()}")
            if tend:
                self.tend()
            time.sleep(0.05)
        return found

    def _what_all_do(self) -> str:
        for member in [*self.shards, *self.standbys, *self.others, self.follower]:
            member.send(signal.SIGUSR1)
        time.sleep(1.0)
        known = [*self._all, *self._commands[-2:]]
        states = [f"--- {m.name}, {m.kind}, {m.state()}\n{m.output()[-6000:]}" for m in known if m.process]
        return "\n".join(states)

    def stop_trainer(self, timeout_s: float = WAIT_S) -> None:
        """SIGTERM: the trainer makes everything durable, writes its cut and ends with 0."""
        self._stopped = self.trainer
        self.trainer.send(signal.SIGTERM)
        assert self.trainer.process is not None
        code = self.trainer.process.wait(timeout_s)
        if code:
            raise Unexpected(f"the trainer ended with {code}:\n{self.trainer.output()[-4000:]}")

    def count_replays(self) -> int:
        """How often trainers read something again, by their logs."""
        return sum(log.read_text(errors="replace").count(" again: ") for log in self._logs.glob("trainer-*.log"))
