"""Laws of admission through an open store: hardly ever early, never late, and the counts outlive a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from delta_reader import read_delta

import embedstore as es
from embedstore.store import LocalStore

DIM = 2
BATCH = 8192
NUM_IDS = 120_000


def store_of(admission: es.Admission, path: Path | None = None, **fields: Any) -> LocalStore:
    spec = es.TableSpec("t", dim=DIM, optimizer=es.SGD(lr=1.0), admission=admission, **fields)
    return es.open(path, tables=[spec])


def push(store: LocalStore, ids: np.ndarray, counts: np.ndarray | None = None) -> None:
    for at in range(0, len(ids), BATCH):
        part = ids[at : at + BATCH]
        grads = np.ones((len(part), DIM), np.float32)
        store.push({"t": es.TablePush(part, grads, counts=None if counts is None else counts[at : at + BATCH])})


def admitted(store: LocalStore, ids: np.ndarray) -> np.ndarray:
    return store.contains("t", ids)


@pytest.mark.parametrize("threshold", [2, 5, 1000])
@pytest.mark.parametrize("kind", ["sequential", "random"])
def test_at_most_one_id_in_a_hundred_gets_its_row_too_early_and_none_too_late(kind: str, threshold: int) -> None:
    rng = np.random.default_rng(threshold)
    ids = np.arange(NUM_IDS, dtype=np.uint64) if kind == "sequential" else rng.integers(0, 2**64, NUM_IDS, np.uint64)
    with store_of(es.MinCount(threshold)) as store:
        push(store, ids, np.full(len(ids), threshold - 1, np.uint32))
        early = np.count_nonzero(admitted(store, ids))
        assert early <= len(ids) // 100
        stats = store.stats().tables["t"]
        assert stats.sketch_halvings == 0
        assert stats.dropped_rows == len(ids) - int(early)
        assert stats.sketch_bytes <= 16 << 20
        push(store, ids, np.ones(len(ids), np.uint32))
        assert admitted(store, ids).all()


@pytest.mark.parametrize("threshold", [2, 5, 1000])
def test_a_zipf_stream_admits_what_came_often_enough_and_hardly_anything_else(threshold: int) -> None:
    rng = np.random.default_rng(threshold)
    ids = np.minimum(rng.zipf(1.05, 400_000), 2**62).astype(np.uint64)
    with store_of(es.MinCount(threshold)) as store:
        push(store, ids)
        distinct, occurrences = np.unique(ids, return_counts=True)
        has_row = admitted(store, distinct)
        assert has_row[occurrences >= threshold].all()
        assert np.count_nonzero(has_row[occurrences < threshold]) <= len(distinct) // 100
        assert len(distinct) > 50_000 and has_row.any()


def test_occurrences_of_one_push_count_together_however_they_are_given() -> None:
    ids = np.array([7, 8, 7, 9, 7], np.uint64)
    with store_of(es.MinCount(3)) as store:
        push(store, ids)
        np.testing.assert_array_equal(admitted(store, np.array([7, 8, 9], np.uint64)), [True, False, False])
        push(store, np.array([8, 9], np.uint64), np.array([2, 1], np.uint32))
        np.testing.assert_array_equal(admitted(store, np.array([7, 8, 9], np.uint64)), [True, True, False])
        push(store, np.array([9], np.uint64), np.array([0], np.uint32))
        assert not admitted(store, np.array([9], np.uint64)).any()
        rows = store.pull({"t": np.array([7, 8], np.uint64)})["t"]
        np.testing.assert_array_equal(rows, [[-3.0] * DIM, [-1.0] * DIM])


def needed(p: float, seed: int, key: int) -> int:
    """The occurrence that admits an id, as admission.h describes it."""

    def mix(x: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = ((x ^ (x >> shift)) * factor) & (2**64 - 1)
        return x ^ (x >> 31)

    v = (2**53 - (mix(key ^ mix(seed)) >> 11)) * 2.0**-53
    powers: list[float] = []
    power = 1.0 - p
    while len(powers) < 32 and power > v:
        powers.append(power)
        power *= power
    failures, chance = 0, 1.0
    for j in reversed(range(len(powers))):
        if chance * powers[j] > v:
            chance *= powers[j]
            failures += 1 << j
    return min(failures + 1, 2**32 - 1)


@pytest.mark.parametrize("p", [1.0, 0.3, 0.02])
def test_probability_admits_at_the_occurrence_drawn_from_seed_and_id(p: float) -> None:
    ids = np.arange(2000, dtype=np.uint64)
    expected = np.array([needed(p, 5, int(key)) for key in ids])
    assert abs(expected.mean() * p - 1) < 0.2
    with store_of(es.Probability(p, seed=5)) as store:
        for occurrence in range(1, 41):
            push(store, ids)
            np.testing.assert_array_equal(admitted(store, ids), expected <= occurrence)


@pytest.mark.parametrize("memory_bytes", [0, 1 << 14])
def test_counts_outlive_close_and_open_bit_for_bit(tmp_path: Path, memory_bytes: int) -> None:
    rng = np.random.default_rng(3)
    admission = es.MinCount(4, memory_bytes=memory_bytes)
    with store_of(admission, tmp_path / "a", num_chunks=4) as store:
        push(store, rng.integers(0, 5000, 6000).astype(np.uint64))
        store.checkpoint()
        push(store, rng.integers(0, 5000, 3000).astype(np.uint64))
        store.checkpoint()
        table = store.table("t")
        before = [read_delta(table.delta(chunk)) for chunk in table.chunks]
        standby = es.table.Table(table.spec)
        for chunk in table.chunks:
            standby.apply(table.delta(chunk))
    with store_of(admission, tmp_path / "a", num_chunks=4) as store:
        for source in (store.table("t"), standby):
            after = [read_delta(source.delta(chunk)) for chunk in source.chunks]
            for one, other in zip(before, after, strict=True):
                assert one.sketch_slots and one.sketch_blocks == other.sketch_blocks
                assert (one.sketch_slots, one.sketch_halvings) == (other.sketch_slots, other.sketch_halvings)
        assert any(read.sketch_halvings for read in before) == bool(memory_bytes)
