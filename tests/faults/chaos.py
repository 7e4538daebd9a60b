"""Kill and hurt everything at random while events stream in, then count: nothing lost, nothing twice.

``chaos.py --kills 500 --seed 1`` prints one table. The rows of the counting trainer's tables say how often each event
was applied (see ``counting_trainer.py``); they are compared with what the log has, at every shard and at the follower.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from counting_trainer import DENSE, ITEMS, USERS
from event_feed import EventFeed, Truth, read_truth
from fault_cluster import Cluster
from fault_members import Member, Unexpected
from model_optimizers import initial_state, learn
from offset_clock import write_offset
from takeovers import Takeovers

import embedstore as es
from trainer.cut import read_cut

SomeMember = TypeVar("SomeMember", bound=Member)
HOUR_MS = 3_600_000
EVENTS_PER_S = 200.0


@dataclass
class Result:
    """What one run did and found. ``other``: rows, positions or weights that are wrong in another way than by count."""

    seed: int
    kills: Mapping[str, int]
    faults: Mapping[str, int]
    restarts: Mapping[str, int]
    events: int = 0
    set_aside: int = 0
    replays: int = 0
    lost: int = 0
    double: int = 0
    seconds: float = 0.0
    other: list[str] = field(default_factory=list)

    def table(self) -> str:
        """One table for people."""
        rows = {f"kills of {kind}": count for kind, count in sorted(self.kills.items())}
        rows["kills"] = sum(self.kills.values())
        rows |= {f"fault: {name}": count for name, count in sorted(self.faults.items())}
        rows |= {f"starts after an end of its own: {kind}": n for kind, n in sorted(self.restarts.items())}
        rows |= {"events": self.events, "records set aside": self.set_aside, "replays": self.replays}
        rows |= {"lost": self.lost, "double": self.double, "otherwise wrong": len(self.other)}
        rows |= {"seconds": round(self.seconds)}
        width = max(map(len, rows))
        lines = [f"{name:<{width}}  {value:>10,}" for name, value in rows.items()]
        return "\n".join([*lines, f"{'seed':<{width}}  {self.seed:>10}", *self.other])


class Chaos:
    """The faults, drawn by ``rng``. Each returns when it has struck; what has to end later is in ``_later``. ``first``:
    takeovers to begin with, and there are no others then."""

    def __init__(self, cluster: Cluster, seed: int, first: Sequence[str] | None = None) -> None:
        self.cluster = cluster
        self.rng = np.random.default_rng(seed)
        self.faults: Counter[str] = Counter()
        self._later: list[tuple[float, Callable[[], object]]] = []
        cluster.on_tend = lambda: self._end_due(time.monotonic())
        self.takeovers = takeovers = Takeovers(cluster, self.rng)
        self._choices: list[tuple[float, Callable[[], None]]] = [
            (38, self.kill_shard),
            (18, self.kill_trainer),
            (12, self.kill_standby),
            (12, self.kill_follower),
            (5, self.kill_broker),
            (2, self.kill_all),
            (8, self.pause),
            (6, self.lose_replies),
            (4, self.delay_replies),
            (4, self.fill_disk),
            (4, self.step_clock),
            (4, self.tear_files),
            (1, self.lose_disk),
            (1, self.lose_trainer_state),
            (1, self.replace_trainer),
        ]
        replacing = [(2, takeovers.promote), (3, takeovers.promote_by_force), (1, takeovers.reshard)]
        if first is None:
            self._choices += replacing
        self._first = [fault for name in first or () for _, fault in replacing if fault.__name__ == name]

    def strike(self) -> None:
        """One fault."""
        weights = np.array([weight for weight, _ in self._choices])
        _, fault = self._choices[int(self.rng.choice(len(self._choices), p=weights / weights.sum()))]
        fault = self._first.pop(0) if self._first else fault
        self.faults[fault.__name__] += 1
        fault()

    def end_all(self) -> None:
        """Whatever lasts, lasts no longer."""
        self._end_due(float("inf"))
        write_offset(self.cluster.clock, 0)

    def _end_due(self, now_s: float) -> None:
        due = [entry for entry in self._later if entry[0] <= now_s]
        self._later = [entry for entry in self._later if entry[0] > now_s]
        for _, end in due:
            end()

    def _for(self, low_s: float, high_s: float, end: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + self.rng.uniform(low_s, high_s), end))

    def _one(self, members: list[SomeMember]) -> SomeMember:
        return members[int(self.rng.integers(len(members)))]

    def kill_shard(self) -> None:
        self.cluster.kill(self._one(self.cluster.shards))

    def kill_trainer(self) -> None:
        self.cluster.kill(self.cluster.trainer)

    def kill_standby(self) -> None:
        self.cluster.kill(self._one(self.cluster.standbys))

    def kill_follower(self) -> None:
        self.cluster.kill(self.cluster.follower)

    def kill_broker(self) -> None:
        self.cluster.kill_broker()

    def kill_all(self) -> None:
        for member in self.cluster.members:
            self.cluster.kill(member)
        self.cluster.kill_broker()

    def pause(self) -> None:
        """SIGSTOP, and SIGCONT a little later; the broker too."""
        place = int(self.rng.integers(len(self.cluster.members) + 1))
        if place == len(self.cluster.members):
            if self.cluster.signal_broker(signal.SIGSTOP):
                self._for(0.3, 3.0, lambda: self.cluster.signal_broker(signal.SIGCONT))
            return
        member = self.cluster.members[place]
        if member.send(signal.SIGSTOP):
            self._for(0.3, 4.0, lambda: member.send(signal.SIGCONT))

    def lose_replies(self) -> None:
        """A shard serves requests whose answers never arrive, until the connections break."""
        proxy = self._one([*self.cluster.shards, *self.cluster.standbys]).proxy
        proxy.lose_replies()
        self._for(0.1, 1.5, proxy.reset)

    def delay_replies(self) -> None:
        proxy = self._one([*self.cluster.shards, *self.cluster.standbys]).proxy
        proxy.delay_replies(float(self.rng.uniform(0.02, 0.4)))
        self._for(0.5, 3.0, lambda: proxy.delay_replies(0.0))

    def fill_disk(self) -> None:
        """No file of a shard, standby or trainer can grow past a limit for a while: the system refuses the write."""
        member = self._one([*self.cluster.shards, *self.cluster.standbys, self.cluster.trainer])
        if not member.running:
            return
        assert member.process is not None
        pid, limit_bytes = member.process.pid, int(self.rng.choice([0, 4096, 65_536]))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
        process = member.process

        def lift() -> None:
            if process.poll() is None:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        self._for(0.5, 2.5, lift)

    def step_clock(self) -> None:
        """The calendar of shards, standbys, follower and trainer jumps, up to a day either way."""
        write_offset(self.cluster.clock, int(self.rng.integers(-24 * HOUR_MS, 24 * HOUR_MS)))

    def tear_files(self) -> None:
        """A shard dies and its disk has torn or flipped some of what it wrote."""
        shard = self._one(self.cluster.shards)
        self.cluster.kill(shard)
        files = sorted(shard.data.rglob("*.seg"))
        for path in self.rng.permutation(np.array(files, object))[: int(self.rng.integers(1, 4))]:
            self._tear(path)

    def _tear(self, path: Path) -> None:
        size = path.stat().st_size
        if not size:
            return
        with path.open("r+b") as file:
            if self.rng.random() < 0.5:
                file.truncate(int(self.rng.integers(size)))
                return
            for at in self.rng.integers(size, size=int(self.rng.integers(1, 8))).tolist():
                file.seek(at)
                [byte] = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ int(self.rng.integers(1, 256))]))

    def lose_disk(self) -> None:
        """A shard comes back with nothing at all."""
        shards = self.cluster.shards
        shard = self._one(shards)
        self.cluster.clear(shard)
        shard.serve(shards.index(shard), len(shards), [each.address for each in shards])

    def lose_trainer_state(self) -> None:
        self.cluster.kill(self.cluster.trainer)
        self.cluster.wipe(self.cluster.directory / self.cluster.trainer.name)

    def replace_trainer(self) -> None:
        """A second trainer, elsewhere, takes over from a stopped one, which then wakes."""
        self.cluster.replace_trainer()


def run(
    directory: Path,
    *,
    kills: int,
    seed: int,
    pause_s: float,
    report: Callable[[str], None],
    first: Sequence[str] | None = None,
) -> Result:
    """Strike until so many processes have been killed, let everything come to rest, and compare. ``first``: these
    takeovers and no others; None: any at any time."""
    started_s = time.monotonic()
    with Cluster(directory) as cluster:
        chaos = Chaos(cluster, seed, first)
        with EventFeed(cluster.kafka, cluster.topic, seed, EVENTS_PER_S):
            cluster.until(lambda: cluster.applied() > 0, "the first event is learnt")
            told_s = time.monotonic()
            while sum(cluster.kills.values()) < kills:
                chaos.strike()
                cluster.run_for(float(chaos.rng.exponential(pause_s)))
                if time.monotonic() - told_s > 30:
                    told_s = time.monotonic()
                    report(f"{sum(cluster.kills.values())} kills, {chaos.faults.total()} faults")
            chaos.end_all()
            cluster.settle()
        truth = read_truth(cluster.kafka, cluster.topic)
        ends = sum(truth.ends.values())
        cluster.until(lambda: cluster.applied() == ends, f"all {ends} positions are applied everywhere", 300.0)
        cluster.stop_trainer()
        result = Result(seed, dict(cluster.kills), dict(chaos.faults), dict(cluster.restarts), truth.events)
        result.set_aside = truth.set_aside
        compare(cluster, truth, result)
        chaos.takeovers.promote_all()
        with es.connect(cluster.addresses) as store:
            _compare_shards("standbys that took over", store, truth, result)
        result.replays = cluster.count_replays()
    result.seconds = time.monotonic() - started_s
    return result


def compare(cluster: Cluster, truth: Truth, result: Result) -> None:
    """Every row of every shard and of the follower, the cut, the dense set, and the positions, against the log."""
    with es.connect(cluster.addresses) as store, es.connect(cluster.follower_address) as follower:
        expected = _compare_shards("shards", store, truth, result)
        cluster.until(lambda: _reached(follower, expected), "the follower has everything")
        _compare_rows("follower", follower, truth, result)
    cut = read_cut(cluster.directory / cluster.trainer.name)
    if cut is None or dict(cut.positions) != expected:
        result.other.append(f"the cut stands at {None if cut is None else cut.positions}")


def _compare_shards(where: str, store: es.RemoteStore, truth: Truth, result: Result) -> dict[str, int]:
    """Rows, positions and the dense set; returns where every stream should stand."""
    streams = {s: state for s, state in store.watermarks().items() if s.startswith("kafka/")}
    expected = {stream: truth.ends[int(stream.rpartition("/")[2])] for stream in streams}
    for stream, state in streams.items():
        if (state.applied, state.durable) != (expected[stream], expected[stream]):
            result.other.append(f"{where}: {stream} stands at {state}, the log ends at {expected[stream]}")
    _compare_rows(where, store, truth, result)
    dense = store.get_dense("sequence_model")
    if dense.position != expected or int(dense.tensors[DENSE][0]) != truth.events:
        result.other.append(f"{where}: dense set: {int(dense.tensors[DENSE][0])} events at {dense.position}")
    return expected


def _reached(reader: Any, expected: Mapping[str, int]) -> bool:
    states = reader.watermarks()
    return all(stream in states and states[stream].applied == end for stream, end in expected.items())


def _compare_rows(where: str, reader: Any, truth: Truth, result: Result) -> None:
    counts = {int(key): row[0] for ids, rows in reader.scan(ITEMS) for key, row in _pairs(ids, rows)}
    for item in sorted(counts.keys() | truth.items.keys()):
        got, wanted = counts.get(item, 0.0), truth.items.get(item, 0)
        result.lost += int(max(0, wanted - got))
        result.double += int(max(0, got - wanted))
        if got != int(got) or (item in counts) != (item in truth.items):
            result.other.append(f"{where}: row of item {item} is {got}, events {wanted}")
    learnt = {int(key): row for ids, rows in reader.scan(USERS) for key, row in _pairs(ids, rows)}
    for user in sorted(learnt.keys() | truth.users.keys()):
        row = _reference(truth.user_gradients(user))
        if user not in learnt or learnt[user].tobytes() != row.tobytes():
            result.other.append(f"{where}: row of user {user} is {learnt.get(user)}, the sequential one {row}")


def _pairs(ids: np.ndarray, rows: Any) -> Any:
    return zip(ids.tolist(), rows.embeddings, strict=True)


def _reference(gradients: np.ndarray) -> np.ndarray:
    """A user's row after these gradients, one after the other."""
    optimizer = es.Adagrad(lr=0.1)
    row, state = np.zeros(1, np.float32), initial_state(optimizer, 1)
    for number, gradient in enumerate(gradients):
        learn(optimizer, row, state, gradient, 0.1, number + 1)
    return row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int.from_bytes(np.random.bytes(4), "little"))
    parser.add_argument("--pause-s", type=float, default=1.5, help="mean time between two faults (default %(default)s)")
    parser.add_argument("--keep", type=Path, help="work here, and leave everything behind")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(f"seed {options.seed}", flush=True)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        directory = options.keep or Path(temporary)
        try:
            result = run(directory, kills=options.kills, seed=options.seed, pause_s=options.pause_s, report=report)
        except Unexpected as problem:
            print(f"seed {options.seed}: {problem}", file=sys.stderr)
            return 1
    print(result.table())
    return 1 if result.lost or result.double or result.other else 0


if __name__ == "__main__":
    sys.exit(main())
