"""Who may connect, who may call what, and that nobody's misbehaviour is another's trouble."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import Authority
from processes import run

import embedstore as es
from embedstore.credentials import PLAIN, Credentials
from embedstore.peers import CHANNEL_OPTIONS
from embedstore.server import security
from embedstore.server.options import ShardOptions
from embedstore.server.security import ROLES, Tokens, role_needed
from embedstore.server.shard import Shard
from embedstore.server.takeover import activate
from embedstore.v1 import admin_pb2, store_pb2, sync_pb2

TABLE = es.TableSpec("t", dim=2, optimizer=es.SGD(1.0), num_chunks=4)
IDS = np.arange(50, dtype=np.uint64)
ONES = np.full((50, 2), -1.0, np.float32)
TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class TokenFile:
    """Tokens of all roles, as the server's file and as a file for each caller."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "tokens.toml"
        self.tokens = {role: f"secret-of-{role}" for role in ROLES}
        self.write()

    def write(self) -> None:
        sections = [
            f'[tokens.{role}]\nrole = "{role}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
            for role, token in self.tokens.items()
        ]
        temporary = self.path.with_suffix(".new")
        temporary.write_text("\n".join(sections))
        os.replace(temporary, self.path)
        for role, token in self.tokens.items():
            self.of(role).write_text(token + "\n")

    def of(self, role: str) -> Path:
        return self._directory / f"{role}.token"


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path)


def connect(address: str, credentials: Credentials, **options: Any) -> Any:
    return es.connect(address, credentials=credentials, **{"timeout_s": 5.0, "retry_s": 10.0, **options})


def test_everything_works_over_mtls_with_tokens(
    start: Callable[..., Shard], authority: Authority, tokens: TokenFile, tmp_path: Path
) -> None:
    own: dict[str, Any] = {
        "credentials": authority.credentials("server", token_file=tokens.of("admin")),
        "mtls": True,
        "tokens": tokens.path,
    }
    leader = start(tables=[TABLE], data=tmp_path / "shard", **own)
    follower = start(follow=[leader.address], **own)
    chained = start(follow=[follower.address], rows="fp16", **own)
    standby = start(follow=[leader.address], standby=True, data=tmp_path / "standby", **own)
    trainer = authority.credentials("trainer", token_file=tokens.of("train"))
    with connect(leader.address, trainer) as store:
        store.create_table(replace(TABLE, name="u"))
        store.push({"t": (IDS, ONES), "u": (IDS, ONES)})
        store.put_dense("weights", {"w": np.ones(3)}, {})
        [record] = activate([standby.address], None, force=False, timeout_s=TIMEOUT_S, credentials=own["credentials"])
        assert record.addresses == (standby.address,)
        store.push({"t": (IDS, ONES)})
        np.testing.assert_array_equal(store.pull({"t": IDS})["t"], -2 * ONES)
        assert sum(len(ids) for ids, _ in store.scan("u")) == len(IDS)
    reader = authority.credentials("reader", token_file=tokens.of("read"))
    with es.follow([standby.address], credentials=reader) as view:
        view.wait_synced(TIMEOUT_S)
        np.testing.assert_array_equal(view.pull({"t": IDS})["t"], -2 * ONES)
    assert chained.wait_ready(TIMEOUT_S)
    with connect(chained.address, reader) as store:
        np.testing.assert_array_equal(store.pull({"u": IDS})["u"], -ONES)


def test_only_those_who_the_authority_knows_can_connect(
    start: Callable[..., Shard], authority: Authority, tmp_path: Path
) -> None:
    server = start(tables=[TABLE], credentials=authority.credentials("only-server"), mtls=True)
    stranger = Authority(tmp_path / "stranger")
    whole = authority.credentials("client")
    with connect(server.address, whole) as store:
        assert "t" in store.tables()
    for bad in (
        PLAIN,
        Credentials(tls_ca=authority.ca),
        replace(stranger.credentials("client"), tls_ca=authority.ca),
        replace(whole, tls_ca=stranger.ca),
        replace(whole, tls_name="elsewhere"),
    ):
        with pytest.raises(es.UnavailableError, match=server.address) as refused:
            connect(server.address, bad, timeout_s=0.5, retry_s=0.5)
        assert ("does it speak TLS? (EMBEDSTORE_TLS_CA" in str(refused.value)) == (bad == PLAIN)


def test_certificates_are_renewed_on_disk_without_a_restart(
    start: Callable[..., Shard], authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    server_files, client_files = authority.credentials("renewed"), authority.credentials("renewed-client")
    assert server_files.tls_cert is not None
    assert server_files.tls_key is not None
    first = start(tables=[TABLE], credentials=server_files)
    with connect(first.address, client_files) as store:
        store.push({"t": (IDS, ONES)})
        new = other.credentials("server")
        assert new.tls_cert is not None
        assert new.tls_key is not None
        server_files.tls_cert.write_text("torn")  # what cannot be read changes nothing
        with connect(first.address, client_files) as again:
            again.tables()
        os.replace(new.tls_key, server_files.tls_key)
        os.replace(new.tls_cert, server_files.tls_cert)
        with connect(first.address, Credentials(tls_ca=other.ca)) as again:
            np.testing.assert_array_equal(again.pull({"t": IDS})["t"], -ONES)
        with pytest.raises(es.UnavailableError):
            connect(first.address, client_files, timeout_s=0.5, retry_s=0.5)


def test_a_client_goes_on_with_renewed_files(authority: Authority, tmp_path: Path) -> None:
    own = Authority(tmp_path / "own")
    other = Authority(tmp_path / "other")
    options = ShardOptions("127.0.0.1:0", tables=[TABLE], data=tmp_path / "data", credentials=own.credentials("server"))
    shard = Shard(options)
    shard.start()
    with connect(shard.address, Credentials(tls_ca=own.ca)) as store:
        store.push({"t": (IDS, ONES)})
        shard.stop()
        shard = Shard(replace(options, listen=shard.address, credentials=other.credentials("server")))
        shard.start()
        os.replace(other.ca, own.ca)
        np.testing.assert_array_equal(store.pull({"t": IDS})["t"], -ONES)
    shard.stop()


def every_method() -> list[tuple[str, Any]]:
    services = [file.DESCRIPTOR.services_by_name.values() for file in (store_pb2, admin_pb2, sync_pb2)]
    return [
        (f"/{service.full_name}/{method.name}", method)
        for group in services
        for service in group
        for method in service.methods
    ]


@pytest.mark.parametrize(("path", "method"), every_method(), ids=lambda value: str(value).rpartition("/")[2][:20])
def test_each_method_needs_its_role(start: Callable[..., Shard], tokens: TokenFile, path: str, method: Any) -> None:
    server = start(tables=[TABLE], tokens=tokens.path)
    needed = ROLES.index(role_needed(path))
    for rank, role in enumerate((None, *ROLES), start=-1):
        credentials = Credentials(token_file=tokens.of(role)) if role else PLAIN
        channel = credentials.channel(server.address, CHANNEL_OPTIONS)
        with channel:
            code = _code(channel, path, method)
        refused = grpc.StatusCode.UNAUTHENTICATED if role is None else grpc.StatusCode.PERMISSION_DENIED
        assert (code == refused) == (rank < needed), (role, code)


def _code(channel: grpc.Channel, path: str, method: Any) -> grpc.StatusCode:
    """How an empty request is answered."""
    try:
        if method.client_streaming:
            call: Any = channel.stream_stream(path, None, None)(iter([b""]), timeout=TIMEOUT_S)
            list(call)
        elif method.server_streaming:
            list(channel.unary_stream(path, None, None)(b"", timeout=TIMEOUT_S))
        else:
            channel.unary_unary(path, None, None)(b"", timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def test_a_reader_cannot_stand_by(start: Callable[..., Shard], tokens: TokenFile, tmp_path: Path) -> None:
    leader = start(tables=[TABLE], tokens=tokens.path)
    standby = start(
        follow=[leader.address],
        standby=True,
        data=tmp_path / "standby",
        credentials=Credentials(token_file=tokens.of("train")),
    )
    with connect(leader.address, Credentials(token_file=tokens.of("admin"))) as store:
        store.push({"t": (IDS, ONES)})
        assert store.stats().standbys == ()
    with pytest.raises(es.UnavailableError):
        activate([standby.address], None, force=True, timeout_s=1.0)


def test_tokens_change_without_a_restart(start: Callable[..., Shard], tokens: TokenFile) -> None:
    server = start(tables=[TABLE], tokens=tokens.path)
    credentials = Credentials(token_file=tokens.of("read"))
    with connect(server.address, credentials) as store:
        store.pull({"t": IDS})
        with pytest.raises(es.PermissionDeniedError, match="role train"):
            store.push({"t": (IDS, ONES)})
        tokens.path.write_text("[tokens")  # what cannot be read changes nothing
        store.pull({"t": IDS})
        old = tokens.tokens["read"]
        tokens.tokens["read"] = "another"
        tokens.write()
        store.pull({"t": IDS})
        tokens.of("read").write_text(old)
        with pytest.raises(es.UnauthenticatedError, match="not known"):
            store.pull({"t": IDS})


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("", "tokens"),
        ("[tokens", "tokens"),
        ("x = 1", "tokens"),
        ("tokens = 3", "tokens"),
        ('[tokens.a]\nsha256 = "00"', "tokens.a.role"),
        ('[tokens.a]\nrole = "root"', "tokens.a.role"),
        ('[tokens.a]\nrole = "read"\nsha256 = "secret"', "tokens.a.sha256"),
        (f'[tokens.a]\nrole = "read"\nsha256 = "{"0" * 64}"\ntoken = "x"', "tokens.a"),
    ],
)
def test_a_token_file_that_means_nothing_is_refused_by_name(tmp_path: Path, content: str, field: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content)
    with pytest.raises(es.InvalidArgumentError) as caught:
        Tokens(path)
    assert caught.value.field == field


def test_bad_files_are_refused_by_name(authority: Authority, tmp_path: Path) -> None:
    good = authority.credentials("good")
    (tmp_path / "garbage").write_text("garbage")
    (tmp_path / "empty").touch()
    (tmp_path / "two words").write_text("two words")
    for field in ("tls_ca", "tls_cert", "tls_key"):
        for path in (tmp_path / "garbage", tmp_path / "empty", tmp_path / "missing"):
            files: dict[str, Any] = {field: path}
            with pytest.raises(es.InvalidArgumentError, match=str(path)) as caught:
                Shard(ShardOptions("127.0.0.1:0", credentials=replace(good, **files), mtls=True)).start()
            assert caught.value.field in (field, "tls_cert")
    for path in (tmp_path / "empty", tmp_path / "two words", tmp_path / "missing"):
        with pytest.raises(es.InvalidArgumentError, match=str(path)):
            connect("127.0.0.1:1", Credentials(token_file=path))
    with pytest.raises(es.InvalidArgumentError, match=r"tls_key: .* tls_cert$"):
        Credentials(tls_cert=good.tls_cert)


def test_nothing_beyond_this_machine_goes_in_the_clear_unasked(tmp_path: Path, authority: Authority) -> None:
    for listen in ("0.0.0.0:0", "[::]:0", "example.org:1", "127.example.org:1"):
        with pytest.raises(es.InvalidArgumentError, match="plaintext_beyond_loopback"):
            ShardOptions(listen)
        ShardOptions(listen, plaintext_beyond_loopback=True)
        ShardOptions(listen, credentials=authority.credentials("beyond"))
    token = tmp_path / "token"
    token.write_text("secret")
    with pytest.raises(es.InvalidArgumentError, match="in the clear"):
        connect("192.0.2.1:7600", Credentials(token_file=token))


def test_the_environment_gives_credentials(authority: Authority) -> None:
    given = authority.credentials("environment")
    variables = {
        "EMBEDSTORE_TLS_CA": str(given.tls_ca),
        "EMBEDSTORE_TLS_CERT": str(given.tls_cert),
        "EMBEDSTORE_TLS_KEY": str(given.tls_key),
        "EMBEDSTORE_TOKEN_FILE": "",
    }
    assert Credentials.from_environment(variables) == given


def test_requests_that_never_come_keep_no_others_waiting(start: Callable[..., Shard]) -> None:
    server = start(tables=[TABLE], workers=2, requests_max=32)
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield from ()

    host, _, port = server.address.rpartition(":")
    with ExitStack() as stack:
        stack.callback(over.set)
        for _ in range(4):  # half a greeting
            half = stack.enter_context(socket.create_connection((host, int(port))))
            half.sendall(b"PRI * HTTP/2.0\r\n")
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        silent = channel.stream_unary("/embedstore.v1.EmbeddingService/Push", None, None)
        calls = [silent.future(nothing()) for _ in range(64)]
        with es.connect(server.address, timeout_s=TIMEOUT_S) as store:
            for _ in range(20):
                store.push({"t": (IDS, ONES)})
            np.testing.assert_array_equal(store.pull({"t": IDS})["t"], -20 * ONES)
        for call in calls:
            call.cancel()


def test_an_oversized_request_is_refused_and_others_go_on(start: Callable[..., Shard]) -> None:
    server = start(tables=[TABLE])
    with grpc.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        pull = channel.unary_unary("/embedstore.v1.EmbeddingService/Pull", None, None)
        with pytest.raises(grpc.RpcError) as caught:
            pull(bytes(65 << 20), timeout=TIMEOUT_S)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert pull(b"", timeout=TIMEOUT_S) == b""


def test_a_token_that_was_made_opens_the_door(start: Callable[..., Shard], tmp_path: Path) -> None:
    tokens, out = tmp_path / "tokens.toml", tmp_path / "ranker.token"
    made = ("token", "ranker", "--role", "read", "--tokens", str(tokens), "--out", str(out))
    assert run(made).returncode == 0
    assert out.stat().st_mode & 0o777 == 0o600
    server = start(tables=[TABLE], tokens=tokens)
    with connect(server.address, Credentials(token_file=out)) as store:
        assert "t" in store.tables()
    admin = tmp_path / "admin.token"
    assert run(["token", "me", "--role", "admin", "--tokens", str(tokens), "--out", str(admin)]).returncode == 0
    with connect(server.address, Credentials(token_file=admin)) as store:
        store.drop_table("t")
    before = tokens.read_text()
    for arguments, problem in (
        (made, "has a token of that name"),
        (("token", "new", "--role", "read", "--tokens", str(tokens), "--out", str(out)), "exists already"),
        (("token", "new", "--role", "root", "--tokens", str(tokens), "--out", str(tmp_path / "x")), "role"),
        (("token", "a]\n", "--role", "read", "--tokens", str(tokens), "--out", str(tmp_path / "x")), "name"),
        (("token", "new", "--role", "read", "--tokens", "/proc/tokens", "--out", str(tmp_path / "x")), "/proc"),
    ):
        refused = run(arguments)
        assert (refused.returncode, problem in refused.stderr) == (1, True), refused.stderr
    assert tokens.read_text() == before


@pytest.mark.parametrize("instead", [None, "read"], ids=["withdrawn", "of a lower role"])
def test_a_call_that_goes_on_ends_with_its_token(
    start: Callable[..., Shard], tokens: TokenFile, monkeypatch: pytest.MonkeyPatch, instead: str | None
) -> None:
    monkeypatch.setattr(security, "ASK_AGAIN_S", 0.05)
    large = replace(TABLE, name="large", dim=64)
    server = start(tables=[TABLE, large], tokens=tokens.path, heartbeat_interval_ms=20)
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        yield sync_pb2.FollowRequest(epoch=1, wants=sync_pb2.FollowWants(only_tables=["t"])).SerializeToString()
        over.wait(TIMEOUT_S)

    with ExitStack() as stack:
        store = stack.enter_context(connect(server.address, Credentials(token_file=tokens.of("admin"))))
        ids = np.arange(200_000, dtype=np.uint64)
        store.push({"large": (ids, np.ones((len(ids), 64), np.float32))})
        stack.callback(over.set)
        channel = stack.enter_context(grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS))
        metadata = (("authorization", f"Bearer {tokens.tokens['train']}"),)
        follow: Any = channel.stream_stream("/embedstore.v1.SyncService/Follow", None, None)(
            requests(), timeout=TIMEOUT_S, metadata=metadata
        )
        scan: Any = channel.unary_stream("/embedstore.v1.EmbeddingService/Scan", None, None)(
            store_pb2.ScanRequest(table="large").SerializeToString(), timeout=TIMEOUT_S, metadata=metadata
        )
        next(follow)
        next(scan)
        if instead is None:
            del tokens.tokens["train"]
        else:
            tokens.tokens["read"] = tokens.tokens.pop("train")
        tokens.write()
        for call in (follow, scan):
            with pytest.raises(grpc.RpcError) as caught:
                for _ in call:
                    pass
            code = grpc.StatusCode.PERMISSION_DENIED if instead else grpc.StatusCode.UNAUTHENTICATED
            assert caught.value.code() is code
        assert not server._serving.sync().followers
        store.push({"t": (IDS, ONES)})
