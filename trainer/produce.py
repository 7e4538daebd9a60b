"""``embedtrain produce``: an event file -> a Kafka topic, at a chosen rate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import InvalidTopicError, KafkaError, TopicAlreadyExistsError
from rich.console import Console

from embedstore.errors import InvalidArgumentError, UnavailableError
from trainer.decoding import SetAside
from trainer.eventfiles import read_events
from trainer.events import ActivityEvent, Fields
from trainer.sources.kafka import parse_kafka_uri
from trainer.sources.synthetic import open_synthetic

IN_FLIGHT_MAX = 20_000
TIMEOUT_S = 30.0
BOOTSTRAP_TIMEOUT_S = 10.0
LINGER_MS = 5
BATCH_BYTES = 128 * 1024
WORLD_EVENTS = 4096

app = typer.Typer(rich_markup_mode="markdown", add_completion=False)


class Format(StrEnum):
    """How an event is written to Kafka."""

    protobuf = "protobuf"
    json = "json"


class Key(StrEnum):
    """What decides the partition of an event."""

    user = "user"
    none = "none"


@dataclass(frozen=True)
class ProduceReport:
    """What was sent: every one of ``events`` is in the log of the broker (acks=all)."""

    events: int
    seconds: float

    @property
    def events_per_s(self) -> float:
        """Events a second, from the first send to the last acknowledgement."""
        return self.events / self.seconds if self.seconds else 0.0


def produce(
    events: Iterable[ActivityEvent],
    to: str,
    *,
    rate: float | None = None,
    format: Format = Format.protobuf,
    key: Key = Key.user,
    partitions: int | None = None,
    clock_s: Callable[[], float] = time.monotonic,
    sleep_s: Callable[[float], None] = time.sleep,
) -> ProduceReport:
    """Send ``events`` to ``to`` (``kafka://HOST:PORT/TOPIC``) and wait until all of them are acknowledged.

    ``rate``: events a second, None as fast as it goes. ``key`` user: a user's events share a partition and stay in
    order. ``partitions``: create the topic with so many unless it exists. At most 20,000 events are in flight;
    retries neither repeat nor reorder events. :class:`UnavailableError` when the broker does not answer.
    """
    if rate is not None and not rate > 0:
        raise InvalidArgumentError("rate", f"must be above 0, not {rate}")
    servers, topic = parse_kafka_uri(to)
    with _typed(servers):
        _ensure_topic(servers, topic, partitions)
        producer = KafkaProducer(
            bootstrap_servers=servers,
            acks="all",
            enable_idempotence=True,
            linger_ms=LINGER_MS,
            batch_size=BATCH_BYTES,
            compression_type="lz4",
            delivery_timeout_ms=int(TIMEOUT_S * 1000),
            max_block_ms=int(TIMEOUT_S * 1000),
            request_timeout_ms=int(TIMEOUT_S * 500),
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        with closing(producer):
            began_s = clock_s()
            paced = events if rate is None else _paced(events, rate, clock_s, sleep_s)
            return ProduceReport(_send(producer, topic, paced, format, key), clock_s() - began_s)


def _send(producer: Any, topic: str, events: Iterable[ActivityEvent], format: Format, key: Key) -> int:
    encode = ActivityEvent.to_protobuf if format is Format.protobuf else ActivityEvent.to_json
    in_flight: deque[Any] = deque()
    num_sent = 0
    for event in events:
        user = str(event.user_id).encode() if key is Key.user else None
        in_flight.append(producer.send(topic, encode(event), key=user))
        num_sent += 1
        while in_flight and (len(in_flight) > IN_FLIGHT_MAX or in_flight[0].is_done):
            in_flight.popleft().get(timeout=TIMEOUT_S)
    for future in in_flight:
        future.get(timeout=TIMEOUT_S)
    return num_sent


def _paced(
    events: Iterable[ActivityEvent], rate: float, clock_s: Callable[[], float], sleep_s: Callable[[float], None]
) -> Iterator[ActivityEvent]:
    began_s = clock_s()
    for number, event in enumerate(events):
        early_s = began_s + number / rate - clock_s()
        if early_s > 0:
            sleep_s(early_s)
        yield event


def _ensure_topic(servers: list[str], topic: str, partitions: int | None) -> None:
    timeout_ms = int(BOOTSTRAP_TIMEOUT_S * 1000)
    admin = KafkaAdminClient(bootstrap_servers=servers, bootstrap_timeout_ms=timeout_ms)
    with closing(admin):
        if partitions is not None:
            try:
                admin.create_topics({topic: {"num_partitions": partitions}}, wait_for_metadata=True)
            except TopicAlreadyExistsError:
                partitions = None
            except InvalidTopicError as error:
                raise InvalidArgumentError("to", f"{topic!r} is no name of a topic") from error
        if partitions is None and admin.describe_topics([topic])[0]["error_code"]:
            hint = "--partitions N creates it"
            raise InvalidArgumentError("to", f"there is no topic {topic!r} at {','.join(servers)}; {hint}")


@contextmanager
def _typed(servers: list[str]) -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise UnavailableError(",".join(servers), str(error)) from error


def events_of(source: str, set_aside: SetAside) -> Iterator[ActivityEvent]:
    """The events of an event file, or of a synthetic world with an end."""
    if not source.startswith("synthetic://"):
        yield from read_events(Path(source), set_aside)
        return
    world = open_synthetic(source).world
    if world.spec.events is None:
        raise InvalidArgumentError("events", f"{source} never ends; add events=N")
    for begin in range(0, world.spec.events, WORLD_EVENTS):
        for row in world.table(begin, min(begin + WORLD_EVENTS, world.spec.events)).to_pylist():
            yield ActivityEvent.from_fields(Fields(**row))


@app.command()
def main(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Event file, or synthetic://?seed=1&events=N...")],
    to: Annotated[str, typer.Option("--to", help="kafka://HOST:PORT/TOPIC")],
    rate: Annotated[float | None, typer.Option(help="Events a second; default: as fast as it goes.")] = None,
    format: Annotated[Format, typer.Option(help="How events are written.")] = Format.protobuf,
    key: Annotated[Key, typer.Option(help="user: a user's events stay in one partition, in order.")] = Key.user,
    partitions: Annotated[int | None, typer.Option(min=1, help="Create the topic with N, if there is none.")] = None,
) -> None:
    """Send an event file to a Kafka topic."""
    set_aside = SetAside()
    report = produce(events_of(file, set_aside), to, rate=rate, format=format, key=key, partitions=partitions)
    set_aside.flush()
    text = f"{to}: {report.events:,} events in {report.seconds:.1f} s, {report.events_per_s:,.0f} events/s"
    if set_aside.total:
        text += f"; {set_aside.total:,} bad records set aside"
    Console(soft_wrap=True, highlight=False).print(text, markup=False)
