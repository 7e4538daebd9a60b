"""Nobody who connects to the metrics port keeps others from their numbers, or the process from ending."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from certificates import Authority
from prometheus_client import CollectorRegistry, Gauge

from embedstore.credentials import PLAIN, Credentials
from embedstore.server import scrapes
from embedstore.server.metrics import serve_metrics
from embedstore.server.scrapes import CONNECTIONS_MAX, ScrapeServer

ODD = 'a"b\\c\nd{}é€\u2028'


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("odd", 'help with "\\ and\nlines', ["name"], registry=registry).labels(ODD).set(7)
    return registry


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connected(stack: ExitStack, server: ScrapeServer) -> socket.socket:
    return stack.enter_context(socket.create_connection(server.address, timeout=10))


def scraped(server: ScrapeServer, context: ssl.SSLContext | None = None) -> str:
    scheme = "http" if context is None else "https"
    host, port = server.address
    host = f"[{host}]" if ":" in host else host
    with urllib.request.urlopen(f"{scheme}://{host}:{port}/metrics", context=context, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_handshakes_that_never_end_hold_up_neither_scrapes_nor_the_end(
    stack: ExitStack, registry: CollectorRegistry, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    server = ScrapeServer("127.0.0.1", 0, registry, authority.credentials("server"), mtls=False)
    context = ssl.create_default_context(cafile=authority.ca)
    for bytes_sent in (b"", b"\x16", b"GET / HTTP/1.0\r\n\r\n"):
        connected(stack, server).sendall(bytes_sent)
    began_s = time.monotonic()
    assert "odd" in scraped(server, context)
    server.stop()
    assert time.monotonic() - began_s < scrapes.TIMEOUT_S


def test_slow_callers_are_bounded_and_the_newest_is_answered(stack: ExitStack, registry: CollectorRegistry) -> None:
    server = ScrapeServer("127.0.0.1", 0, registry, PLAIN, mtls=False)
    stack.callback(server.stop)
    before = threading.active_count()
    slow = [connected(stack, server) for _ in range(3 * CONNECTIONS_MAX)]
    for each in slow[-CONNECTIONS_MAX:]:
        each.sendall(b"GET /metrics HT")
    for _ in range(5):
        assert "odd" in scraped(server)
    assert slow[0].recv(1) == b""
    assert len(server._connections) <= CONNECTIONS_MAX
    deadline_s = time.monotonic() + 10
    while threading.active_count() > before + CONNECTIONS_MAX:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_whoever_sends_nothing_is_let_go(
    stack: ExitStack, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrapes, "TIMEOUT_S", 0.2)
    server = ScrapeServer("127.0.0.1", 0, registry, PLAIN, mtls=False)
    stack.callback(server.stop)
    assert connected(stack, server).recv(1) == b""


def test_a_renewed_certificate_is_used_without_a_restart(
    stack: ExitStack, registry: CollectorRegistry, tmp_path: Path
) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    files, other = old.credentials("server"), new.credentials("server")
    server = ScrapeServer("127.0.0.1", 0, registry, files, mtls=False)
    stack.callback(server.stop)
    scraped(server, ssl.create_default_context(cafile=old.ca))
    for name in ("tls_key", "tls_cert"):
        os.replace(getattr(other, name), getattr(files, name))
        if name == "tls_key":  # half-way
            scraped(server, ssl.create_default_context(cafile=old.ca))
    scraped(server, ssl.create_default_context(cafile=new.ca))


def test_the_log_says_the_whole_url(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for scheme, credentials in (("http", PLAIN), ("https", Authority(tmp_path).credentials("server"))):
        with caplog.at_level("INFO", "embedstore.server"):
            server = serve_metrics("127.0.0.1:0", [], credentials, mtls=False)
        server.stop()
        assert caplog.messages[-1] == f"metrics at {scheme}://127.0.0.1:{server.address[1]}/metrics"


def test_odd_names_are_escaped(stack: ExitStack, registry: CollectorRegistry) -> None:
    server = ScrapeServer("::1", 0, registry, Credentials(), mtls=False)
    stack.callback(server.stop)
    [line] = [line for line in scraped(server).split("\n") if line.startswith("odd{")]
    assert line == 'odd{name="a\\"b\\\\c\\nd{}é€\u2028"} 7.0'


def test_a_server_that_nobody_asks_ends_at_once(registry: CollectorRegistry) -> None:
    began_s = time.monotonic()
    for _ in range(5):
        ScrapeServer("127.0.0.1", 0, registry, PLAIN, mtls=False).stop()
    assert time.monotonic() - began_s < 1.5
