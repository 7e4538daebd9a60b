"""Certificates whose time is over, or has not come: who they keep out says so, and new ones help without a restart."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import Authority

import embedstore as es
from embedstore.certificates import validity
from embedstore.credentials import Credentials
from embedstore.peers import Peer
from embedstore.server.options import ShardOptions
from embedstore.server.security import warn_of_end
from embedstore.server.shard import Shard

TABLE = es.TableSpec("t", dim=2, optimizer=es.SGD(1.0), num_chunks=4)
IDS = np.arange(50, dtype=np.uint64)
ONES = np.full((50, 2), -1.0, np.float32)
TIMEOUT_S = 20.0
HOUR_S, DAY_S, YEAR_S = 3600.0, 86_400.0, 365 * 86_400.0
EXPIRED = (-2 * YEAR_S, -HOUR_S)
TO_COME = (HOUR_S, 2 * YEAR_S)
GOOD = (-HOUR_S, DAY_S)
SHORT_S = 4.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def lasting(authority: Authority, name: str, span_s: tuple[float, float]) -> Credentials:
    """A certificate that holds for this time from now on."""
    now_s = time.time()
    return authority.lasting(name, now_s + span_s[0], now_s + span_s[1])


def put_in_place(new: Credentials, old: Credentials) -> None:
    """As an operator renews: the key first."""
    for name in ("tls_key", "tls_cert"):
        os.replace(getattr(new, name), getattr(old, name))


def connect(address: str, credentials: Credentials, retry_s: float = 0.5) -> Any:
    return es.connect(address, credentials=credentials, timeout_s=5.0, retry_s=retry_s)


@pytest.mark.parametrize(
    ("span_s", "said"), [(EXPIRED, "has expired"), (TO_COME, "not yet valid")], ids=["expired", "not yet valid"]
)
def test_a_server_whose_certificate_does_not_hold_is_refused_until_it_is_renewed(
    start: Callable[..., Shard], authority: Authority, span_s: tuple[float, float], said: str
) -> None:
    files = lasting(authority, "server", span_s)
    server = start(tables=[TABLE], credentials=files)
    client = Credentials(tls_ca=authority.ca)
    with pytest.raises(es.UnavailableError, match=f"certificate .*{said}") as caught:
        connect(server.address, client)
    assert caught.value.address == server.address
    put_in_place(lasting(authority, "renewed", GOOD), files)
    with connect(server.address, client, TIMEOUT_S) as store:
        assert "t" in store.tables()


@pytest.mark.parametrize(
    ("span_s", "said"), [(EXPIRED, "has expired on"), (TO_COME, "is not valid before")], ids=["expired", "to come"]
)
def test_a_client_whose_certificate_does_not_hold_is_told_so_until_it_is_renewed(
    start: Callable[..., Shard], authority: Authority, span_s: tuple[float, float], said: str
) -> None:
    server = start(tables=[TABLE], credentials=lasting(authority, "server", GOOD), mtls=True)
    files = lasting(authority, "client", span_s)
    with pytest.raises(es.UnavailableError, match=f"this process's certificate {files.tls_cert} {said} 20"):
        connect(server.address, files)
    put_in_place(lasting(authority, "renewed", GOOD), files)
    with connect(server.address, files, TIMEOUT_S) as store:
        assert "t" in store.tables()


def test_a_connected_client_goes_on_when_its_expired_certificate_is_renewed(
    authority: Authority, tmp_path: Path
) -> None:
    """It notices when it has to connect again. Its time goes by while it is connected."""
    server = lasting(authority, "server", GOOD)
    options = ShardOptions(
        "127.0.0.1:0", tables=[TABLE], data=tmp_path / "data", credentials=server, mtls=True, sync_interval_ms=10
    )
    with ExitStack() as stack:
        shard = Shard(options)
        shard.start()
        ends_s = time.time() + SHORT_S
        files = authority.lasting("client", ends_s - HOUR_S, ends_s)
        store = stack.enter_context(connect(shard.address, files, 2.0))
        view = stack.enter_context(es.follow(shard.address, credentials=files))
        store.push({"t": (IDS, ONES)})
        view.wait_synced(TIMEOUT_S)
        time.sleep(max(ends_s - time.time(), 0.0))  # this is what passes
        shard.stop()
        shard = Shard(replace(options, listen=shard.address))
        shard.start()
        stack.callback(shard.stop)
        with pytest.raises(es.UnavailableError, match=f"this process's certificate {files.tls_cert} has expired"):
            store.pull({"t": IDS})
        [link] = view._current_links()
        deadline_s = time.monotonic() + TIMEOUT_S
        while "has expired on" not in link.problem:
            assert time.monotonic() < deadline_s, link.problem
            time.sleep(0.02)
        put_in_place(lasting(authority, "renewed", GOOD), files)
        store.push({"t": (IDS, ONES)})
        while not (view.pull({"t": IDS})["t"] == store.pull({"t": IDS})["t"]).all():
            assert time.monotonic() < deadline_s + TIMEOUT_S, link.problem
            time.sleep(0.02)


def test_an_expired_certificate_is_nobodys_trouble_where_none_is_asked_for(
    start: Callable[..., Shard], authority: Authority
) -> None:
    server = start(tables=[TABLE], credentials=lasting(authority, "server", GOOD))
    expired = lasting(authority, "client", EXPIRED)
    with connect(server.address, expired, TIMEOUT_S) as store:
        assert "t" in store.tables()
    standby = start(follow=[server.address], standby=True, credentials=lasting(authority, "standby", GOOD))
    with closing(Peer(standby.address, expired)) as peer:
        with pytest.raises(grpc.RpcError) as caught:
            peer.unary("Watermarks")(b"", timeout=TIMEOUT_S)
        assert str(peer.explain(caught.value)) == f"{standby.address}: is a standby"


@pytest.mark.parametrize(
    ("span_s", "said"),
    [
        (EXPIRED, "has expired on 20"),
        (TO_COME, "is not valid before 20"),
        ((-YEAR_S, 6 * DAY_S), "expires on 20"),
        ((-3 * HOUR_S, 0.9 * HOUR_S), "expires on 20"),
        ((-YEAR_S, 8 * DAY_S), ""),
        ((-2 * HOUR_S, HOUR_S), ""),
    ],
)
def test_the_log_tells_of_certificates_that_do_not_hold_for_long(
    authority: Authority, caplog: pytest.LogCaptureFixture, span_s: tuple[float, float], said: str
) -> None:
    files = lasting(authority, "server", span_s)
    warn_of_end(files)
    assert [f"the certificate {files.tls_cert} {said}" in message for message in caplog.messages] == [True] * bool(said)


def test_a_server_warns_when_it_starts_and_when_it_has_read_a_certificate_again(
    start: Callable[..., Shard], authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files = lasting(authority, "server", (-YEAR_S, DAY_S))
    server = start(tables=[TABLE], credentials=files)
    assert [message for message in caplog.messages if "expires on" in message]
    caplog.clear()
    put_in_place(lasting(authority, "renewed", (-YEAR_S, 2 * DAY_S)), files)
    with caplog.at_level(logging.WARNING), connect(server.address, Credentials(tls_ca=authority.ca), TIMEOUT_S):
        [warned] = [message for message in caplog.messages if "expires on" in message]
    assert time.strftime("%Y-%m-%d", time.gmtime(time.time() + 2 * DAY_S)) in warned


@pytest.mark.parametrize("year", [1950, 1999, 2049, 2050, 2999])
def test_both_forms_of_times_are_read(authority: Authority, year: int) -> None:
    """Two digits for years until 2049, four from then on."""
    ends_s = (year - 1970) * 365.2425 * DAY_S + 200 * DAY_S
    files = authority.lasting("any", ends_s - 30 * DAY_S, ends_s)
    assert files.tls_cert is not None
    assert validity(b"words before it\n" + files.tls_cert.read_bytes()) == (int(ends_s - 30 * DAY_S), int(ends_s))


def test_what_is_no_certificate_has_no_time(authority: Authority) -> None:
    whole = authority.ca.read_bytes()
    for content in (
        b"",
        b"words",
        whole.replace(b"M", b"-"),
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----",
    ):
        assert validity(content) is None
    lines = whole.splitlines()
    assert validity(b"\n".join([lines[0], lines[1][:8], lines[-1]])) is None
