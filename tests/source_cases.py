"""Sources of every kind over the same kind of content, with holes and bad records, and what they must give."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kafka_broker import TIMEOUT_MS, KafkaTopics

from trainer.events import ActivityEvent
from trainer.sources import Source, open_source
from trainer.sources.world import World, WorldSpec

NUM_RECORDS = 3000


@dataclass(frozen=True)
class SourceCase:
    """``truth``: the item id at each position of each stream that has an event. ``ends``: where the streams end."""

    open: Callable[[], Source]
    truth: dict[str, dict[int, int]]
    ends: dict[str, int]


def event(number: int) -> ActivityEvent:
    """An event that is told apart by its item."""
    return ActivityEvent(number % 7, number, "click", 1000 + number, session_id=number // 3)


def is_bad(number: int) -> bool:
    """Which records of a case are not events."""
    return number % 97 == 5


def jsonl_case(folder: Path) -> SourceCase:
    """With bad records and blank lines, read twice over."""
    lines = [b"" if k % 101 == 7 else b"{" if is_bad(k) else event(k).to_json() for k in range(NUM_RECORDS)]
    path = folder / "events.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return _file_case(path, {k: k for k, line in enumerate(lines) if len(line) > 1}, passes=2)


def csv_case(folder: Path) -> SourceCase:
    """With quotes, and rows that lack a cell."""
    lines = ["item_id,user_id,action,event_time_ms,other"]
    lines += ["1,2" if is_bad(k) else f'{k},"user, {k}",click,{1000 + k},x' for k in range(NUM_RECORDS)]
    path = folder / "events.csv"
    path.write_text("\r\n".join(lines))
    return _file_case(path, {k: k for k in range(NUM_RECORDS) if not is_bad(k)})


def parquet_case(folder: Path) -> SourceCase:
    """With null cells, and many row groups."""
    numbers = np.arange(NUM_RECORDS)
    table = pa.table(
        {
            "user_id": pa.array([None if is_bad(k) else f"user {k % 7}" for k in range(NUM_RECORDS)]),
            "item_id": numbers,
            "action": pa.array(["click"] * NUM_RECORDS).dictionary_encode(),
            "event_time_ms": pa.array(numbers + 1000, pa.timestamp("ms", tz="UTC")),
        }
    )
    path = folder / "events.parquet"
    pq.write_table(table, path, row_group_size=700)
    return _file_case(path, {k: k for k in range(NUM_RECORDS) if not is_bad(k)})


def _file_case(path: Path, truth: dict[int, int], passes: int = 1) -> SourceCase:
    with closing(open_source(str(path), passes=passes)) as source:
        names = list(source.streams())
    return SourceCase(
        lambda: open_source(str(path), passes=passes), dict.fromkeys(names, truth), dict.fromkeys(names, NUM_RECORDS)
    )


def synthetic_case(_: Path) -> SourceCase:
    """A world of a few blocks."""
    uri = "synthetic://?seed=5&events=10000"
    items = World(WorldSpec(seed=5)).events(0, 10_000).items
    with closing(open_source(uri)) as source:
        [name] = source.streams()
    return SourceCase(lambda: open_source(uri), {name: dict(enumerate(items.tolist()))}, {name: 10_000})


def kafka_case(kafka: KafkaTopics) -> SourceCase:
    """Two partitions; one with committed and aborted transactions, bad records and records without a value."""
    topic = kafka.create(partitions=2)
    numbers = iter(range(1, NUM_RECORDS))
    truth: list[dict[int, int]] = [{}, {}]
    _send(kafka, topic, 1, truth[1], [next(numbers) for _ in range(400)])
    for round_ in range(3):
        _send(kafka, topic, 0, truth[0], [next(numbers) for _ in range(120)])
        _send(kafka, topic, 0, truth[0], [next(numbers) for _ in range(20)], transaction=f"{topic}-{round_}-a")
        _send(kafka, topic, 0, {}, [next(numbers) for _ in range(10)], transaction=f"{topic}-{round_}-b", abort=True)
        kafka.send(topic, [b"{", None, b"\xff", json.dumps({"user_id": -1}).encode()])
    with closing(open_source(kafka.uri(topic))) as source:
        names = sorted(source.streams())
        ends = source.log_ends()
    return SourceCase(lambda: open_source(kafka.uri(topic)), dict(zip(names, truth, strict=True)), ends)


def _send(
    kafka: KafkaTopics,
    topic: str,
    partition: int,
    truth: dict[int, int],
    numbers: list[int],
    transaction: str | None = None,
    abort: bool = False,
) -> None:
    producer = kafka.producer(transactional_id=transaction)
    try:
        if transaction:
            producer.init_transactions()
            producer.begin_transaction()
        futures = [producer.send(topic, event(k).to_protobuf(), partition=partition) for k in numbers]
        producer.flush(timeout=TIMEOUT_MS / 1000)
        offsets = [future.get(timeout=TIMEOUT_MS / 1000).offset for future in futures]
        if transaction:
            (producer.abort_transaction if abort else producer.commit_transaction)()
    finally:
        producer.close()
    truth.update(zip(offsets, numbers, strict=True))


FILE_CASES = {"jsonl": jsonl_case, "csv": csv_case, "parquet": parquet_case, "synthetic": synthetic_case}
