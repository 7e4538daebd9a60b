"""Every implementation of the store, opened the same way for the tests that all of them have to pass.

``STORE_FACTORIES`` maps a name to a function ``(directory, tables) -> context manager of StoreHandle``. To add an
implementation, add an entry here (or register one from a fixture module before collection).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store import ModelStore

import embedstore as es
from embedstore.interface import Store
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard
from embedstore.spec import TableSpec


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class StoreHandle:
    """An open store, and how another writer of the same data gets at it (with generations of its own)."""

    store: Store
    writer: Callable[[], Store]


StoreFactory = Callable[[Path, Sequence[TableSpec]], AbstractContextManager[StoreHandle]]


class Writer:
    """One writer of a store that lives in this process: remembers the generations that it was given, as a remote client
    does, instead of being the owner whose generation is always the present one."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._generations: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def open_stream(self, stream: str, position: int) -> es.StreamState:
        state: es.StreamState = self._store.open_stream(stream, position)
        self._generations[stream] = state.generation
        return state

    def push(self, tables: Mapping[str, Any], **options: Any) -> es.PushResult:
        result: es.PushResult = self._store.push(tables, **options, generations=self._generations)
        return result

    def put_dense(self, dense_set: str, tensors: Mapping[str, Any], position: Mapping[str, int]) -> int:
        version: int = self._store.put_dense(dense_set, tensors, position, self._generations)
        return version


@contextmanager
def _model(directory: Path, tables: Sequence[TableSpec]) -> Iterator[StoreHandle]:
    store = ModelStore(tables, clock_ms=wall_clock_ms)
    yield StoreHandle(store, lambda: Writer(store))
    store.close()


@contextmanager
def _memory(directory: Path, tables: Sequence[TableSpec]) -> Iterator[StoreHandle]:
    with es.open(None, tables) as store:
        yield StoreHandle(store, lambda: Writer(store))


@contextmanager
def _path(directory: Path, tables: Sequence[TableSpec]) -> Iterator[StoreHandle]:
    with es.open(directory / "store", tables) as store:
        yield StoreHandle(store, lambda: Writer(store))


def _remote(num_shards: int) -> StoreFactory:
    @contextmanager
    def opened(directory: Path, tables: Sequence[TableSpec]) -> Iterator[StoreHandle]:
        with ExitStack() as stack:
            addresses = []
            for shard in range(num_shards):
                options = ShardOptions("127.0.0.1:0", shard, num_shards, directory / str(shard), tables)
                server = Shard(options)
                server.start()
                stack.callback(server.stop)
                addresses.append(server.address)

            def connect() -> Store:
                return stack.enter_context(es.connect(addresses, timeout_s=10.0, retry_s=10.0))

            yield StoreHandle(connect(), connect)

    return opened


STORE_FACTORIES: dict[str, StoreFactory] = {
    "model": _model,
    "memory": _memory,
    "path": _path,
    "remote-1": _remote(1),
    "remote-2": _remote(2),
}
