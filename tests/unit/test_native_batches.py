"""Functions of the native module on batches of ids, against numpy and the definitions."""

from __future__ import annotations

import crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_optimizers import mix64
from model_table import chunk_of

from embedstore import _native
from embedstore.errors import InvalidArgumentError
from embedstore.ids import hash_ids
from embedstore.spec import SGD, TableSpec
from embedstore.table import Table

id_lists = st.lists(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 5)), max_size=200)


@given(id_lists)
def test_unique_keeps_first_occurrences_and_counts(ids: list[int]) -> None:
    distinct, inverse, counts = _native.unique(np.array(ids, np.uint64))
    assert distinct.tolist() == list(dict.fromkeys(ids))
    assert distinct[inverse].tolist() == ids
    assert counts.tolist() == [ids.count(key) for key in dict.fromkeys(ids)]


@given(id_lists, st.integers(1, 20))
def test_few_repeats_are_told_from_many(ids: list[int], repeats_min: int) -> None:
    array = np.array(ids, np.uint64)
    found = _native.repeated(array, repeats_min)
    if len(ids) - len(set(ids)) < repeats_min:
        assert found is None
    else:
        assert found is not None
        for got, expected in zip(found, _native.unique(array), strict=True):
            np.testing.assert_array_equal(got, expected)


@given(id_lists, st.sampled_from([1, 4, 256]), st.integers(1, 7))
def test_split_sends_every_id_to_the_shard_of_its_chunk(ids: list[int], num_chunks: int, num_shards: int) -> None:
    num_shards = min(num_shards, num_chunks)
    order, bounds = _native.split(np.array(ids, np.uint64), num_chunks, num_shards)
    assert sorted(order.tolist()) == list(range(len(ids)))
    for shard in range(num_shards):
        part = order[bounds[shard] : bounds[shard + 1]].tolist()
        assert part == sorted(part)
        owned = range(shard * num_chunks // num_shards, (shard + 1) * num_chunks // num_shards)
        assert all(chunk_of(ids[at], num_chunks) in owned for at in part)


def test_split_refuses_impossible_shards() -> None:
    ids = np.zeros(1, np.uint64)
    for chunks, shards in ((3, 1), (0, 1), (4, 0), (4, 5)):
        with pytest.raises(InvalidArgumentError):
            _native.split(ids, chunks, shards)


@given(id_lists)
def test_mix64_is_its_definition(ids: list[int]) -> None:
    assert _native.mix64(np.array(ids, np.uint64)).tolist() == [mix64(key) for key in ids]


@given(st.binary(max_size=300))
def test_crc32c_is_the_library_s(data: bytes) -> None:
    assert _native.crc32c(data) == crc32c.crc32c(data)


def test_messages_are_gathered_from_bytes_and_rows() -> None:
    table = Table(TableSpec("t", 5, optimizer=SGD(1.0)))
    ids = np.arange(40, dtype=np.uint64)
    table.assign(ids, np.random.default_rng(1).normal(size=(40, 5)), now_ms=0)
    message = _native.gather_message([b"abc", (table, ids, np.float32), b"", (table.native, ids[:3], np.float16), b"z"])
    half = table.pull(ids[:3], dtype=np.float16)
    assert message == b"abc" + table.pull(ids).tobytes() + half.tobytes() + b"z"
    np.testing.assert_array_equal(half, table.pull(ids[:3]).astype(np.float16))
    assert _native.gather_message([]) == b""


@pytest.mark.parametrize("num_ids", [1, 8, 3000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_answer_is_its_head_and_the_rows_of_the_ids_in_the_request(num_ids: int, dtype: type) -> None:
    table = Table(TableSpec("t", 5, optimizer=SGD(1.0)))
    ids = np.arange(num_ids, dtype=np.uint64)
    table.assign(ids, np.random.default_rng(1).normal(size=(num_ids, 5)), now_ms=0)
    width = np.dtype(dtype).itemsize
    message = _native.answer_pull(table.native, b"-" * 16 + ids.tobytes(), 16, num_ids, b"12345678", width)
    expected = table.pull(ids, dtype=dtype)
    assert message == b"12345678" + expected.tobytes()
    assert table.native.counters()["pulled_rows"] == 2 * num_ids
    rows = _native.rows_of(message, 8, num_ids, 5, width)
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == dtype and rows.flags.writeable and rows.flags.aligned
    del message
    rows += 1
    np.testing.assert_array_equal(rows, expected + 1)


@pytest.mark.parametrize(("at", "count"), [(1, 1), (24, 0), (8, 2), (0, 3), (8, 2**61)])
def test_ids_outside_the_request_are_refused(at: int, count: int) -> None:
    table = Table(TableSpec("t", 5, optimizer=SGD(1.0)))
    with pytest.raises(InvalidArgumentError, match="ids_at"):
        _native.answer_pull(table.native, bytes(16), at, count, b"", 4)


@pytest.mark.parametrize(
    ("at", "rows", "dim", "width"), [(0, 5, 1, 4), (17, 0, 1, 4), (1, 1, 1, 4), (0, 1, 0, 4), (0, 2**62, 4, 4)]
)
def test_rows_outside_the_message_are_refused(at: int, rows: int, dim: int, width: int) -> None:
    with pytest.raises(InvalidArgumentError, match="at"):
        _native.rows_of(bytes(16), at, rows, dim, width)


def test_text_ids_are_fixed_for_all_time() -> None:
    assert hash_ids(["", "a", "ü"]).tolist() == [0xB4B2797457A0A6E4, 0x2F42665B399EF840, 0x372F39C1F59DF155]
    assert hash_ids([]).shape == (0,)
    assert len(set(hash_ids([f"user-{i}" for i in range(10_000)]).tolist())) == 10_000
    for bad in ("one text", [1, 2], ["\ud800"], 3):
        with pytest.raises(InvalidArgumentError, match="strings"):
            hash_ids(bad)  # type: ignore[arg-type]
