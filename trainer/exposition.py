"""What a trainer tells a Prometheus server: its latest report, and how old events are when they have been learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from embedstore.credentials import Credentials
from embedstore.freshness import EVENT_TO_TRAINED, Histogram
from embedstore.server.metrics import add_distribution, check_listen, histograms, serve_metrics
from trainer.metrics import RUN_COUNTS

PREFIX = "embedtrain_"
COUNTERS = {"events": "run_events", "replayed_events": "replayed_events"} | {name: f"run_{name}" for name in RUN_COUNTS}
"""Of this run, each with its name in the report: the totals, which a cut keeps, go back to it after a kill."""
COUNTED = {
    "events": "Events that were taken in, in the order of their streams; each batch adds its own.",
    "replayed_events": "Events that were read again, because part of the store lacked them.",
    "set_aside": "Records that could not be read as events, and were passed over.",
    "unscored": "Events that were not tested, because the rows had learnt from them before.",
    "tests": "Predictions that were tested against their event, and scored.",
    "steps": "Steps of the dense weights' optimizer, skipped ones too.",
    "skipped_steps": "Steps that were left out, because their loss or gradients were not finite.",
}
GAUGES = {
    "window_hr_at_10": "Share of the last tests in which the item was among the ten best.",
    "window_mrr_at_10": "Mean of one over the item's rank in the last tests, 0 beyond the ten best.",
    "loss": "Mean loss of the last steps that were not skipped.",
    "lag_records": "Records in the log that have not been read yet.",
    "items": "Items that the trainer has met; it grows with each new one.",
    "users_in_memory": "Users whose histories are in memory; those of others are on disk.",
}


class Exposition(Collector):
    """Holds the latest report. Any thread may call anything."""

    def __init__(self) -> None:
        self._report: Mapping[str, Any] = {}
        self._trained = Histogram()

    def update(self, report: Mapping[str, Any]) -> None:
        """There is a newer report."""
        self._report = report

    @contextmanager
    def served(self, listen: str, trained: Histogram) -> Iterator[str]:
        """Answer scrapes at host:port, which must be of this machine unless there is a certificate; gives the address
        as it was opened. :class:`InvalidArgumentError`, :class:`UnavailableError`."""
        credentials = Credentials.from_environment()
        check_listen("metrics-listen", listen, credentials)
        self._trained = trained
        server = serve_metrics(listen, [self], credentials, mtls=False)
        try:
            yield f"{listen.rpartition(':')[0]}:{server.server_address[1]}"
        finally:
            server.stop()

    def collect(self) -> Iterator[Any]:
        """See :class:`prometheus_client.registry.Collector`."""
        report = self._report
        for name, counted in COUNTERS.items():
            if counted in report:
                yield CounterMetricFamily(PREFIX + name, COUNTED[name], value=report[counted])
        for name, meaning in GAUGES.items():
            if report.get(name) is not None:
                yield GaugeMetricFamily(PREFIX + name, meaning, value=report[name])
        if report.get("lag_s") is not None:
            yield GaugeMetricFamily(
                PREFIX + "lag_seconds", "Time since the latest event that was learnt happened.", value=report["lag_s"]
            )
        positions = GaugeMetricFamily(
            PREFIX + "position", "Position up to which the trainer has read a stream.", labels=["stream"]
        )
        for stream, position in report.get("positions", {}).items():
            positions.add_metric([stream], position)
        yield positions
        trained = histograms(
            PREFIX + EVENT_TO_TRAINED, "From the oldest event of a batch until all shards had applied its push.", []
        )
        add_distribution(trained, [], self._trained.read())
        yield trained
