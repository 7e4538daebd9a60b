"""Placement is the same everywhere: an id's chunk, a chunk's shard, and the native split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore import placement
from embedstore.errors import InvalidArgumentError

chunk_counts = st.integers(0, 10).map(lambda bits: 1 << bits)


def mix(value: int) -> int:
    mask = 2**64 - 1
    value ^= value >> 30
    value = value * 0xBF58476D1CE4E5B9 & mask
    value ^= value >> 27
    value = value * 0x94D049BB133111EB & mask
    return value ^ value >> 31


@given(keys=st.lists(st.integers(0, 2**64 - 1), max_size=50), num_chunks=chunk_counts)
def test_the_chunk_is_the_top_bits_of_the_mix(keys: list[int], num_chunks: int) -> None:
    found = placement.chunks_of_ids(np.array(keys, np.uint64), num_chunks)
    assert found.tolist() == [mix(key) * num_chunks >> 64 for key in keys]


@given(num_chunks=chunk_counts, num_shards=st.integers(1, 70))
def test_every_chunk_has_exactly_one_shard(num_chunks: int, num_shards: int) -> None:
    owners = [
        (chunk, shard)
        for shard in range(num_shards)
        for chunk in placement.chunks_of_shard(shard, num_shards, num_chunks)
    ]
    assert owners == [(chunk, placement.shard_of_chunk(chunk, num_shards, num_chunks)) for chunk in range(num_chunks)]


@given(
    keys=st.lists(st.integers(0, 2**64 - 1), max_size=80),
    num_chunks=st.integers(4, 10).map(lambda bits: 1 << bits),
    num_shards=st.integers(1, 16),
)
def test_split_keeps_order_and_sends_every_id_to_its_owner(keys: list[int], num_chunks: int, num_shards: int) -> None:
    ids = np.array(keys, np.uint64)
    owners = [
        placement.shard_of_chunk(int(c), num_shards, num_chunks) for c in placement.chunks_of_ids(ids, num_chunks)
    ]
    parts = placement.split(ids, num_chunks, num_shards)
    for shard, positions in enumerate(parts):
        expected = [i for i, owner in enumerate(owners) if owner == shard]
        assert (list(range(len(ids))) if positions is None else positions.tolist()) == expected


def test_dense_sets_are_spread_and_stay_where_they_are() -> None:
    shards = [placement.shard_of_dense_set(f"set-{i}", 4) for i in range(200)]
    assert set(shards) == {0, 1, 2, 3}
    assert shards == [placement.shard_of_dense_set(f"set-{i}", 4) for i in range(200)]
    assert placement.shard_of_dense_set("any", 1) == 0


@pytest.mark.parametrize(("shard", "num_shards", "field"), [(2, 2, "shard"), (-1, 2, "shard"), (0, 0, "num_shards")])
def test_impossible_shards_are_refused_by_name(shard: int, num_shards: int, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        placement.chunks_of_shard(shard, num_shards, 8)
    assert caught.value.field == field
