"""What processes tell Prometheus, as a server of its kind reads it."""

from __future__ import annotations

import re
import ssl
import urllib.request
from collections.abc import Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from embedstore.server.exposed import ExposedMetrics
from embedstore.server.shard import Shard

NO_BASE_UNIT = re.compile(
    r"_(ns|us|ms|s|millis\w*|micros\w*|minutes?|hours?|days?|kb|mb|gb|kib|mib|gib|bits?|percent)(_|$)"
)


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


def check_told(found: Mapping[str, Metric], prefix: str) -> None:
    """Everything that is ours has a type, a sentence of its own that explains it, and a name in base units."""
    ours = {name: family for name, family in found.items() if name.startswith(prefix)}
    assert ours
    for name, family in ours.items():
        assert family.type in ("counter", "gauge", "histogram"), name
        words = family.documentation.split()
        assert len(words) >= 5 and family.documentation.endswith("."), (name, family.documentation)
        assert words[0][0] in "1ABCDEFGHIJKLMNOPQRSTUVWXYZ", (name, family.documentation)
        assert ":" not in family.documentation and "_" not in family.documentation, (name, family.documentation)
        assert not NO_BASE_UNIT.search(name), name
        assert family.type != "histogram" or name.endswith("_seconds"), name
        totals = [each.name.endswith("_total") for each in family.samples]
        assert all(totals) if family.type == "counter" else not any(totals), name
    sentences = [family.documentation for family in ours.values()]
    assert len(set(sentences)) == len(sentences)
