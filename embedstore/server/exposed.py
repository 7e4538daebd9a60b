"""Metrics of a store that lives inside another program, at a port of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from prometheus_client.registry import Collector

from embedstore.credentials import Credentials
from embedstore.errors import ClosedError, InvalidArgumentError
from embedstore.server.follow import FollowerStore
from embedstore.server.metrics import check_listen, of_store, serve_metrics
from embedstore.table_set import TableSet


class StoreMetrics(Collector):
    """Turns an embedded store's or a view's numbers into metrics; can be registered with any registry of
    :mod:`prometheus_client`."""

    def __init__(self, store: Any) -> None:
        if not isinstance(store, TableSet):
            raise InvalidArgumentError("store", "must be an embedded store or a follower of this process")
        self._store: TableSet = store

    def collect(self) -> Iterator[Any]:
        """See :class:`prometheus_client.registry.Collector`; nothing of a closed store."""
        store = self._store
        try:
            yield from of_store(store.stats(), store.synced if isinstance(store, FollowerStore) else None)
        except ClosedError:
            return


class ExposedMetrics:
    """Answers scrapes at ``address``, host:port as it was opened, until it is closed."""

    def __init__(self, store: Any, listen: str, credentials: Credentials) -> None:
        check_listen("listen", listen, credentials)
        self._server = serve_metrics(listen, [StoreMetrics(store)], credentials, mtls=False)
        self.address = f"{listen.rpartition(':')[0]}:{self._server.address[1]}"

    def close(self) -> None:
        """Answer nobody any more. Twice is harmless."""
        self._server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def expose_metrics(store: Any, listen: str, *, credentials: Credentials | None = None) -> ExposedMetrics:
    """Tell Prometheus at ``listen`` (host:port; port 0 takes a free one) what this process holds of ``store``, an
    embedded one or a follower: ``http://HOST:PORT/metrics``, https where ``credentials`` have a certificate.

    ``credentials``: those of the environment when not given; beyond this machine they must have a certificate
    (:class:`InvalidArgumentError`). :class:`UnavailableError` when it cannot listen there.
    """
    return ExposedMetrics(store, listen, Credentials.from_environment() if credentials is None else credentials)
