"""Where an id lives: id -> chunk -> shard. Pure functions, the same in every process, usable from any thread.

The chunk is the top bits of the id's 64-bit mix (the finalizer of splitmix64, Steele et al. 2014), so that chunks are
contiguous ranges of mixed ids. Of a table of C chunks, shard i of n owns ``[i * C // n, (i + 1) * C // n)``: growing
from n to m shards moves whole ranges only.
"""

from __future__ import annotations

import numpy as np

from embedstore import _native
from embedstore.errors import InvalidArgumentError
from embedstore.ids import hash_ids

NUM_SHARDS_MAX = 1 << 12
_DENSE_CHUNKS = 256


def chunks_of_shard(shard: int, num_shards: int, num_chunks: int) -> range:
    """The chunks that shard ``shard`` of ``num_shards`` owns, of a table of ``num_chunks``."""
    check_shard(shard, num_shards)
    return range(shard * num_chunks // num_shards, (shard + 1) * num_chunks // num_shards)


def shard_of_chunk(chunk: int, num_shards: int, num_chunks: int) -> int:
    """The shard that owns ``chunk``: the largest i with ``i * num_chunks // num_shards <= chunk``."""
    if not 0 <= chunk < num_chunks:
        raise InvalidArgumentError("chunk", f"must be in [0, {num_chunks}), not {chunk}")
    return ((chunk + 1) * num_shards - 1) // num_chunks


def chunks_of_ids(ids: np.ndarray, num_chunks: int) -> np.ndarray:
    """The chunk of each id: uint32 [n] for uint64 [n] ids; ``num_chunks`` is a power of two."""
    if num_chunks == 1:
        return np.zeros(len(ids), dtype=np.uint32)
    bits = num_chunks.bit_length() - 1
    chunks: np.ndarray = np.right_shift(np.asarray(_native.mix64(ids)), np.uint64(64 - bits)).astype(np.uint32)
    return chunks


def split(ids: np.ndarray, num_chunks: int, num_shards: int) -> list[np.ndarray | None]:
    """For each shard the positions (in their order) of the ids it owns; None stands for all of them."""
    if num_shards == 1:
        return [None]
    order, bounds = _native.split(ids, num_chunks, num_shards)
    return [order[bounds[i] : bounds[i + 1]] for i in range(num_shards)]


def shard_of_dense_set(name: str, num_shards: int) -> int:
    """The one shard that holds the dense set ``name`` whole."""
    return shard_of_chunk(int(hash_ids([name])[0]) % _DENSE_CHUNKS, num_shards, _DENSE_CHUNKS)


def check_shard(shard: int, num_shards: int) -> None:
    """Raise :class:`InvalidArgumentError` unless ``shard`` of ``num_shards`` can exist."""
    for label, value, low, high in (("num_shards", num_shards, 1, NUM_SHARDS_MAX), ("shard", shard, 0, num_shards - 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidArgumentError(label, f"must be an integer in [{low}, {high}], not {value!r}")
