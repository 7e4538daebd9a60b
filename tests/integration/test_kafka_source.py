"""Kafka topics as a source, on a real broker: restarts, trimmed and recreated logs, commits, bad addresses."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kafka_broker import KafkaTopics

from embedstore.errors import InvalidArgumentError, StreamPositionError, UnavailableError
from trainer.decoding import SetAside
from trainer.eventfiles import write_events
from trainer.events import FUTURE_TOLERANCE_MS, ActivityEvent
from trainer.produce import Format, Key, events_of, produce
from trainer.sources import open_source
from trainer.sources.kafka import KafkaSource, parse_kafka_uri
from trainer.sources.world import World, WorldSpec

TIMEOUT_S = 45.0


def events(begin: int, end: int) -> list[ActivityEvent]:
    return [ActivityEvent(k % 5, k, "click", 1000 + k) for k in range(begin, end)]


def open_kafka(kafka: KafkaTopics, topic: str, group: str | None = None) -> KafkaSource:
    source = open_source(kafka.uri(topic), group=group)
    assert isinstance(source, KafkaSource)
    return source


def read(source: KafkaSource, enough: Callable[[list[int]], bool]) -> list[int]:
    """The items of everything polled until there is enough."""
    items: list[int] = []
    deadline_s = time.monotonic() + TIMEOUT_S
    while not enough(items):
        assert time.monotonic() < deadline_s, items
        batch = source.poll(500, 1.0)
        assert batch is not None
        items.extend(batch.item_ids.tolist())
    return items


def test_what_is_produced_is_read_in_each_users_order(kafka: KafkaTopics) -> None:
    topic = f"orders-{time.monotonic_ns()}"
    report = produce(events(0, 2000), kafka.uri(topic), partitions=2)
    assert report.events == 2000
    with closing(open_kafka(kafka, topic)) as source:
        ends = source.log_ends()
        assert sum(ends.values()) == 2000
        assert min(ends.values()) > 0
        items = read(source, lambda items: len(items) >= 2000)
        assert sorted(items) == list(range(2000))
        for user in range(5):
            mine = [item for item in items if item % 5 == user]
            assert mine == sorted(mine)


def test_partitions_share_a_batch_evenly(kafka: KafkaTopics) -> None:
    topic = kafka.create(partitions=2)
    for partition in range(2):
        kafka.send(topic, [event.to_protobuf() for event in events(0, 600)], partition)
    with closing(open_kafka(kafka, topic)) as source:
        source.poll(1, TIMEOUT_S)
        deadline_s = time.monotonic() + TIMEOUT_S
        while not all(source._buffers.values()):
            assert time.monotonic() < deadline_s
            source.poll(1, 1.0)
        batch = source.poll(100, 1.0)
        assert batch is not None
        assert [origin.end - origin.begin for origin in batch.origins] == [50, 50]


def test_reading_goes_on_after_the_broker_was_restarted(kafka: KafkaTopics) -> None:
    topic = kafka.create()
    produce(events(0, 100), kafka.uri(topic))
    with closing(open_kafka(kafka, topic, group="restart")) as source:
        [stream] = source.streams()
        assert read(source, lambda items: len(items) == 100) == list(range(100))
        kafka.broker.stop(kill=True)
        while_away = source.poll(10, 0.5)
        assert while_away is not None
        assert while_away.origins == ()
        kafka.broker.start()
        produce(events(100, 200), kafka.uri(topic), format=Format.json)
        assert read(source, lambda items: len(items) == 100) == list(range(100, 200))
        source.commit({stream: 200})
        assert source.committed() == {stream: 200}


def test_a_new_reader_goes_on_at_the_committed_offset(kafka: KafkaTopics) -> None:
    topic = kafka.create()
    produce(events(0, 50), kafka.uri(topic))
    with closing(open_kafka(kafka, topic, group="commit")) as source:
        [stream] = source.streams()
        assert source.committed() == {}
        source.commit({stream: 30})
    with closing(open_kafka(kafka, topic, group="commit")) as source:
        source.seek(source.committed())
        assert read(source, lambda items: len(items) == 20) == list(range(30, 50))
    with closing(open_kafka(kafka, topic)) as source:
        source.commit({stream: 40})
        assert source.committed() == {}


def test_a_trimmed_log_is_an_error_that_names_the_gap(kafka: KafkaTopics) -> None:
    topic = kafka.create()
    produce(events(0, 50), kafka.uri(topic))
    with closing(open_kafka(kafka, topic)) as source:
        [stream] = source.streams()
        kafka.trim(topic, 20)
        assert source.streams() == {stream: 20}
        with pytest.raises(StreamPositionError, match=r"begins at 20: \[5, 20\) is gone"):
            source.seek({stream: 5})
        with pytest.raises(StreamPositionError, match=r"holds \[20, 50\): \[0, 20\) is gone") as caught:
            read(source, bool)
        assert (caught.value.stream, caught.value.position) == (stream, 0)
        source.seek({stream: 20})
        assert read(source, lambda items: len(items) == 30) == list(range(20, 50))


def test_a_topic_created_anew_is_never_taken_for_the_old_one_however_full_it_is(kafka: KafkaTopics) -> None:
    topic = kafka.create()
    produce(events(0, 50), kafka.uri(topic))
    with closing(open_kafka(kafka, topic, group="anew")) as source:
        [old] = source.streams()
        read(source, lambda items: len(items) == 50)
        source.commit({old: 50})
        kafka.delete(topic)
        produce(events(0, 80), kafka.uri(topic), partitions=1)
        for goes_on in (source.commit, source.seek):
            with pytest.raises(StreamPositionError, match="deleted and created again") as caught:
                goes_on({old: 50})
            assert (caught.value.stream, caught.value.position) == (old, 50)
    with closing(open_kafka(kafka, topic)) as source:
        [new] = source.streams()
        assert new != old
        source.check_known({new: 80, "kafka/elsewhere/x/y/0": 7, "file/0123/0": 9})
        with pytest.raises(StreamPositionError, match="deleted and created again") as caught:
            source.check_known({new: 0, old: 50})
        assert (caught.value.stream, caught.value.position) == (old, 50)


def test_the_future_is_measured_from_the_records_own_time(kafka: KafkaTopics) -> None:
    topic = kafka.create()
    written_ms = 1_700_000_000_000
    times_ms = [written_ms, written_ms + FUTURE_TOLERANCE_MS, written_ms + FUTURE_TOLERANCE_MS + 1]
    records = [ActivityEvent(1, 2, "click", time_ms).to_json() for time_ms in times_ms]
    kafka.send(topic, records, timestamp_ms=written_ms)
    with closing(open_kafka(kafka, topic)) as source:
        batch = source.poll(10, TIMEOUT_S)
        assert batch is not None
        assert batch.event_time_ms.tolist() == times_ms[:2]
        assert batch.set_aside == 1
        assert source.set_aside.by_field == {"event_time_ms": 1}


def test_produce_keeps_the_rate_and_reads_any_event_file(kafka: KafkaTopics, tmp_path: Path) -> None:
    world = World(WorldSpec())
    write_events(world.table(0, 300), tmp_path / "events.parquet", origin="world")
    topic = kafka.create()
    now_s = [0.0]

    def sleep_s(seconds: float) -> None:
        now_s[0] += seconds

    for source in (str(tmp_path / "events.parquet"), "synthetic://?events=300"):
        report = produce(
            events_of(source, SetAside()), kafka.uri(topic), rate=100.0, clock_s=lambda: now_s[0], sleep_s=sleep_s
        )
        assert report.seconds == pytest.approx(2.99)
    with closing(open_kafka(kafka, topic)) as source_:
        items = read(source_, lambda items: len(items) == 600)
    assert items[:300] == items[300:] == world.events(0, 300).items.tolist()


def test_without_a_key_events_spread_over_partitions(kafka: KafkaTopics) -> None:
    topic = kafka.create(partitions=2)
    one_user = [ActivityEvent(1, k, "click", k) for k in range(5000)]
    produce(one_user, kafka.uri(topic), key=Key.none)
    with closing(open_kafka(kafka, topic)) as source:
        assert all(end > 0 for end in source.log_ends().values())
    keyed = kafka.create(partitions=2)
    produce(one_user, kafka.uri(keyed))
    with closing(open_kafka(kafka, keyed)) as source:
        assert sorted(source.log_ends().values()) == [0, 5000]


def test_json_values_are_events_too(kafka: KafkaTopics) -> None:
    topic = kafka.create()
    kafka.send(topic, [json.dumps({"user_id": 1, "item_id": 77, "action": "buy", "event_time_ms": 1}).encode()])
    with closing(open_kafka(kafka, topic)) as source:
        assert read(source, lambda items: len(items) == 1) == [77]


def test_a_missing_topic_is_named(kafka: KafkaTopics) -> None:
    with pytest.raises(InvalidArgumentError, match="no topic 'nowhere'"):
        open_source(kafka.uri("nowhere"))
    with pytest.raises(InvalidArgumentError, match="--partitions N creates it"):
        produce([], kafka.uri("nowhere"))


def test_a_broker_that_is_away_is_named() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        free_port = bound.getsockname()[1]
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{free_port}"):
        KafkaSource([f"127.0.0.1:{free_port}"], "topic", timeout_ms=500)


@pytest.mark.parametrize("uri", ["kafka://host/topic", "kafka://host:1", "kafka://host:1/a/b", "kafka://:9/t", "x"])
def test_a_malformed_address_is_refused(uri: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_kafka_uri(uri)
    with pytest.raises(InvalidArgumentError):
        open_source(uri)
