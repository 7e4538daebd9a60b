"""What processes tell Prometheus, as a server of its kind reads it."""

from __future__ import annotations

import ssl
import urllib.request

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from embedstore.server.exposed import ExposedMetrics
from embedstore.server.shard import Shard


def families(address: str, context: ssl.SSLContext | None = None) -> dict[str, Metric]:
    """Every family by name."""
    scheme = "http" if context is None else "https"
    with urllib.request.urlopen(f"{scheme}://{address}/metrics", context=context, timeout=10) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def scraped(shard: Shard | ExposedMetrics, context: ssl.SSLContext | None = None) -> dict[tuple[str, ...], float]:
    """Every sample of a process by name and labels' values."""
    address = shard.metrics_address if isinstance(shard, Shard) else shard.address
    return {
        (sample.name.removeprefix("embedstore_"), *sample.labels.values()): sample.value
        for family in families(address, context).values()
        for sample in family.samples
    }
