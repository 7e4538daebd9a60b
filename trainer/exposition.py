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
GAUGES = ("window_hr_at_10", "window_mrr_at_10", "loss", "lag_records", "items", "users_in_memory")


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
                yield CounterMetricFamily(PREFIX + name, f"Since the start: {name}.", value=report[counted])
        for name in GAUGES:
            if report.get(name) is not None:
                yield GaugeMetricFamily(PREFIX + name, f"Now: {name}.", value=report[name])
        if report.get("lag_s") is not None:
            yield GaugeMetricFamily(PREFIX + "lag_seconds", "Age of the latest event.", value=report["lag_s"])
        positions = GaugeMetricFamily(PREFIX + "position", "Up to where a stream was read.", labels=["stream"])
        for stream, position in report.get("positions", {}).items():
            positions.add_metric([stream], position)
        yield positions
        trained = histograms(PREFIX + EVENT_TO_TRAINED, "From a batch's oldest event until it was pushed.", [])
        add_distribution(trained, [], self._trained.read())
        yield trained
