"""Stores that have everything a store can have, and all that is in them bit for bit: for tests that move stores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import COUNTED, STREAM, ones
from delta_reader import read_delta

import embedstore as es
from embedstore.placement import shard_of_dense_set, split
from embedstore.store import LocalStore

NOW_MS = 1_700_000_000_000
COUNTING = es.TableSpec(
    "counting", dim=3, optimizer=es.Adagrad(lr=0.1), num_chunks=16, admission=es.MinCount(2), ttl_s=1000.0
)
TABLES = (COUNTED, COUNTING)
OTHER = "file/other/0"
DENSE = ("a", "b", "c", "model")


def open_shard(path: Path, shard: int = 0, num_shards: int = 1, **options: Any) -> LocalStore:
    return LocalStore(path, TABLES, shard=shard, num_shards=num_shards, clock_ms=lambda: NOW_MS, **options)


def push_all(stores: Sequence[LocalStore], ids: np.ndarray, begin: int, end: int, time_ms: int = NOW_MS) -> None:
    """Every shard takes its share of the ids, as from a client."""
    for shard, store in enumerate(stores):
        parts = {}
        for spec in TABLES:
            places = split(ids, spec.num_chunks, len(stores))[shard]
            own = ids if places is None else ids[places]
            parts[spec.name] = (own, ones(len(own), spec.dim))
        store.push(parts, origins=[es.Origin(STREAM, begin, end)], event_time_ms=time_ms)


def make(path: Path, num_shards: int, **options: Any) -> list[Path]:
    """Directories of shards with bases, deltas, removals, counts below admission, streams and dense sets."""
    rng = np.random.default_rng(num_shards)
    paths = [path / f"{num_shards}-{shard}" for shard in range(num_shards)]
    stores = [open_shard(each, shard, num_shards, **options) for shard, each in enumerate(paths)]
    for store in stores:
        store.open_stream(STREAM, 5)
        store.open_stream(STREAM, 0)
    for step in range(4):
        push_all(stores, rng.integers(0, 150, 200, np.uint64), 5 + step, 6 + step, NOW_MS - 5000 + 1000 * step)
        for shard, store in enumerate(stores):
            keys = np.arange(step * 7, step * 7 + 5, dtype=np.uint64)
            places = split(keys, COUNTED.num_chunks, num_shards)[shard]
            store.delete("items", keys if places is None else keys[places])
            store.checkpoint()
    for store in stores:
        store.open_stream(OTHER, 3)
    for number, name in enumerate(DENSE):
        store = stores[shard_of_dense_set(name, num_shards)]
        store.put_dense(name, {"w": np.full(4, number)}, {STREAM: 7})
    for store in stores:
        store.close()
    return paths


def whole(paths: Sequence[Path]) -> dict[str, Any]:
    """What all shards hold together, bit for bit: everything that a delta has except whose history it is."""
    found: dict[str, Any] = {"chunks": {}, "streams": {}, "dense": {}}
    for shard, path in enumerate(paths):
        with open_shard(path, shard, len(paths)) as store:
            for name, table in store.table_map().items():
                found["chunks"] |= {(name, chunk): chunk_content(table.delta(chunk)) for chunk in table.chunks}
            found["streams"][shard] = store.open_streams()
            for name, each in store.dense_sets().items():
                assert shard_of_dense_set(name, len(paths)) == shard
                found["dense"][name] = (each.tensors["w"].tolist(), dict(each.position), each.version)
    assert len({json.dumps(each, sort_keys=True) for each in found["streams"].values()}) == 1
    found["streams"] = found["streams"][0]
    return found


def chunk_content(delta: bytes) -> dict[str, Any]:
    """All of a full delta that does not depend on where its rows lie."""
    read = read_delta(delta)
    columns = (read.ids, read.versions, read.first_seen_s, read.last_seen_s, read.updates)
    values = zip(*(column.tolist() for column in columns), read.embeddings, read.states, strict=True)
    return {
        "rows": sorted((*numbers, row.tobytes(), state.tobytes()) for *numbers, row, state in values),
        "gone": sorted(zip(read.tombstone_ids.tolist(), read.tombstone_reasons.tolist(), strict=True)),
        "counts": sorted(entry for block in read.sketch_blocks.values() for entry in block.values()),
        "sketch": (read.sketch_slots, read.sketch_halvings),
        "at": (read.to_version, read.clock_ms, read.watermarks),
    }
