"""A shard server in a process of its own, over loopback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np

import embedstore as es
from benchmarks import data, processes, tables
from benchmarks.harness import Absent, Contender, Figures, Line, Settings, race
from benchmarks.raw_server import OPTIONS, SERVICE
from embedstore.v1 import store_pb2

RAW = "raw handler"
REDIS = "Redis MGET to numpy"
OURS = "RemoteStore"
STREAM = "bench/remote"
SMALL_IDS = 8
IN_FLIGHT = (1, 4)
RAW_THREADS = 8
PULL_BUDGETS = {
    1: {("ns/row", RAW): 1.3, ("ns/row", REDIS): 1 / 6},
    4: {("ns/row", RAW): 1.3, ("ns/row", REDIS): 1 / 8},
}


def remote(settings: Settings) -> list[Line]:
    """Pull, small pulls and push over loopback with 1 and 4 calls in flight, against the raw handler and Redis."""
    ids = data.ids_of(settings, np.arange(settings.rows, dtype=np.uint64))
    rows = data.some_rows(settings, settings.batch)
    sizes = _Sizes.of(settings)
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(dir=settings.work_dir)))
        raw_address = stack.enter_context(
            processes.raw_server(settings.rows, settings.dim, sizes.pull_overhead, sizes.push_reply, RAW_THREADS)
        )
        store = es.connect(stack.enter_context(processes.shard_server(work)))
        stack.callback(store.close)
        store.create_table(tables.spec(settings))
        store.open_stream(STREAM, 0)
        for part in data.slices(settings):
            store.assign("items", ids[part], rows[: part.stop - part.start])
        raw = stack.enter_context(_Raw(raw_address, settings.dim, sizes))
        redis = _redis(ids, rows, settings, stack)
        pool = stack.enter_context(ThreadPoolExecutor(max(IN_FLIGHT)))
        lines = []
        for in_flight in IN_FLIGHT:
            lines += _pulls(settings, pool, in_flight, ids, store, raw, redis)
            lines += _small_pulls(settings, pool, in_flight, ids, store, raw)
        for in_flight in IN_FLIGHT:
            lines += _pushes(settings, pool, in_flight, ids, rows, store, raw)
        return lines


@dataclass(frozen=True)
class _Sizes:
    """Bytes of our messages besides what every system must send: ids, rows and gradients."""

    pull_request: int
    pull_overhead: int
    push_request: int
    push_reply: int

    @classmethod
    def of(cls, settings: Settings) -> _Sizes:
        ids, rows = bytes(8 * settings.batch), bytes(4 * settings.batch * settings.dim)
        pull = store_pb2.TablePull(table="items", ids=ids, dtype=store_pb2.DTYPE_FLOAT32)
        found = store_pb2.TableRows(table="items", dim=settings.dim, dtype=store_pb2.DTYPE_FLOAT32, rows=rows)
        push = store_pb2.TablePush(table="items", ids=ids, dim=settings.dim, dtype=store_pb2.DTYPE_FLOAT32, grads=rows)
        origin = store_pb2.Origin(stream=STREAM, begin=1000, end=1001, generation=1)
        state = store_pb2.StreamState(stream=STREAM, applied=1001, watermarks=[1001], generation=1)
        return cls(
            pull_request=store_pb2.PullRequest(epoch=1, tables=[pull]).ByteSize() - len(ids),
            pull_overhead=store_pb2.PullResponse(tables=[found]).ByteSize() - len(rows),
            push_request=store_pb2.PushRequest(epoch=1, tables=[push], origins=[origin]).ByteSize()
            - len(ids)
            - len(rows),
            push_reply=store_pb2.PushResponse(streams=[state]).ByteSize(),
        )


class _Raw:
    """The client's side of the raw handler: messages of our sizes, nothing done to them."""

    def __init__(self, address: str, dim: int, sizes: _Sizes) -> None:
        self._channel = grpc.insecure_channel(address, OPTIONS)
        self._dim = dim
        self._sizes = sizes
        self._pull = self._channel.unary_unary(f"/{SERVICE}/Pull", None, None)
        self._push = self._channel.unary_unary(f"/{SERVICE}/Push", None, None)

    def pull(self, numbers: np.ndarray) -> np.ndarray:
        head = len(numbers).to_bytes(4, "little").ljust(self._sizes.pull_request, b"\0")
        reply = self._pull(head + numbers.tobytes(), wait_for_ready=True)
        return np.frombuffer(reply, np.float32, len(numbers) * self._dim, self._sizes.pull_overhead)

    def push(self, numbers: np.ndarray, grads: np.ndarray) -> None:
        head = len(numbers).to_bytes(4, "little").ljust(self._sizes.push_request, b"\0")
        self._push(b"".join((head, numbers.data, grads.data)), wait_for_ready=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()


def _seconds(
    pool: ThreadPoolExecutor, in_flight: int, call: Callable[[np.ndarray], object], batches: Sequence[np.ndarray]
) -> float:
    """Wall time of all batches with so many calls in flight."""

    def work(first: int) -> None:
        for batch in batches[first::in_flight]:
            call(batch)

    begin = perf_counter()
    for done in [pool.submit(work, first) for first in range(in_flight)]:
        done.result()
    return perf_counter() - begin


def _pulls(
    settings: Settings,
    pool: ThreadPoolExecutor,
    in_flight: int,
    ids: np.ndarray,
    store: Any,
    raw: _Raw,
    redis: Absent | Callable[[np.ndarray], object],
) -> list[Line]:
    def contender(name: str, call: Callable[[np.ndarray], object], by_id: bool) -> Contender:
        def run(number: int) -> Figures:
            numbers = data.uniform_batches(settings, number)
            batches = [ids[batch] for batch in numbers] if by_id else numbers
            num_rows = sum(map(len, batches))
            return {"ns/row": _seconds(pool, in_flight, call, batches) / num_rows * 1e9}

        return Contender(name, run)

    references = [
        contender(RAW, raw.pull, False),
        redis if isinstance(redis, Absent) else contender(REDIS, redis, True),
    ]
    ours = [contender(f"{OURS}.pull", lambda wanted: store.pull({"items": wanted}), True)]
    case = f"pull of {settings.batch} ids, {in_flight} in flight"
    return race(settings, "remote", case, ours, references, budgets=PULL_BUDGETS[in_flight])


def _small_pulls(
    settings: Settings, pool: ThreadPoolExecutor, in_flight: int, ids: np.ndarray, store: Any, raw: _Raw
) -> list[Line]:
    num_calls = 40 if settings.quick else 1000

    def contender(name: str, call: Callable[[np.ndarray], object], by_id: bool) -> Contender:
        def run(number: int) -> Figures:
            generator = np.random.default_rng((settings.seed, number + 1))
            numbers = list(generator.integers(0, settings.rows, (num_calls, SMALL_IDS), dtype=np.uint64))
            batches = [ids[batch] for batch in numbers] if by_id else numbers
            return {"calls/s": num_calls / _seconds(pool, in_flight, call, batches)}

        return Contender(name, run)

    return race(
        settings,
        "remote",
        f"pull of {SMALL_IDS} ids, {in_flight} in flight",
        [contender(f"{OURS}.pull", lambda wanted: store.pull({"items": wanted}), True)],
        [contender(RAW, raw.pull, False)],
        budgets={("calls/s", RAW): 0.8},
        higher_is_better=True,
    )


def _pushes(
    settings: Settings,
    pool: ThreadPoolExecutor,
    in_flight: int,
    ids: np.ndarray,
    grads: np.ndarray,
    store: Any,
    raw: _Raw,
) -> list[Line]:
    """One at a time with origins, whose order counts; several side by side without."""
    positions = count()

    def push(wanted: np.ndarray) -> None:
        at = next(positions)
        origins = [es.Origin(STREAM, at, at + 1)] if in_flight == 1 else []
        store.push({"items": (wanted, grads)}, origins=origins, event_time_ms=at)

    def contender(name: str, call: Callable[[np.ndarray], object], by_id: bool) -> Contender:
        def run(number: int) -> Figures:
            numbers = data.distinct_batches(settings, number)
            batches = [ids[batch] for batch in numbers] if by_id else numbers
            return {"ns/row": _seconds(pool, in_flight, call, batches) / sum(map(len, batches)) * 1e9}

        return Contender(name, run)

    return race(
        settings,
        "remote",
        f"push of {len(grads)} ids, Adagrad, {in_flight} in flight",
        [contender(f"{OURS}.push with{'' if in_flight == 1 else 'out'} origin", push, True)],
        [contender(f"{RAW} with known-row Adagrad", lambda numbers: raw.push(numbers, grads), False)],
        budgets={("ns/row", f"{RAW} with known-row Adagrad"): 1.3},
    )


def _redis(
    ids: np.ndarray, rows: np.ndarray, settings: Settings, stack: ExitStack
) -> Absent | Callable[[np.ndarray], object]:
    """A call that reads rows of ids from Redis into one array, or why there is none."""
    missing = processes.redis_absence()
    if missing:
        return Absent(REDIS, missing)
    import redis

    client: Any = redis.Redis(port=stack.enter_context(processes.redis_server()))
    stack.callback(client.close)
    for part in data.slices(settings):
        keys = [key.tobytes() for key in ids[part]]
        client.mset(dict(zip(keys, (row.tobytes() for row in rows), strict=False)))

    def pull(wanted: np.ndarray) -> np.ndarray:
        packed = wanted.tobytes()
        found = client.mget([packed[at : at + 8] for at in range(0, len(packed), 8)])
        return np.frombuffer(b"".join(found), np.float32).reshape(len(wanted), settings.dim)

    return pull
