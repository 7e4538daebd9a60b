"""The state of a server under fuzzing: how it begins, and what can be seen of it, from a glance to every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from valid_messages import CLIENT, CLOCK_MS, DENSE, EPOCH, STREAM, STREAM_BEGIN, TABLES, K

import embedstore as es
from embedstore.server.serving import Serving
from embedstore.store import LocalStore

ROWS_MAX = 500
NAMES_MAX = 24
CHUNKS_MAX = 64


def populate(store: LocalStore) -> None:
    """The first state: rows, a stream, a client's stream and a dense set."""
    keys = np.array(K[:12], np.uint64)
    store.push({"items": (keys, np.ones((len(keys), 2), np.float32))}, event_time_ms=CLOCK_MS - 1000)
    for _ in range(2):
        store.push({"users": (keys, np.ones((len(keys), 3), np.float32))}, event_time_ms=CLOCK_MS - 1000)
    store.open_stream(STREAM, 0)
    items = {"items": (keys[:2], np.ones((2, 2), np.float32))}
    store.push(items, origins=[es.Origin(STREAM, 0, STREAM_BEGIN)])
    store.push(items, origins=[es.Origin(CLIENT, 0, 1)])
    store.put_dense(DENSE, {"w": np.ones((2, 2), np.float32)}, {STREAM: STREAM_BEGIN})


def signature(serving: Serving) -> tuple[Any, ...]:
    """Of everything that a call can change, something that changes with it: fast."""
    store = serving.store()
    tables = [
        (table.spec, len(table), *[column.tobytes() for column in table.native.chunk_states()], table.watermarks())
        for table in store.table_map().values()
    ]
    dense_sets = [(name, id(value), value.version) for name, value in store.dense_sets().items()]
    state = (serving.topology, serving.fenced, serving.shard, tables, dense_sets)
    if not isinstance(store, LocalStore):
        return state
    known = store._streams._known.values()
    streams = [(stream.name, stream.begin, stream.position, stream.generation) for stream in known]
    return (*state, streams, store._streams._durable, store.membership.topology, store.membership.previous)


def standbys(serving: Serving) -> tuple[Any, ...]:
    """What standbys leave behind."""
    store = serving.store()
    return (store.membership.acquaintances, store.standbys()) if isinstance(store, LocalStore) else ()


def digest(serving: Serving) -> list[Any]:
    """All of every table, row by row, and of every dense set."""
    store = serving.store()
    found: list[Any] = [serving.topology, serving.fenced, store.tables(), store.open_streams(), store.stream_states()]
    for name, table in store.table_map().items():
        found.append((name, [table.delta(chunk) for chunk in table.chunks], table.watermarks()))
    for name, dense_set in store.dense_sets().items():
        tensors = [(key, array.dtype, array.shape, array.tobytes()) for key, array in dense_set.tensors.items()]
        found.append((name, tensors, dense_set.position, dense_set.version))
    return found


def kept(serving: Serving) -> list[Any]:
    """What a restart must bring back."""
    store = serving.store()
    found: list[Any] = [serving.topology, serving.fenced, store.tables(), store.open_streams(), store.dense_versions()]
    for name, table in sorted(store.table_map().items()):
        marks = {chunk: known for known, chunks in table.watermarks() for chunk in chunks}
        rows = [(ids.tobytes(), each.embeddings.tobytes(), each.updates.tobytes()) for ids, each in store.scan(name)]
        found.append((name, marks, rows))
    return found


def grown(serving: Serving, role: str) -> bool:
    """Whether the state is no longer like the first one, or takes more than it should."""
    store = serving.store()
    tables = store.table_map()
    if {name: table.spec for name, table in tables.items()} != {each.name: each for each in TABLES}:
        return True
    if serving.fenced != (role == "fenced") or serving.topology.epoch > EPOCH + serving.fenced:
        return True
    if sum(map(len, tables.values())) > ROWS_MAX or len(store.dense_sets()) > NAMES_MAX:
        return True
    return isinstance(store, LocalStore) and (
        len(store._streams._known) > NAMES_MAX or len(store.membership.acquaintances) > NAMES_MAX
    )


def drop_large_tables(serving: Serving) -> None:
    """A table of many chunks makes every further look at the state slow."""
    store = serving.store()
    if isinstance(store, LocalStore):
        for name, table in store.table_map().items():
            if len(table.chunks) > CHUNKS_MAX:
                store.drop_table(name)
