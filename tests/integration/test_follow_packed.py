"""Followers that keep their rows packed: as near their leaders as the format promises, and smaller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from follow_servers import TIMEOUT_S, Leader
from half_rows import check_halves
from processes import Process

import embedstore as es
from embedstore.errors import InvalidArgumentError
from embedstore.server.follow import FollowerStore, follow
from embedstore.server.options import ShardOptions
from embedstore.store import LocalStore

IDS = np.arange(3000, dtype=np.uint64)
ITEMS = es.TableSpec("items", dim=64, optimizer=es.SGD(1.0), num_chunks=16)
ERRORS = {"fp16": 2**-11, "int8": 0.0046, "int4": 0.079}
MEMORY = {"fp16": 0.65, "int8": 0.45, "int4": 0.35}
"""Of what the same table takes in float32, headers, index and all."""


class Trained:
    """A leader whose rows are Gaussian, and what follows it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._position = 0
        self._random = np.random.default_rng(5)
        self.store = stack.enter_context(LocalStore(None, [ITEMS]))
        self.store.open_stream("s", 0)
        self.leader = self.serve(self.store)

    def serve(self, tables: LocalStore | FollowerStore) -> Leader:
        leader = Leader(tables, follower=tables is not getattr(self, "store", tables))
        self._stack.callback(leader.stop)
        return leader

    def follow(self, rows: str | None, address: str | None = None) -> FollowerStore:
        return self._stack.enter_context(follow(address or self.leader.address, rows=rows, sync_interval_ms=10))

    def push(self, ids: np.ndarray) -> dict[str, int]:
        """Moves the rows so that they are Gaussian with a deviation of 1 wherever they were; returns the watermarks."""
        grads = self.store.pull({"items": ids})["items"] - self._random.standard_normal((len(ids), 64))
        begin, self._position = self._position, self._position + 1
        self.store.push({"items": (ids, grads)}, origins=[es.Origin("s", begin, self._position)])
        return {"s": self._position}

    def rows(self) -> np.ndarray:
        return self.store.pull({"items": IDS})["items"]


@pytest.fixture
def trained() -> Iterator[Trained]:
    with ExitStack() as stack:
        yield Trained(stack)


def error_of(rows: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(rows - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("rows", list(ERRORS))
def test_a_packed_follower_stays_within_its_bound_while_rows_move(trained: Trained, rows: str) -> None:
    marks = trained.push(IDS)
    follower, exact = trained.follow(rows), trained.follow("fp32")
    for _ in range(3):
        for each in (follower, exact):
            each.wait_for(marks, TIMEOUT_S)
        assert np.array_equal(exact.pull({"items": IDS})["items"], trained.rows())
        error = error_of(follower.pull({"items": IDS})["items"], trained.rows())
        print(f"{rows}: {error:.4%}")
        assert 0 < error <= ERRORS[rows]
        marks = trained.push(IDS[::3])
    beyond = np.concatenate([IDS[::7], IDS[:9] + np.uint64(10**6)])
    for each in (follower, exact):
        each.wait_for(marks, TIMEOUT_S)
        check_halves(each, {"items": beyond})
    theirs, mine = (store.stats().tables["items"] for store in (exact, follower))
    assert mine.rows == len(IDS)
    print(f"{rows}: {mine.memory_bytes / len(IDS):.0f} B/row, float32 {theirs.memory_bytes / len(IDS):.0f}")
    assert mine.memory_bytes <= MEMORY[rows] * theirs.memory_bytes


@pytest.mark.parametrize("rows", list(ERRORS))
def test_a_chain_of_packed_followers_reads_what_its_first_reads(trained: Trained, rows: str) -> None:
    first = trained.follow(rows)
    relay = trained.serve(first)
    first.wait_for(trained.push(IDS), TIMEOUT_S)
    second, plain = trained.follow(rows, relay.address), trained.follow(None, relay.address)
    for ids in (IDS[:500], IDS[200:900]):
        marks = trained.push(ids)
        for each in (first, second, plain):
            each.wait_for(marks, TIMEOUT_S)
        read = first.pull({"items": IDS})["items"]
        assert np.array_equal(second.pull({"items": IDS})["items"], read)
        assert np.array_equal(plain.pull({"items": IDS})["items"], read)


def test_a_follower_process_packs_its_rows(trained: Trained) -> None:
    marks = trained.push(IDS)
    arguments = ("--follow", trained.leader.address, "--listen", "127.0.0.1:0", "--sync-interval-ms", "20")
    with (
        Process(*arguments, "--rows", "int8") as process,
        es.connect(process.address) as remote,
        follow(process.address, rows="int8") as beyond,
    ):
        beyond.wait_for(marks, TIMEOUT_S)
        read = remote.pull({"items": IDS})["items"]
        assert 0.002 < error_of(read, trained.rows()) <= ERRORS["int8"]
        assert np.array_equal(read, beyond.pull({"items": IDS})["items"])
        check_halves(remote, {"items": IDS})
        per_row = remote.stats().tables["items"].memory_bytes / len(IDS)
        assert per_row < 72 + 20 + 100, "a float32 row takes 256 bytes for its embedding alone"
        assert process.terminate() == 0


def test_rows_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError, match="rows: must be fp32, fp16, int8 or int4, not 'complex'"):
        follow("localhost:1", rows="complex")
    with pytest.raises(InvalidArgumentError, match="rows: must be fp32 beside optimizer state, not int8"):
        FollowerStore("localhost:1", embeddings_only=False, rows="int8")
    with pytest.raises(InvalidArgumentError, match="rows: must be fp32"):
        ShardOptions("127.0.0.1:0", follow=("localhost:1",), rows="int9")
    with pytest.raises(InvalidArgumentError, match="rows: is for followers"):
        ShardOptions("127.0.0.1:0", rows="int8")
