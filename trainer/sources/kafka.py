"""A Kafka topic as a source: one stream a partition, named after cluster, topic, the topic's id and the partition.

Partitions are assigned, never balanced by a consumer group: who trains what is decided elsewhere, and the positions
that count are the store's watermarks. A position that the log no longer (or not yet) has is an error that names the
gap; nothing is ever reset silently. A topic that was deleted and created again has another id, so that its offsets are
never taken for those of the old one, however many records it has; that is an error too. Only committed records are
read. Offsets that hold no record (transaction markers, aborted or compacted records) lie inside the ranges.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import (
    KafkaConfigurationError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
)

from embedstore.errors import InvalidArgumentError, StreamPositionError, UnavailableError
from embedstore.interface import Origin
from trainer.decoding import Decoder
from trainer.events import FUTURE_TOLERANCE_MS, EventBatch, merge_batches
from trainer.sources import NO_STOPS, check_poll, check_seek, range_end
from trainer.sources.files import wall_clock_ms

logger = logging.getLogger(__name__)

TIMEOUT_MS = 15_000
RECONNECT_BACKOFF_MS_MAX = 1000
FETCH_WAIT_MS_MAX = 100
RECORDS_PER_FETCH = 4096
RECORDS_BUFFERED_MAX = 16384
FETCH_BYTES_MAX = 16 << 20
PARTITION_FETCH_BYTES_MAX = 256 << 10
NO_TIMESTAMP = (-1, None)


class KafkaSource:
    """The partitions of ``topic`` (those that exist now) at ``servers``. See :class:`trainer.sources.Source`.

    Reading begins at the start of each partition's log; ``seek`` moves it. ``group``: offsets are committed under this
    name (for lag monitors; nothing is read back from it except by :meth:`committed`). A broker that goes away for a
    while costs empty polls; an event is in the future when it is ten minutes later than its record's timestamp
    (``clock_ms`` where records have none). At most 20,480 records wait in memory besides the client's
    one fetch a partition.
    """

    def __init__(
        self,
        servers: Sequence[str],
        topic: str,
        *,
        group: str | None = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
        timeout_ms: int = TIMEOUT_MS,
    ) -> None:
        self._servers = ",".join(servers)
        self._group = group
        self._clock_ms = clock_ms
        self._timeout_ms = timeout_ms
        self._closed = False
        self._topic = topic
        with self._typed():
            self._admin = KafkaAdminClient(
                bootstrap_servers=self._servers.split(","),
                bootstrap_timeout_ms=timeout_ms,
                request_timeout_ms=timeout_ms,
                reconnect_backoff_max_ms=RECONNECT_BACKOFF_MS_MAX,
            )
            try:
                self._log_name, partitions = self._describe()
                self._consumer = self._connect()
            except BaseException:
                self._admin.close()
                raise
        self._parts = {f"{self._log_name}/{number}": TopicPartition(topic, number) for number in partitions}
        self._names = {part: stream for stream, part in self._parts.items()}
        self._buffers: dict[str, deque[Any]] = {stream: deque() for stream in self._parts}
        self._fetched_to: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._ends_seen = self.log_ends()
        self._decoder = Decoder()
        self.set_aside = self._decoder.set_aside
        self._assigned: list[str] = []
        self._move(self.streams())

    def _describe(self) -> tuple[str, list[int]]:
        """What the topic's streams are named after, and its partitions."""
        cluster = self._admin.describe_cluster()["cluster_id"]
        [described] = self._admin.describe_topics([self._topic])
        partitions = sorted(int(part["partition_index"]) for part in described["partitions"])
        if described["error_code"] or not partitions:
            raise InvalidArgumentError("events", f"there is no topic {self._topic!r} at {self._servers}")
        return f"kafka/{cluster}/{self._topic}/{described['topic_id']}", partitions

    def check_known(self, known: Mapping[str, int]) -> None:
        """See :meth:`Source.check_known`: a topic of this name and another id."""
        family = self._log_name.rpartition("/")[0] + "/"
        for stream in sorted(known):
            if stream.startswith(family) and not stream.startswith(f"{self._log_name}/"):
                raise StreamPositionError(
                    stream, known[stream], f"the topic was deleted and created again: it is {self._log_name} now"
                )

    def _check_topic(self) -> None:
        """Raise :class:`StreamPositionError` when another topic has taken the name of the one that is being read."""
        try:
            present, _ = self._describe()
        except InvalidArgumentError as error:
            logger.warning("%s", error)
            return
        except KafkaError as error:
            if not error.retriable:
                raise UnavailableError(self._servers, str(error)) from error
            logger.warning("topic %s not looked at now: %s", self._topic, error)
            return
        if present != self._log_name:
            stream = min(self._positions)
            problem = f"the topic was deleted and created again: it is {present} now"
            raise StreamPositionError(stream, self._positions[stream], problem)

    def _connect(self) -> Any:
        return KafkaConsumer(
            bootstrap_servers=self._servers.split(","),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            fetch_max_wait_ms=FETCH_WAIT_MS_MAX,
            fetch_max_bytes=FETCH_BYTES_MAX,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX,
            reconnect_backoff_max_ms=RECONNECT_BACKOFF_MS_MAX,
            bootstrap_timeout_ms=self._timeout_ms,
            request_timeout_ms=self._timeout_ms,
            metrics_enabled=False,
        )

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except KafkaConfigurationError as error:
            raise InvalidArgumentError("events", f"{self._servers}: {error}") from error
        except OffsetOutOfRangeError as error:
            raise self._out_of_range(error) from error
        except LogTruncationError as error:
            stream = min(self._names[part] for part in error.divergent_offsets)
            raise StreamPositionError(stream, self._positions[stream], f"the log was cut: {error}") from error
        except KafkaError as error:
            raise UnavailableError(self._servers, str(error)) from error

    def _out_of_range(self, error: OffsetOutOfRangeError) -> StreamPositionError:
        for part, offset in error.args[0].items():
            stream = self._names[part]
            begin, end = self.streams()[stream], self.log_ends()[stream]
            gap = f"[{offset}, {begin}) is gone" if offset < begin else f"[{end}, {offset}) is missing"
            return StreamPositionError(stream, offset, f"the log holds [{begin}, {end}): {gap}")
        return StreamPositionError(self._servers, 0, str(error))

    def streams(self) -> dict[str, int]:
        """Every partition and the first offset that its log still has; asks the broker."""
        with self._typed():
            begins = self._consumer.beginning_offsets(list(self._parts.values()), timeout_ms=self._timeout_ms)
        return {stream: int(begins[part]) for stream, part in self._parts.items()}

    def ends(self) -> dict[str, int | None]:
        """None for every partition: the log is live."""
        return dict.fromkeys(self._parts)

    def log_ends(self) -> dict[str, int]:
        """Where each partition's log ends at this moment; asks the broker."""
        with self._typed():
            ends = self._consumer.end_offsets(list(self._parts.values()), timeout_ms=self._timeout_ms)
        return {stream: int(ends[part]) for stream, part in self._parts.items()}

    def seek(self, positions: Mapping[str, int]) -> None:
        """See :meth:`Source.seek`; asks the broker what the log has."""
        self._check_topic()
        check_seek(self.streams(), dict(self.log_ends()), positions)
        self._move(positions)

    def _move(self, positions: Mapping[str, int]) -> None:
        for stream, position in positions.items():
            self._buffers[stream].clear()
            self._positions[stream] = self._fetched_to[stream] = int(position)
        self._assigned = []

    def poll(
        self, max_events: int, timeout_s: float, *, only: str | None = None, stop_at: Mapping[str, int] = NO_STOPS
    ) -> EventBatch | None:
        """See :meth:`Source.poll`. Partitions share a batch evenly while they all have records. Never None."""
        check_poll(self._parts, max_events, only)
        wanted = list(self._parts) if only is None else [only]
        if any(len(self._buffers[stream]) < -(-max_events // len(wanted)) for stream in wanted):
            self._fetch(wanted, timeout_s)
        taken = self._share(wanted, max_events)
        batches = [self._take(stream, taken[stream], stop_at.get(stream)) for stream in wanted]
        return merge_batches([batch for batch in batches if batch is not None])

    def _fetch(self, wanted: list[str], timeout_s: float) -> None:
        if sum(map(len, self._buffers.values())) >= RECORDS_BUFFERED_MAX and any(map(self._buffers.get, wanted)):
            return
        ready = any(self._fetched_to[stream] > self._positions[stream] for stream in wanted)
        with self._typed():
            self._assign(wanted)
            timeout_ms = 0 if ready else int(timeout_s * 1000)
            for part, records in self._consumer.poll(timeout_ms, max_records=RECORDS_PER_FETCH).items():
                self._buffers[self._names[part]].extend(records)
                self._fetched_to[self._names[part]] = records[-1].offset + 1
            for stream in wanted:
                reached = self._consumer.position(self._parts[stream], timeout_ms=0)
                self._fetched_to[stream] = max(self._fetched_to[stream], reached or 0)

    def _assign(self, wanted: list[str]) -> None:
        """Read these alone. Not by pausing the others: a client that has parked their records may never read on."""
        if wanted == self._assigned:
            return
        self._consumer.assign([self._parts[stream] for stream in wanted])
        self._assigned = wanted
        for stream in wanted:
            self._consumer.seek(self._parts[stream], self._fetched_to[stream])

    def _share(self, wanted: list[str], max_events: int) -> dict[str, int]:
        """How many buffered records each stream gives: evenly, what one lacks going to the others."""
        shares: dict[str, int] = {}
        left = max_events
        for waiting, stream in zip(
            range(len(wanted), 0, -1), sorted(wanted, key=lambda stream: len(self._buffers[stream])), strict=True
        ):
            shares[stream] = min(len(self._buffers[stream]), -(-left // waiting))
            left -= shares[stream]
        return shares

    def _take(self, stream: str, num_records: int, stop: int | None) -> EventBatch | None:
        buffer, begin = self._buffers[stream], self._positions[stream]
        if not num_records and buffer:
            return None
        next_offset = buffer[num_records].offset if num_records < len(buffer) else self._fetched_to[stream]
        end = range_end(begin, next_offset, next_offset - begin, stop)
        if end == begin:
            return None
        records = [buffer.popleft() for record in list(islice(buffer, num_records)) if record.offset < end]
        self._positions[stream] = end
        now_ms = self._clock_ms()
        written_ms = (now_ms if record.timestamp in NO_TIMESTAMP else record.timestamp for record in records)
        return self._decoder.decode(
            Origin(stream, begin, end),
            [(record.offset, record.value) for record in records],
            (time_ms + FUTURE_TOLERANCE_MS for time_ms in written_ms),
        )

    def commit(self, positions: Mapping[str, int]) -> None:
        """Commit these offsets under the group's name; without one, nothing.

        The store's watermarks decide where reading goes on, so a broker that is away is logged and not waited for:
        the next commit says more. :class:`StreamPositionError` when the topic was created anew.
        """
        for stream in positions:
            if stream not in self._parts:
                raise InvalidArgumentError("positions", f"{stream!r} is none of {sorted(self._parts)}")
        self._check_topic()
        if self._group is None or not positions:
            return
        offsets = {self._parts[stream]: OffsetAndMetadata(int(end), "", -1) for stream, end in positions.items()}
        try:
            self._consumer.commit(offsets, timeout_ms=self._timeout_ms)
        except KafkaError as error:
            if not error.retriable:
                raise UnavailableError(self._servers, f"offsets not committed: {error}") from error
            logger.warning("offsets of group %s not committed now: %s", self._group, error)

    def committed(self) -> dict[str, int]:
        """The offsets last committed under the group's name; without those of partitions that have none."""
        if self._group is None:
            return {}
        with self._typed():
            offsets = {
                stream: self._consumer.committed(part, timeout_ms=self._timeout_ms)
                for stream, part in self._parts.items()
            }
        return {stream: int(offset) for stream, offset in offsets.items() if offset is not None}

    def lag_records(self) -> dict[str, int]:
        """Offsets not polled yet, as of the last fetch of each partition."""
        for stream in self._assigned:
            self._ends_seen[stream] = self._consumer.highwater(self._parts[stream]) or self._ends_seen[stream]
        return {stream: max(0, end - self._positions[stream]) for stream, end in self._ends_seen.items()}

    def close(self) -> None:
        """Close the connections; commits nothing."""
        if not self._closed:
            self._closed = True
            self.set_aside.flush()
            self._consumer.close(autocommit=False, timeout_ms=self._timeout_ms)
            self._admin.close()


def parse_kafka_uri(uri: str) -> tuple[list[str], str]:
    """``kafka://HOST:PORT[,HOST:PORT]/TOPIC`` as (servers, topic); :class:`InvalidArgumentError` otherwise."""
    servers, _, topic = uri.removeprefix("kafka://").partition("/")
    parts = servers.split(",")
    for server in parts:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidArgumentError("events", f"{uri!r}: {server!r} is not HOST:PORT")
    if not uri.startswith("kafka://") or not topic or "/" in topic:
        raise InvalidArgumentError("events", f"{uri!r} is not kafka://HOST:PORT/TOPIC")
    return parts, topic


def open_kafka(uri: str, *, group: str | None = None, clock_ms: Callable[[], int] = wall_clock_ms) -> KafkaSource:
    """The source of ``kafka://HOST:PORT[,HOST:PORT]/TOPIC``."""
    servers, topic = parse_kafka_uri(uri)
    return KafkaSource(servers, topic, group=group, clock_ms=clock_ms)
