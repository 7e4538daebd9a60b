"""A small HTTP server for Prometheus, which nobody who connects can keep from answering the others, or from ending.

A connection has a thread of its own, in which all of it happens, the handshake of TLS included. Past
``CONNECTIONS_MAX`` the oldest one goes. Certificates are read again when they have changed.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import threading
from http.server import HTTPServer
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler

from embedstore.credentials import Credentials
from embedstore.errors import InvalidArgumentError

CONNECTIONS_MAX = 32
TIMEOUT_S = 10.0
log = logging.getLogger("embedstore.server")


class ScrapeServer(ThreadingMixIn, HTTPServer):
    """Answers at host:port from its creation to :meth:`stop`. :class:`OSError` when it cannot listen there,
    :class:`InvalidArgumentError` for certificates that are none."""

    daemon_threads = True

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, credentials: Credentials, *, mtls: bool
    ) -> None:
        self._credentials = credentials
        self._mtls = mtls
        self._stamp = credentials.stamp()
        self._context = None if credentials.tls_cert is None else _context(credentials, mtls)
        self._connections: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        [family, _, _, _, address], *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        self.address_family = family
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": TIMEOUT_S})
        super().__init__(address[:2], handler)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return str(self.server_address[0]), self.server_address[1]

    def url(self, host: str) -> str:
        """Where it answers those who call this machine ``host``."""
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://{host}:{self.server_address[1]}/metrics"

    def server_bind(self) -> None:
        """Without asking for the name of this machine, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.address

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; its handshake is for its own thread."""
        connection, address = super().get_request()
        context = self._present_context()
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin with it, at the expense of the oldest one if there are too many."""
        with self._lock:
            self._connections[request] = None
            oldest = next(iter(self._connections)) if len(self._connections) > CONNECTIONS_MAX else None
            if oldest is not None:
                del self._connections[oldest]
                _cut(oldest)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's thread."""
        if isinstance(request, ssl.SSLSocket):
            request.settimeout(TIMEOUT_S)
            request.do_handshake()
        super().finish_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """It is over."""
        with self._lock:
            self._connections.pop(request, None)
            super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Those who go away, or never were what they should be, are no news."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            log.debug("a scrape from %s ended early: %s", client_address, error)
        else:
            log.error("a scrape failed over a bug", exc_info=error)

    def stop(self) -> None:
        """Answer nobody any more."""
        _cut(self.socket)  # the thread looks up now, not when it would have by itself
        self.shutdown()
        self.server_close()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                _cut(connection)

    def _present_context(self) -> ssl.SSLContext | None:
        stamp = self._credentials.stamp()
        if self._context is not None and stamp != self._stamp:
            try:
                self._context = _context(self._credentials, self._mtls)
                self._stamp = stamp
            except (InvalidArgumentError, OSError) as error:
                log.error("the certificate for metrics stays as it was: %s", error)
        return self._context


def _context(credentials: Credentials, mtls: bool) -> ssl.SSLContext:
    credentials.check()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert credentials.tls_cert is not None
    context.load_cert_chain(credentials.tls_cert, credentials.tls_key, password="")
    if mtls and credentials.tls_ca is not None:
        context.load_verify_locations(credentials.tls_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _cut(connection: socket.socket) -> None:
    """Whoever waits for it, wakes up; its thread closes it."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError as error:
        log.debug("a connection was gone already: %s", error)
