"""Laws of the deltas of one table: a damaged or foreign one does no harm, a sound one carries everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import CorruptDeltaError, InvalidArgumentError
from embedstore.spec import SGD, Adagrad, Adam, TableSpec
from embedstore.table import Table


def table_of(dim: int = 4, **fields: Any) -> Table:
    return Table(TableSpec("t", dim, **({"optimizer": SGD(1.0)} | fields)))


def digest(table: Table) -> list[bytes]:
    return [table.delta(chunk) for chunk in table.chunks]


def sample_delta() -> tuple[Table, bytes, bytes]:
    table = Table(TableSpec("t", 3, optimizer=Adagrad(0.1), num_chunks=2))
    rng = np.random.default_rng(4)
    table.open_stream("file/abc/0", 5)
    table.push(np.arange(30), rng.normal(size=(30, 3)), now_ms=10**6, event_times_ms=10**6)
    states = table.chunk_states()
    table.push(np.arange(20, 50), rng.normal(size=(30, 3)), now_ms=10**6, event_times_ms=10**6)
    table.delete(np.arange(10))
    return table, table.delta(1), table.delta(1, int(states.incarnations[1]), int(states.versions[1]))


SOURCE, FULL, CONTINUED = sample_delta()


@given(
    full=st.booleans(), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3)
)
@settings(max_examples=300, deadline=None)
def test_a_damaged_delta_changes_nothing(full: bool, flips: list[tuple[int, int]]) -> None:
    sound = FULL if full else CONTINUED
    damaged = bytearray(sound)
    for at, bits in flips:
        damaged[at % len(damaged)] ^= bits
    replica = Table(SOURCE.spec)
    before = digest(replica)
    if bytes(damaged) != sound:
        with pytest.raises(CorruptDeltaError):
            replica.apply(bytes(damaged))
        assert digest(replica) == before


@pytest.mark.parametrize("sound", [FULL, CONTINUED], ids=["full", "continued"])
def test_a_truncated_or_longer_delta_is_refused(sound: bytes) -> None:
    replica = Table(SOURCE.spec)
    before = digest(replica)
    for size in {*range(0, len(sound), 7), 111, 112, 115, 116, len(sound) - 1}:
        with pytest.raises(CorruptDeltaError):
            replica.apply(sound[:size])
    with pytest.raises(CorruptDeltaError):
        replica.apply(sound + b"\0")
    assert digest(replica) == before


@pytest.mark.parametrize(
    "other",
    [
        TableSpec("t", 4, optimizer=Adagrad(0.1), num_chunks=2),
        TableSpec("t", 3, optimizer=Adam(0.1), num_chunks=2),
        TableSpec("t", 3, optimizer=Adagrad(0.1), num_chunks=4),
    ],
    ids=["dim", "optimizer", "chunks"],
)
def test_a_delta_of_another_table_is_refused(other: TableSpec) -> None:
    with pytest.raises(CorruptDeltaError):
        Table(other).apply(FULL)


def test_a_table_with_state_refuses_a_delta_without() -> None:
    with pytest.raises(CorruptDeltaError, match="embeddings only"):
        Table(SOURCE.spec).apply(SOURCE.delta(0, embeddings_only=True))
    serving = Table(SOURCE.spec, embeddings_only=True)
    serving.apply(FULL)
    ids, rows = SOURCE.scan_chunk(1)
    np.testing.assert_array_equal(serving.pull(ids), rows.embeddings)
    with pytest.raises(InvalidArgumentError):
        serving.push(ids, rows.embeddings, now_ms=0)


def test_a_delta_of_an_unchanged_chunk_is_empty() -> None:
    states = SOURCE.chunk_states()
    delta = SOURCE.delta(0, int(states.incarnations[0]), int(states.versions[0]))
    assert len(delta) < 200
