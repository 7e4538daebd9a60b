"""Fuzzes one RPC of one server: what is sent, what must come of it, and what must not."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fuzz_servers import (
    Outcome,
    Rpc,
    Server,
    all_rpcs,
)
from google.protobuf.message import DecodeError
from random_messages import Messages
from server_state import digest, drop_large_tables, grown, signature, standbys
from valid_messages import LIKELY, K, floats, ids, valid_messages

from embedstore.v1 import store_pb2

CODES = frozenset(["INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"])
ARGUMENT = frozenset(["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"])
LOOK_EVERY = 64
RENEW_EVERY = 320
DIGEST_EVERY = 251
PROBLEMS_MAX = 20
SLOW_S = 30.0
SHOWN_BYTES_MAX = 4096
Note = Callable[[str, Sequence[bytes]], None]
_UNCHECKED_EPOCH = ("Topology", "Reassign", "Activate", "Follow")


@dataclass
class Tally:
    """What became of the messages of one RPC."""

    rpc: str
    where: str
    messages: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    cpu_s: float = 0.0
    longest_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Both together."""
        self.messages += other.messages
        self.outcomes.update(other.outcomes)
        self.seconds += other.seconds
        self.cpu_s += other.cpu_s
        self.longest_s = max(self.longest_s, other.longest_s)
        self.problems += other.problems

    def line(self) -> str:
        """For people."""
        outcomes = ", ".join(f"{name} {count:,}" for name, count in self.outcomes.most_common())
        took = f"{self.seconds:>6.1f} s ({self.cpu_s:.1f} s of CPU), longest {self.longest_s * 1000:>4.0f} ms"
        return f"{self.where:<5} {self.rpc:<13} {self.messages:>9,} messages {took}; {outcomes}"


class Judge:
    """Says what is wrong with the end of a call, given the message and the server's state before it."""

    def __init__(self, rpc: Rpc, server: Server) -> None:
        self._rpc, self._server = rpc, server

    def problem(self, messages: Sequence[bytes], outcome: Outcome) -> str | None:
        """None: nothing."""
        wrong = self._refusal(outcome) if outcome.code else self._answers(outcome.answers)
        if wrong or len(messages) != 1:
            return wrong
        return self._expected(messages[0], outcome)

    def _refusal(self, outcome: Outcome) -> str | None:
        code = outcome.code
        # A dtype that the format has and scans have not is the one thing that is unimplemented.
        if code not in CODES and not (code == "UNIMPLEMENTED" and outcome.name):
            return f"refused with {code}: {outcome.text[:300]}"
        if not outcome.kind or not outcome.text:
            return f"refused with {code} without saying why"
        if code in ARGUMENT and not outcome.name:
            return f"refused with {code} without naming a field: {outcome.text[:300]}"
        return None

    def _answers(self, answers: Sequence[bytes]) -> str | None:
        try:
            for answer in answers:
                self._rpc.response.FromString(answer)
        except DecodeError:
            return "answered with something that is no answer"
        return None

    def _expected(self, data: bytes, outcome: Outcome) -> str | None:
        """What any server would have to say about this message."""
        try:
            request: Any = self._rpc.request.FromString(data)
        except DecodeError:
            return None if outcome.code in ARGUMENT else f"is malformed, and ended with {outcome.code or 'an answer'}"
        serving = self._server.serving
        if self._rpc.name not in _UNCHECKED_EPOCH and outcome.code not in ARGUMENT:
            stale = self._server.role == "fenced" or request.epoch not in (0, serving.topology.epoch)
            if stale and outcome.kind != "StaleEpochError":
                return f"has a stale epoch, and ended with {outcome.kind or 'an answer'}"
        return None if outcome.code else self._taken(request)

    def _taken(self, request: Any) -> str | None:
        """What may not be taken."""
        if self._rpc.name == "Push":
            columns = [(part.grads, part.dtype) for part in request.tables]
        elif self._rpc.name == "Assign":
            columns = [(request.rows, request.dtype)]
        else:
            return None
        for data, dtype in columns:
            if not np.isfinite(np.frombuffer(data, "<f2" if dtype == store_pb2.DTYPE_FLOAT16 else "<f4")).all():
                return "has numbers that are not finite, and was taken"
        return None


class Fuzzer:
    """Fuzzes one RPC of one server. ``note`` is told of each call before it is made."""

    def __init__(self, rpc: Rpc, server: Server, seed: int, where: str, note: Note, errors: Errors) -> None:
        self.tally = Tally(rpc.name, where)
        self._rpc, self._server, self._note = rpc, server, note
        name = f"{seed}/{where}/{server.role}/{rpc.name}"
        self._rng = random.Random(name + "/calls")
        self._valid = valid_messages(rpc.name)
        self._source = Messages(rpc.shape, self._valid, LIKELY, name)
        self._openings = [each for each in self._valid if _opens(rpc, each)]
        self._rest = [each for each in self._valid if each not in self._openings]
        self._judge = Judge(rpc, server)
        self._errors = errors
        self._before: Any = None
        self._standbys: Any = None
        self._digest: Any = None
        self._changes = 0

    def run(self, count: int) -> Tally:
        """Send about ``count`` messages."""
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        if self._server.costly:
            self._renew()
        else:
            self._check_valid_messages()
        calls = 0
        while self.tally.messages < count and len(self.tally.problems) < PROBLEMS_MAX:
            calls += 1
            self._one(calls)
            far = calls % LOOK_EVERY == 0 and grown(self._server.serving, self._server.role)
            if far or (self._changes and calls % RENEW_EVERY == 0):
                self._renew()
        self._probe(calls)
        if not self._server.restart():
            self._tell(calls, "a restart brings back something else", [])
        self.tally.seconds, self.tally.cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
        return self.tally

    def _draw(self) -> list[bytes]:
        if not self._rpc.client_streams:
            return [self._source.next()]
        messages = [self._source.next() for _ in range(1 + int(self._rng.random() * 3))]
        if self._rng.random() < 0.7:
            between = [each for each in self._rest if self._rng.random() < 0.3]
            return [self._rng.choice(self._openings), *between, *messages]
        return messages

    def _one(self, number: int) -> None:
        messages = self._draw()
        looked = number % DIGEST_EVERY == 0
        if looked:
            self._look_closely(number)
        self._note(f"{self.tally.where} {self._server.role} {self._rpc.name} {number}", messages)
        started_s = time.perf_counter()
        outcome = self._server.call(self._rpc, messages)
        took_s = time.perf_counter() - started_s
        self.tally.longest_s = max(self.tally.longest_s, took_s)
        self.tally.messages += outcome.taken
        self.tally.outcomes[outcome.code or "taken"] += 1
        problem = self._errors.take() or self._judge.problem(messages, outcome) or self._effect(messages, outcome)
        if looked and problem is None and self._digest is not None and digest(self._server.serving) != self._digest:
            problem = "changed something, and should not have"
        if problem is None and took_s > SLOW_S:
            problem = f"took {took_s:.1f} s for {sum(map(len, messages)):,} bytes"
        if problem is not None:
            self._tell(number, problem, messages)
        elif not outcome.code:
            self._source.accepted(messages[-1])

    def _effect(self, messages: Sequence[bytes], outcome: Outcome) -> str | None:
        """What is wrong with the state after this outcome."""
        serving = self._server.serving
        followers = standbys(serving) if self._rpc.client_streams else self._standbys
        if followers != self._standbys:
            self._standbys = followers
            if not any(_opens(self._rpc, message, standby=True) for message in messages):
                return "left a standby behind"
        after = signature(serving)
        if after == self._before:
            return None
        if outcome.code or self._rpc.reads:
            return f"{'was refused' if outcome.code else 'only reads'}, and changed something"
        drop_large_tables(serving)
        self._before, self._digest = signature(serving), None
        self._changes += 1
        return None

    def _look_closely(self, number: int) -> None:
        found = digest(self._server.serving)
        if self._digest is not None and found != self._digest:
            self._tell(number, "something has changed since the last close look", [])
            return
        if number // DIGEST_EVERY % 8 == 0:
            self._probe(number)
            found = digest(self._server.serving)
        self._digest = found

    def _renew(self) -> None:
        self._server.renew()
        self._before, self._digest = signature(self._server.serving), None
        self._standbys = standbys(self._server.serving)
        self._changes = 0

    def _tell(self, number: int, problem: str, messages: Sequence[bytes]) -> None:
        where = f"{self.tally.where} {self._server.role} {self._rpc.name}, call {number}"
        shown = " ".join(message[:SHOWN_BYTES_MAX].hex() or '""' for message in messages)
        self.tally.problems.append(f"{where}: {problem}\n  {shown}")
        self._renew()

    def _check_valid_messages(self) -> None:
        """Without valid messages to start from nothing but the first check of a handler would ever be reached."""
        for message in self._valid:
            self._renew()
            messages = [message]
            if self._rpc.client_streams and not _opens(self._rpc, message):
                messages = [self._openings[-1], message]
            outcome = self._server.call(self._rpc, messages)
            if outcome.code and self._server.role == "leader":
                self._tell(0, f"a valid message was refused: {outcome.text}", messages)
        self._renew()
        if not self._valid:
            self._tell(0, "valid_messages.py has nothing for it", [])

    def _probe(self, number: int) -> None:
        """A valid write and a valid read do what they should."""
        serving = self._server.serving
        if self._server.role != "leader" or serving.fenced or "probe" not in serving.store().table_map():
            return
        rpcs = {rpc.name: rpc for rpc in all_rpcs()}
        pull = store_pb2.PullRequest(tables=[store_pb2.TablePull(table="probe", ids=ids(K[0]))]).SerializeToString()
        table = store_pb2.TablePush(table="probe", ids=ids(K[0]), dim=1, grads=floats(-1))
        push = store_pb2.PushRequest(tables=[table]).SerializeToString()
        outcomes = [
            self._server.call(rpcs[name], [data]) for name, data in (("Pull", pull), ("Push", push), ("Pull", pull))
        ]
        self._before, self._digest = signature(serving), None
        if any(outcome.code for outcome in outcomes):
            self._tell(number, f"a valid call fails now: {outcomes}", [])
            return
        old, new = (np.frombuffer(store_pb2.PullResponse.FromString(each.answers[0]).tables[0].rows, "<f4")
                    for each in (outcomes[0], outcomes[2]))  # fmt: skip
        if new != old + 1:
            self._tell(number, f"a valid push went wrong: {old} became {new}", [])


def _opens(rpc: Rpc, message: bytes, *, standby: bool = False) -> bool:
    """Whether a message can begin a Follow call (of a standby)."""
    try:
        request: Any = rpc.request.FromString(message)
    except DecodeError:
        return False
    if not rpc.client_streams or not request.HasField("wants"):
        return False
    return not standby or bool(request.wants.standby.address)


class Errors(logging.Handler):
    """Whatever a server logs as an error, and whatever a thread dies of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(logging.Formatter().format(record))

    def take(self) -> str | None:
        """What has come since the last time."""
        found, self._found = self._found, []
        return "\n".join(found) or None

    def __enter__(self) -> Errors:
        logger = logging.getLogger("embedstore")
        logger.addHandler(self)
        logger.propagate = False
        self._hook, threading.excepthook = threading.excepthook, self._died
        return self

    def __exit__(self, *exception: object) -> None:
        logger = logging.getLogger("embedstore")
        logger.removeHandler(self)
        logger.propagate = True
        threading.excepthook = self._hook

    def _died(self, arguments: Any) -> None:
        self._found.append(f"thread {arguments.thread} died of {arguments.exc_value!r}")
