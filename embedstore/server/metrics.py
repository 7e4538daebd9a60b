"""What a serving process tells a Prometheus server: counters and sizes of its store, how fresh its rows are, how long
requests took, who follows it and how far.

Everything is read from where it is counted anyway when somebody asks, so a scrape costs requests nothing. Names are in
base units and begin with ``embedstore_``; labels are tables, methods, streams, peers, never ids. docs/metrics.md lists
them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from embedstore.credentials import Credentials, is_loopback
from embedstore.errors import ClosedError, InvalidArgumentError, UnavailableError
from embedstore.freshness import MEANINGS, Distribution, Histogram
from embedstore.interface import StoreStats, TableStats
from embedstore.origins import is_client
from embedstore.server.scrapes import ScrapeServer

if TYPE_CHECKING:
    from embedstore.server.serving import Serving

PREFIX = "embedstore_"
REQUEST_BOUNDS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = {
    "rows": "Rows that a table holds now, expired ones too until a sweep comes to them.",
    "memory_bytes": "Memory that a table's rows, indexes and counts take now.",
    "chunks": "Chunks of a table that are here; only a takeover changes it.",
    "tombstones": "Removed rows that a table remembers, so that followers and checkpoints hear of them.",
    "sketch_bytes": "Memory of the counts by which admission decides, part of the table's memory.",
}
_COUNTS = {
    "pulled_rows": "Ids that pulls have asked for; each pull adds its own.",
    "missed_rows": "Ids that pulls have asked for and that had no row; they read as the table's default.",
    "pushed_rows": "Distinct ids of pushes whose rows took the gradient; each push adds its own.",
    "inserted_rows": "Rows that pushes and assigns have made for ids without one.",
    "dropped_rows": "Distinct ids of pushes that admission kept out, with their gradients; each push adds its own.",
    "expired_rows": "Rows that were removed because nothing had been seen of them for the table's time to live.",
    "evicted_rows": "Rows that were removed to keep the table within its capacity, the least recently seen first.",
    "sketch_halvings": "Times that the counts by which admission decides were full, and all were halved.",
}
_OF_WRITES = ("pushed_rows", "inserted_rows", "dropped_rows", "sketch_halvings")
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Requests:
    """How long handlers took, and what they refused, by method. Usable from any thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, Histogram] = {}
        self.refused: Counter[tuple[str, str]] = Counter()

    def histogram(self, method: str) -> Histogram:
        """Where the times of a method are counted."""
        return self.seconds.setdefault(method, Histogram(REQUEST_BOUNDS_S))

    def refuse(self, method: str, error: Exception) -> None:
        """Count a refusal."""
        self.refused[method, type(error).__name__] += 1


class Exposition(Collector):
    """Turns a process's state into metrics; see the module."""

    def __init__(self, serving: Serving, requests: Requests) -> None:
        self._serving = serving
        self._requests = requests

    def collect(self) -> Iterator[Any]:
        """See :class:`prometheus_client.registry.Collector`."""
        serving = self._serving
        yield _gauge("ready", "1 while rows can be read here, else 0; a standby's are never read.", serving.ready)
        yield _gauge("fenced", "1 once others have taken this process's place, else 0.", serving.fenced)
        if serving.standby or not serving.follower:
            meaning = "Epoch of the topology record that is served, of a standby its leaders'; each takeover raises it."
            yield _gauge("epoch", meaning, serving.known_topology().epoch)
        yield from self._request_families()
        try:
            yield from of_store(serving.stats(), serving.synced)
        except (UnavailableError, ClosedError):
            return

    def _request_families(self) -> Iterator[Family]:
        seconds = histograms(
            PREFIX + "request_seconds", "Time that the handler of a request took, refused ones too.", ["method"]
        )
        for method, histogram in list(self._requests.seconds.items()):
            add_distribution(seconds, [method], histogram.read())
        refused = _counter(
            "refused_requests", "Requests that were refused, each by the name of its error.", ["method", "error"]
        )
        for labels, count in list(self._requests.refused.items()):
            refused.add_metric(labels, count)
        yield from (seconds, refused)


def of_store(stats: StoreStats, synced: bool | None) -> Iterator[Family]:
    """What a store's numbers come to; ``synced`` of one that follows, None of one that takes writes."""
    leads = synced is None
    if synced is not None:
        yield _gauge("synced", "1 once everything that the leaders have has been here, 0 before.", synced)
    yield from _tables(stats, leads=leads)
    yield from _streams(stats, leads=leads)
    yield from _replication(stats)
    yield from distributions(stats.distributions)
    yield from _dense_sets(stats)
    yield _gauge("uptime_seconds", "Time since the store of this process was opened.", stats.uptime_s)
    if leads:
        fell = "Chunks that fell back at the last start to an older state, because their bytes on disk were damaged."
        yield _gauge("corrupt_chunks", fell, stats.corrupt_chunks)
        wrote = "When this process wrote its last checkpoint; 0 before its first."
        yield _gauge("last_checkpoint_timestamp_seconds", wrote, stats.last_checkpoint_s)


def distributions(found: Any) -> Iterator[Family]:
    """Histograms by table, of what :mod:`embedstore.freshness` measures."""
    for measure, meaning in MEANINGS.items():
        family = histograms(PREFIX + measure, meaning, ["table"])
        for (name, table), distribution in found.items():
            if name == measure:
                add_distribution(family, [table], distribution)
        yield family


class CertificateExpiry(Collector):
    """When the process's certificate ends, if it has one."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def collect(self) -> Iterator[Any]:
        """See :class:`prometheus_client.registry.Collector`."""
        held = self._credentials.validity()
        meaning = "When the certificate of this process, as it is on disk now, expires."
        yield _gauge("certificate_expiry_timestamp_seconds", meaning, None if held is None else held.ends_s)


def check_listen(field: str, listen: str, credentials: Credentials) -> None:
    """:class:`InvalidArgumentError` unless this is host:port, of this machine where there is no certificate."""
    host, colon, port = listen.rpartition(":") if isinstance(listen, str) else ("", "", "")
    if not colon or not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise InvalidArgumentError(field, f"must be host:port, not {listen!r}")
    if credentials.tls_cert is None and not is_loopback(listen):
        raise InvalidArgumentError(field, f"{host} is not this machine: EMBEDSTORE_TLS_CERT is needed")


def serve_metrics(
    listen: str, collectors: Iterable[Collector], credentials: Credentials, *, mtls: bool
) -> ScrapeServer:
    """Answer scrapes at host:port, over TLS where there is a certificate, until the server is told to ``stop``."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collector in [CertificateExpiry(credentials), *collectors]:
        registry.register(collector)
    host, _, port = listen.rpartition(":")
    try:
        server = ScrapeServer(host.strip("[]"), int(port), registry, credentials, mtls=mtls)
    except OSError as error:
        raise UnavailableError(listen, f"metrics cannot be served there: {error.strerror or error}") from error
    logging.getLogger("embedstore.server").info("metrics at %s", server.url(host))
    return server


def _tables(stats: StoreStats, *, leads: bool) -> Iterator[Family]:
    for column in fields(TableStats):
        if column.name in _OF_WRITES and not leads:
            continue
        family = (
            _gauge(column.name, _SIZES[column.name], None, ["table"])
            if column.name in _SIZES
            else _counter(column.name, _COUNTS[column.name], ["table"])
        )
        for table, numbers in stats.tables.items():
            family.add_metric([table], getattr(numbers, column.name))
        yield family


def _streams(stats: StoreStats, *, leads: bool) -> Iterator[Family]:
    positions = _gauge(
        "stream_position",
        "Position up to which all chunks here have a stream, applied or durable.",
        None,
        ["stream", "state"],
    )
    for stream, state in stats.streams.items():
        if not is_client(stream):
            positions.add_metric([stream, "applied"], state.applied)
            if leads:
                positions.add_metric([stream, "durable"], state.durable)
    yield positions


def _dense_sets(stats: StoreStats) -> Iterator[Family]:
    versions = _gauge("dense_version", "How often the dense set that is here had been put.", None, ["dense_set"])
    positions = _gauge(
        "dense_position", "Position in a stream up to which a dense set was trained.", None, ["dense_set", "stream"]
    )
    for name, found in stats.dense_sets.items():
        versions.add_metric([name], found.version)
        for stream, position in found.position.items():
            if not is_client(stream):
                positions.add_metric([name, stream], position)
    yield from (versions, positions)


def _replication(stats: StoreStats) -> Iterator[Family]:
    yield _gauge("followers", "Calls of followers and standbys that are open now.", stats.followers)
    of = ["peer", "standby"]
    calls = _gauge("follower_calls", "Calls on which this follower is connected now; 0 once it has gone.", None, of)
    lag = _gauge(
        "follower_lag_seconds", "Time since the moment up to which a follower has acknowledged everything.", None, of
    )
    flying = _gauge(
        "follower_in_flight_bytes", "What is on its way to a follower, sent and not acknowledged yet.", None, of
    )
    sent = _counter("follower_sent_bytes", "What was sent to a follower, over all its connections.", of)
    for follower in stats.follower_states:
        labels = [follower.peer, str(follower.standby).lower()]
        calls.add_metric(labels, follower.calls)
        sent.add_metric(labels, follower.sent_bytes)
        if follower.calls:
            lag.add_metric(labels, follower.lag_s)
            flying.add_metric(labels, follower.in_flight_bytes)
    age = _gauge(
        "leader_age_seconds", "Time since the moment up to which everything of a leader is here.", None, ["leader"]
    )
    connected = _gauge("leader_connected", "1 while the leader is connected and sends, else 0.", None, ["leader"])
    for leader in stats.leaders:
        age.add_metric([leader.address], leader.age_s)
        connected.add_metric([leader.address], leader.connected)
    yield from (calls, lag, flying, sent, age, connected)


def _gauge(name: str, meaning: str, value: float | None, labels: list[str] | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, meaning, value=value, labels=labels)


def _counter(name: str, meaning: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, meaning, labels=labels)


def histograms(name: str, meaning: str, labels: list[str]) -> HistogramMetricFamily:
    """A family without samples yet; its unit is the name's last word."""
    return HistogramMetricFamily(name, meaning, labels=labels, unit=name.rpartition("_")[2])


def add_distribution(family: HistogramMetricFamily, labels: list[str], distribution: Distribution) -> None:
    """One sample of the family."""
    below, buckets = 0, []
    for bound, count in zip([*map(str, distribution.bounds), "+Inf"], distribution.counts, strict=True):
        below += count
        buckets.append((bound, below))
    family.add_metric(labels, buckets=buckets, sum_value=distribution.total)
