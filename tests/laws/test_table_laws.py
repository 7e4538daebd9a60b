"""Laws of one table: every id its own row, pure initial values, counts that add up, deltas that cannot do harm."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_optimizers import initial_embedding
from model_table import chunk_of

from embedstore import _native
from embedstore.errors import GapError, InvalidArgumentError, UnknownStreamError, WrongShardError
from embedstore.interface import Origin
from embedstore.spec import SGD, Adagrad, TableSpec, Uniform
from embedstore.table import Table

MASK = 2**64 - 1
any_id = st.integers(0, MASK)


def table_of(dim: int = 4, **fields: Any) -> Table:
    return Table(TableSpec("t", dim, **({"optimizer": SGD(1.0)} | fields)))


def uint64(*ids: int) -> np.ndarray:
    return np.array(ids, np.uint64)


def digest(table: Table) -> list[bytes]:
    return [table.delta(chunk) for chunk in table.chunks]


# --- rows


@pytest.mark.parametrize("ids", ["random", "consecutive", "multiples"])
def test_every_id_has_its_own_row(ids: str) -> None:
    count = 400_000
    rng = np.random.default_rng(1)
    keys = {
        "random": rng.permutation(np.unique(rng.integers(0, MASK, count, dtype=np.uint64))),
        "consecutive": np.arange(count, dtype=np.uint64),
        "multiples": np.arange(count, dtype=np.uint64) << np.uint64(32),
    }[ids]
    table = table_of(2)
    gradients = np.stack([-np.arange(len(keys)) // 1000, -(np.arange(len(keys)) % 1000)], axis=1).astype(np.float32)
    for part in np.array_split(np.arange(len(keys)), 50):
        table.push(keys[part], gradients[part], now_ms=0)
    order = rng.permutation(len(keys))
    np.testing.assert_array_equal(table.pull(keys[order]), -gradients[order])
    assert len(table) == len(keys)
    assert not table.contains(keys + np.uint64(2**31 + 7)).any()


@given(keys=st.lists(any_id, unique=True, max_size=50), others=st.lists(any_id, max_size=20))
def test_no_id_is_special(keys: list[int], others: list[int]) -> None:
    table = table_of()
    keys += [key for key in (0, 1, MASK, 2**63) if key not in keys]
    rows = np.arange(len(keys) * 4, dtype=np.float32).reshape(-1, 4)
    table.assign(uint64(*keys), rows, now_ms=0)
    np.testing.assert_array_equal(table.pull(uint64(*keys)), rows)
    assert table.contains(uint64(*others)).tolist() == [other in keys for other in others]
    assert table.delete(uint64(*keys)) == len(keys) and len(table) == 0


def test_signed_ids_are_the_same_64_bits() -> None:
    table = table_of()
    table.assign(np.array([-1, -5], np.int64), np.ones((2, 4), np.float32), now_ms=0)
    assert table.contains(uint64(MASK, MASK - 4)).all()


def unmix(hashed: int) -> int:
    """The id with this hash: mix64 is a bijection, so collisions can be chosen."""

    def unshift(x: int, by: int) -> int:
        result = x
        for _ in range(64 // by + 1):
            result = x ^ (result >> by)
        return result

    x = unshift(hashed, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    x = unshift(x, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return unshift(x, 30)


def test_ids_chosen_to_collide_keep_their_own_rows() -> None:
    keys = uint64(*(unmix(top << 48 | 0xABCDEF) for top in range(400)))
    assert (_native.mix64(keys) & np.uint64(2**48 - 1) == 0xABCDEF).all()
    table = table_of(1, num_chunks=1)
    rows = np.arange(len(keys), dtype=np.float32)[:, None]
    table.assign(keys, rows, now_ms=0)
    np.testing.assert_array_equal(table.pull(keys), rows)
    assert table.delete(keys[::2]) == 200
    assert table.contains(keys).tolist() == [False, True] * 200
    assert table.memory_bytes < 2**20


def test_deleted_slots_are_used_again() -> None:
    table = Table(TableSpec("t", 16, optimizer=SGD(1.0)), tombstones_max=8)
    rows = np.ones((20_000, 16), np.float32)
    rng = np.random.default_rng(2)
    table.assign(rng.integers(0, MASK, 20_000, dtype=np.uint64), rows, now_ms=0)
    before = table.memory_bytes
    for _ in range(20):
        ids = np.concatenate([table.scan_chunk(chunk)[0][:10] for chunk in table.chunks])
        assert table.delete(ids) == len(ids)
        table.assign(rng.integers(0, MASK, len(ids), dtype=np.uint64), rows[: len(ids)], now_ms=0)
    assert table.memory_bytes < before * 1.2
    assert len(table) == 20_000


def test_duplicates_in_a_push_are_summed_and_counted_once() -> None:
    table = table_of(3)
    grads = np.arange(15, dtype=np.float32).reshape(5, 3)
    table.push(uint64(7, 9, 7, 7, 9), -grads, now_ms=0)
    rows = table.pull_rows(uint64(7, 9))
    np.testing.assert_array_equal(rows.embeddings, [grads[[0, 2, 3]].sum(0), grads[[1, 4]].sum(0)])
    assert rows.updates.tolist() == [1, 1]


def test_memory_stays_within_its_budget() -> None:
    assert Table(TableSpec("t", 64, optimizer=Adagrad(0.1))).memory_bytes <= 2**20
    table = table_of(64, optimizer=Adagrad(0.1), num_chunks=4)
    rng = np.random.default_rng(3)
    rows = np.zeros((10_000, 64), np.float32)
    least = float("inf")
    for _ in range(20):
        table.assign(rng.integers(0, MASK, len(rows), dtype=np.uint64), rows, now_ms=0)
        least = min(least, table.memory_bytes / len(table) - 4 * 64 * 2)
    assert least <= 40, f"{least:.1f} bytes a row above its floats at the best load"


# --- initial values


def test_uniform_values_fill_their_range_evenly() -> None:
    values = Table(TableSpec("t", 64, init=Uniform(2.0, seed=5), on_miss="init")).pull(np.arange(20_000)).ravel()
    assert values.min() >= -2.0 and values.max() < 2.0
    counts, _ = np.histogram(values, bins=64, range=(-2, 2))
    expected = len(values) / 64
    assert ((counts - expected) ** 2 / expected).sum() < 130  # chi-square, 63 degrees of freedom
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.005


def test_a_first_push_starts_from_the_initial_value() -> None:
    spec = TableSpec("t", 4, optimizer=SGD(0.5), init=Uniform(0.1, seed=1))
    table = Table(spec)
    assert not table.pull(uint64(3)).any()  # on_miss is zeros
    table.push(uint64(3), np.ones((1, 4), np.float32), now_ms=0)
    np.testing.assert_array_equal(table.pull(uint64(3))[0], initial_embedding(spec.init, 3, 4) - np.float32(0.5))


# --- refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (40, 2), (99, 4)])
def test_a_number_that_is_not_finite_refuses_the_whole_batch(bad: float, at: tuple[int, int]) -> None:
    table = table_of(5)
    values = np.ones((100, 5), np.float32)
    values[at] = bad
    with pytest.raises(InvalidArgumentError, match=rf"row {at[0]}, number {at[1]}") as refused:
        table.push(np.arange(100), values, now_ms=0)
    assert refused.value.field == "t.grads"
    with pytest.raises(InvalidArgumentError) as refused:
        table.assign(np.arange(100), values, now_ms=0)
    assert refused.value.field == "t.rows"
    assert len(table) == 0 and not table.chunk_states().versions.any()


def test_bad_arguments_are_named() -> None:
    table = table_of()
    ids, grads = uint64(1, 2), np.ones((2, 4), np.float32)
    sound: dict[str, Any] = {"grads": grads, "now_ms": 0}
    cases: dict[str, dict[str, Any]] = {
        "t.grads": {"grads": grads[:1]},
        "t.counts": {"counts": [1, -1]},
        "t.event_times_ms": {"event_times_ms": [5, -1]},
        "t.event_time_ms": {"event_times_ms": -1},
        "t.lr": {"lr": float("nan")},
        "now_ms": {"now_ms": -1},
    }
    for field, change in cases.items():
        with pytest.raises(InvalidArgumentError) as refused:
            table.push(ids, **(sound | change))
        assert refused.value.field == field
    with pytest.raises(InvalidArgumentError, match="twice"):
        table.push(ids, grads, now_ms=0, origins=[Origin("s", 0, 1), Origin("s", 1, 2)])
    assert len(table) == 0


def test_an_id_of_another_shard_refuses_the_whole_batch() -> None:
    spec = TableSpec("t", 2, optimizer=SGD(1.0), num_chunks=8)
    table = Table(spec, chunks=range(2, 5))
    keys = list(range(100))
    mine = uint64(*(key for key in keys if chunk_of(key, 8) in range(2, 5)))
    table.push(mine, np.ones((len(mine), 2), np.float32), now_ms=0)
    before = digest(table)
    for call in (
        lambda: table.pull(np.arange(100)),
        lambda: table.contains(np.arange(100)),
        lambda: table.delete(np.arange(100)),
        lambda: table.push(np.arange(100), np.ones((100, 2), np.float32), now_ms=0),
        lambda: table.delta(5),
        lambda: table.apply(Table(spec).delta(0)),
    ):
        with pytest.raises(WrongShardError):
            call()
    assert digest(table) == before


def test_future_times_count_as_a_minute_ahead() -> None:
    table = table_of(1)
    table.push(uint64(1), np.ones((1, 1)), now_ms=1_000_000, event_times_ms=9_000_000)
    assert table.pull_rows(uint64(1)).last_seen_s.tolist() == [1060]
    assert table.chunk_states().clocks_ms.max() == 1_060_000


# --- origins


def test_a_gap_in_one_chunk_refuses_the_push_in_all() -> None:
    table = table_of(2, num_chunks=8)
    table.open_stream("s", 10)
    table.set_watermarks(3, {"s": 20}, 0)
    before = digest(table)
    for origin in (Origin("s", 10, 25), Origin("s", 20, 25), Origin("s", 5, 15)):
        with pytest.raises(GapError) as refused:
            table.push(np.arange(50), np.ones((50, 2), np.float32), now_ms=0, origins=[origin])
        assert refused.value.watermarks == {"s": [10, 20]}
    with pytest.raises(UnknownStreamError):
        table.push(np.arange(50), np.ones((50, 2), np.float32), now_ms=0, origins=[Origin("x", 10, 25)])
    assert digest(table) == before
    table.push(np.arange(50), -np.ones((50, 2), np.float32), now_ms=0, origins=[Origin("s", 10, 20)])
    ids, _ = table.scan_chunk(3)
    assert len(ids) == 0 and len(table) == sum(chunk_of(key, 8) != 3 for key in range(50))
    assert table.watermarks() == [({"s": 20}, list(range(8)))]


def test_watermarks_move_without_a_version() -> None:
    table = table_of()
    table.open_stream("s", 0)
    table.push(uint64(), np.zeros((0, 4), np.float32), now_ms=0, origins=[Origin("s", 0, 7)])
    assert not table.chunk_states().versions.any()
    assert table.watermarks() == [({"s": 7}, list(table.chunks))]


# --- threads


def test_threads_lose_no_update() -> None:
    table = table_of(8, num_chunks=16)
    table.open_stream("shared", 0)
    ids = np.arange(3000)
    ones = -np.ones((3000, 8), np.float32)
    failures: list[BaseException] = []
    done = threading.Event()

    def push(stream: str) -> None:
        try:
            table.open_stream(stream, 0)
            for i in range(25):
                table.push(ids, ones, now_ms=0, origins=[Origin(stream, i, i + 1)])
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        try:
            while not done.is_set():
                rows = table.pull(ids)
                assert (rows == rows[:, :1]).all() and (rows % 1 == 0).all() and (rows >= 0).all()
                table.scan_chunk(3)
                len(table)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=push, args=(f"s{i}",)) for i in range(4)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not failures
    assert (table.pull(ids) == 100).all() and (table.pull_rows(ids).updates == 100).all()
    assert [marks for marks, _ in table.watermarks()] == [{"shared": 0, **{f"s{i}": 25 for i in range(4)}}]
