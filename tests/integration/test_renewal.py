"""Certificates, keys and tokens may be replaced on disk at any time, in any order: nobody falls silent over it."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from certificates import Authority
from waiting import until

import embedstore as es
from embedstore import credentials
from embedstore.credentials import Credentials, is_loopback
from embedstore.server.members import Members
from embedstore.server.options import ShardOptions
from embedstore.server.security import Tokens
from embedstore.server.shard import Shard

TABLE = es.TableSpec("t", dim=2, optimizer=es.SGD(1.0), num_chunks=4)
IDS = np.arange(50, dtype=np.uint64)
ONES = np.full((50, 2), -1.0, np.float32)
TIMEOUT_S = 20.0


class Renewed:
    """A shard with data on disk, a caller's files, and another authority that both go over to."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.old, self.new = Authority(directory / "old"), Authority(directory / "new")
        self.caller = self.old.credentials("caller")
        first = self.old.credentials("server")
        self._options = ShardOptions(
            "127.0.0.1:0", tables=[TABLE], data=directory / "data", credentials=first, mtls=True, sync_interval_ms=10
        )
        self.shard = Shard(self._options)
        self.shard.start()
        stack.callback(self.stop)

    def stop(self) -> None:
        self.shard.stop()

    def spoil(self) -> None:
        """Only the key has come."""
        other = self.new.credentials("caller")
        assert other.tls_key is not None
        assert self.caller.tls_key is not None
        self._files = other
        self.caller.tls_key.write_bytes(other.tls_key.read_bytes())

    def complete(self) -> None:
        """Now the rest has."""
        for name in ("tls_key", "tls_cert", "tls_ca"):
            os.replace(getattr(self._files, name), getattr(self.caller, name))

    def restart(self, mend: Callable[[], None]) -> None:
        """The shard goes over to the other authority; ``mend`` happens while it is away."""
        address = self.shard.address
        server = self.new.credentials("server")
        ca = server.tls_ca
        assert ca is not None
        kept = ca.with_name("kept.pem")
        kept.write_bytes(ca.read_bytes())
        self.shard.stop()
        mend()
        self.shard = Shard(replace(self._options, listen=address, credentials=replace(server, tls_ca=kept)))
        self.shard.start()


def test_a_follower_goes_on_after_a_renewal_that_it_met_half_way(tmp_path: Path) -> None:
    with ExitStack() as stack:
        renewed = Renewed(tmp_path, stack)
        view = stack.enter_context(es.follow(renewed.shard.address, credentials=renewed.caller))
        view.wait_synced(TIMEOUT_S)

        def mend() -> None:
            renewed.spoil()
            [link] = view._current_links()
            until(lambda: not link.connected and link.problem != "")
            time.sleep(0.5)  # some attempts with what does not fit
            renewed.complete()

        renewed.restart(mend)
        with es.connect(renewed.shard.address, credentials=renewed.caller) as store:
            store.push({"t": (IDS, ONES)})
        until(lambda: bool((view.pull({"t": IDS})["t"] == -ONES).all()))
        assert view._search.is_alive()


def test_members_are_asked_with_renewed_certificates(tmp_path: Path) -> None:
    with ExitStack() as stack:
        renewed = Renewed(tmp_path, stack)
        members = Members([renewed.shard.address], renewed.caller)
        stack.callback(members.close)
        assert members._ask([renewed.shard.address])
        renewed.spoil()
        renewed.restart(renewed.complete)
        until(lambda: bool(members._ask([renewed.shard.address])))


def test_calls_in_many_threads_outlive_a_renewal(tmp_path: Path) -> None:
    with ExitStack() as stack:
        renewed = Renewed(tmp_path, stack)
        store = stack.enter_context(
            es.connect(renewed.shard.address, credentials=renewed.caller, timeout_s=5.0, retry_s=60.0)
        )
        store.push({"t": (IDS, ONES)})
        stop, problems, calls = threading.Event(), list[Exception](), [0] * 8

        def pull(thread: int) -> None:
            try:
                while not stop.is_set():
                    np.testing.assert_array_equal(store.pull({"t": IDS})["t"], -ONES)
                    calls[thread] += 1
            except Exception as error:
                problems.append(error)

        threads = [threading.Thread(target=pull, args=(i,)) for i in range(len(calls))]
        for thread in threads:
            thread.start()
        until(lambda: min(calls) > 3)
        renewed.spoil()
        renewed.restart(renewed.complete)
        before = list(calls)
        until(lambda: bool(problems) or all(now > then for now, then in zip(calls, before, strict=True)))
        stop.set()
        for thread in threads:
            thread.join()
        assert problems == []


def section(token: str) -> str:
    return f'[tokens.a]\nrole = "read"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'


def test_a_token_file_that_is_written_in_steps_counts_when_it_is_whole(tmp_path: Path) -> None:
    """All steps within one tick of the file system's clock."""
    path, at_ns = tmp_path / "tokens.toml", 1_700_000_000_000_000_000

    def write(content: str) -> None:
        path.write_text(content)
        os.utime(path, ns=(at_ns, at_ns))

    write(section("old"))
    tokens = Tokens(path)
    for content in ("", section("new")[:40], section("new")[:-3]):
        write(content)
        tokens.require("read", [("authorization", "Bearer old")])
    write(section("new") + "\n")
    tokens.require("read", [("authorization", "Bearer new")])
    with pytest.raises(es.UnauthenticatedError):
        tokens.require("read", [("authorization", "Bearer old")])


def test_a_callers_token_counts_while_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(section("one"))
    file = tmp_path / "token"
    file.write_text("one")
    shard = Shard(ShardOptions("127.0.0.1:0", tables=[TABLE], tokens=tmp_path / "tokens.toml"))
    shard.start()
    try:
        with es.connect(shard.address, credentials=Credentials(token_file=file)) as store:
            file.write_text("")
            assert "t" in store.tables()
            file.unlink()
            store.pull({"t": IDS})
    finally:
        shard.stop()
    file.write_bytes(b"\xff\xfetoken")
    with pytest.raises(es.InvalidArgumentError, match="one token"):
        es.connect(shard.address, credentials=Credentials(token_file=file))


def test_a_token_is_read_again_only_when_its_file_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = list[Path](), credentials.read_file

    def counted(field: str, path: Path) -> bytes:
        reads.append(path)
        return read(field, path)

    monkeypatch.setattr(credentials, "read_file", counted)
    file, new = tmp_path / "token", tmp_path / "new"

    def settled(path: Path, content: str, age_s: float = 60.0) -> None:
        path.write_text(content)
        os.utime(path, (time.time() - age_s,) * 2)

    settled(file, "one")
    caller = Credentials(token_file=file)
    assert {caller.token() for _ in range(100)} == {"one"}
    assert len(reads) == 1
    settled(new, "two")
    os.replace(new, file)
    assert {caller.token() for _ in range(100)} == {"two"}
    assert len(reads) == 2
    settled(file, "")
    assert {caller.token() for _ in range(3)} == {"two"}
    settled(file, "three")
    assert {caller.token() for _ in range(100)} == {"three"}


def test_a_token_that_is_written_twice_within_one_tick_counts(tmp_path: Path) -> None:
    file, at_ns = tmp_path / "token", time.time_ns() + 10_000_000_000  # as young as can be, however slow this is
    caller = Credentials(token_file=file)
    for content in ("one", "two"):
        file.write_text(content)
        os.utime(file, ns=(at_ns, at_ns))
        assert caller.token() == content


def test_a_follower_is_told_at_once_what_is_wrong_with_its_files(tmp_path: Path) -> None:
    with pytest.raises(es.InvalidArgumentError, match="token_file"):
        es.follow("127.0.0.1:1", credentials=Credentials(token_file=tmp_path / "missing"))


def test_a_follower_without_a_token_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(section("one"))
    shard = Shard(ShardOptions("127.0.0.1:0", tables=[TABLE], tokens=tmp_path / "tokens.toml"))
    shard.start()
    try:
        with es.follow(shard.address) as view:
            until(lambda: view._unknown != "")
            with pytest.raises(
                es.UnavailableError, match=r"a bearer token is needed \(EMBEDSTORE_TOKEN_FILE, or credentials=\)"
            ):
                view.wait_synced(0.1)
    finally:
        shard.stop()


def test_a_token_for_this_machine_goes_to_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens.toml").write_text(section("one"))
    file = tmp_path / "token"
    file.write_text("one")
    shard = Shard(ShardOptions("127.0.0.1:0", tables=[TABLE], tokens=tmp_path / "tokens.toml"))
    shard.start()
    try:
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            proxy.settimeout(0.2)
            for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY", "grpc_proxy", "https_proxy"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
            with es.connect(shard.address, credentials=Credentials(token_file=file), timeout_s=2, retry_s=2) as store:
                assert "t" in store.tables()
            with pytest.raises(TimeoutError):
                proxy.accept()
    finally:
        shard.stop()


def test_an_address_that_can_be_read_in_two_ways_is_not_this_machine() -> None:
    assert not is_loopback("::1:7600")
    assert is_loopback("[::1]:7600")
