"""How a process shows who it is to servers, and knows them: TLS, a certificate of its own, a bearer token.

Every connection of clients, followers and shards to other processes is opened by :meth:`Credentials.channel`. Files are
read when a connection is opened, a token when its file is another than at the last call, so that what was renewed on
disk is used without a restart. What cannot be read once it could, because it is being replaced, is told in the log, and
the last that could counts.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import grpc

from embedstore.certificates import Validity, validity
from embedstore.errors import InvalidArgumentError, UnavailableError
from embedstore.status import from_rpc_error, is_refusal

ENVIRONMENT_PREFIX = "EMBEDSTORE_"
AUTHORIZATION = "authorization"
BEARER = "Bearer "
_FILE_BYTES_MAX = 1 << 20
_READS_MAX = 5
_SETTLED_NS = 1_000_000_000
"""A file that is younger may be written again without a sign of it, within one tick of the file system's clock."""

_LOCAL_OPTIONS = (("grpc.enable_http_proxy", 0),)
"""What is to stay within this machine goes by no proxy that the environment names."""

Read = TypeVar("Read")
_HUNG_UP = ("Socket closed", "Connection reset by peer")
"""Ends of what gRPC says when a server ends the connection, as one that speaks TLS does with a caller in the clear."""
log = logging.getLogger(__name__)


class Pems(NamedTuple):
    """Authorities, key and certificate chain that belong together."""

    ca: bytes | None
    key: bytes | None
    cert: bytes | None


@dataclass(frozen=True)
class Credentials:
    """Paths of PEM files and of a token. Without ``tls_ca`` connections are in the clear.

    ``tls_ca``: the authorities that servers' certificates must come from. ``tls_cert``, ``tls_key``: a certificate of
    this process, for servers that ask for one (mTLS). ``tls_name``: the name that servers' certificates carry when it
    is not the one in their addresses. ``token_file``: holds the bearer token that says what this process may do.

    A token goes over TLS or within this machine only: :class:`InvalidArgumentError` otherwise, and for a file that
    cannot be read. Usable from any thread.
    """

    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_name: str | None = None
    token_file: Path | None = None
    _last: dict[str, tuple[Any, str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _settled: dict[Path, tuple[Stamp, str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _known: dict[Path, tuple[Stamp, Validity]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("tls_ca", "tls_cert", "tls_key", "token_file"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        if (self.tls_cert is None) != (self.tls_key is None):
            lacks, has = ("tls_key", "tls_cert") if self.tls_key is None else ("tls_cert", "tls_key")
            raise InvalidArgumentError(lacks, f"is needed beside {has}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Credentials:
        """From ``EMBEDSTORE_TLS_CA``, ``_TLS_CERT``, ``_TLS_KEY``, ``_TLS_NAME`` and ``_TOKEN_FILE``."""
        names = [each.name for each in fields(cls) if each.init]
        return cls(**{name: environment.get(ENVIRONMENT_PREFIX + name.upper()) or None for name in names})  # type: ignore[arg-type]

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A new connection to a server."""
        local = _LOCAL_OPTIONS if is_loopback(address) else ()
        if self.tls_ca is not None:
            named = [("grpc.ssl_target_name_override", self.tls_name)] if self.tls_name else []
            secure = grpc.ssl_channel_credentials(*self._or_last("certificates", self.pems))
            channel = grpc.secure_channel(address, secure, options=[*options, *local, *named])
        else:
            channel = grpc.insecure_channel(address, options=[*options, *local])
        if self.token_file is None:
            return channel
        if self.tls_ca is None and not is_loopback(address):
            raise InvalidArgumentError("token_file", f"a token does not go to {address} in the clear: tls_ca is needed")
        self.token()
        return grpc.intercept_channel(channel, _Bearer(self))

    def token(self) -> str:
        """The token, as the file has it now."""
        assert self.token_file is not None
        settled = self._settled.get(self.token_file)
        if settled is not None and settled[0] == stamp_of(self.token_file):
            return settled[1]
        return self._or_last("token", self._token)

    def _token(self) -> str:
        assert self.token_file is not None
        stamp = stamp_of(self.token_file)  # before reading: then it is never newer than what was read
        token = read_file("token_file", self.token_file).decode("latin1").strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise InvalidArgumentError("token_file", f"{self.token_file} must hold one token")
        if time.time_ns() - stamp[0] > _SETTLED_NS:
            self._settled[self.token_file] = stamp, token
        return token

    def _or_last(self, what: str, read: Callable[[], Read]) -> Read:
        """What ``read`` gives, or while it cannot be read what it gave last."""
        try:
            found = read()
        except InvalidArgumentError as error:
            if what not in self._last:
                raise
            last, problem = self._last[what]
            if error.problem != problem:
                log.error("%s: used as before: %s", what, error)
            self._last[what] = last, error.problem
            return cast("Read", last)
        self._last[what] = found, ""
        return found

    def pems(self) -> Pems:
        """What the files hold now; :class:`InvalidArgumentError` as :meth:`check`."""
        for _ in range(_READS_MAX):
            stamp = self.stamp()
            self.check()
            pems = Pems(
                read_file("tls_ca", self.tls_ca) if self.tls_ca else None,
                read_file("tls_key", self.tls_key) if self.tls_key else None,
                read_file("tls_cert", self.tls_cert) if self.tls_cert else None,
            )
            if self.stamp() == stamp:
                return pems
        raise InvalidArgumentError("tls_cert", "the files do not stand still")

    def check(self) -> None:
        """:class:`InvalidArgumentError` naming the file that is not what it should be."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.tls_cert is not None and self.tls_key is not None:
            read_file("tls_cert", self.tls_cert)
            read_file("tls_key", self.tls_key)
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key, password="")
            except OSError as error:  # of which ssl.SSLError is one
                problem = f"{self.tls_cert} and {self.tls_key} are no certificate with its key: {error}"
                raise InvalidArgumentError("tls_cert", problem) from error
        if self.tls_ca is not None:
            read_file("tls_ca", self.tls_ca)
            try:
                context.load_verify_locations(self.tls_ca)
            except OSError as error:
                raise InvalidArgumentError("tls_ca", f"{self.tls_ca} holds no certificates: {error}") from error

    def validity(self) -> Validity | None:
        """From when until when this process's certificate holds; None without one. One that cannot be read, because it
        is being replaced, is what it was."""
        path = self.tls_cert
        if path is None:
            return None
        stamp, known = stamp_of(path), self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            found = validity(read_file("tls_cert", path))
        except InvalidArgumentError:  # which whoever uses the file reports
            found = None
        if found is None:
            return None if known is None else known[1]
        self._known[path] = stamp, found
        return found

    def explain(self, error: grpc.RpcError, address: str) -> Exception:
        """What a call to ``address`` that failed raises. A server that refuses this process's certificate says nothing
        and hangs up, so where nobody has answered, a certificate that does not hold is told of."""
        found, held = from_rpc_error(error, address), self.validity()
        if isinstance(found, UnavailableError) and self.tls_ca is None and found.problem.endswith(_HUNG_UP):
            return UnavailableError(
                found.address, f"{found.problem}; does it speak TLS? (EMBEDSTORE_TLS_CA, or credentials=)"
            )
        problem = held.problem() if held is not None else ""
        if not problem or is_refusal(error) or not isinstance(found, UnavailableError):
            return found
        told = f"this process's certificate {self.tls_cert} {problem}, so servers that ask for one refuse it"
        return UnavailableError(found.address, f"{found.problem}; {told}")

    def stamp(self) -> tuple[Stamp, ...]:
        """Differs once a certificate, key or authority on disk is another."""
        paths = [path for path in (self.tls_ca, self.tls_cert, self.tls_key) if path is not None]
        return tuple(stamp_of(path) for path in paths)


PLAIN = Credentials()
"""Everything in the clear, and no token."""


def read_file(field: str, path: Path) -> bytes:
    """What a small file holds; :class:`InvalidArgumentError` naming the field."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidArgumentError(field, f"{path}: {error.strerror}") from error
    if not data or len(data) > _FILE_BYTES_MAX:
        raise InvalidArgumentError(field, f"{path} is {'too large' if data else 'empty'}")
    return data


def is_loopback(address: str) -> bool:
    """Whether host:port stays within this machine."""
    host = address.rpartition(":")[0]
    if ":" in host and not (host.startswith("[") and host.endswith("]")):  # all of it may be one IPv6 address
        return False
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp:
    """Differs once the file is another; also when it is gone."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_ino, status.st_size  # a file may be written twice within one tick of the clock


class _Details(NamedTuple):
    method: Any
    timeout: Any
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _CallDetails(_Details, grpc.ClientCallDetails):
    pass


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Puts the token into the metadata of every call."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """See :class:`grpc.UnaryUnaryClientInterceptor`."""
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """See :class:`grpc.UnaryStreamClientInterceptor`."""
        return continuation(self._with_token(client_call_details), request)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """See :class:`grpc.StreamStreamClientInterceptor`."""
        return continuation(self._with_token(client_call_details), request_iterator)

    def _with_token(self, call: Any) -> _CallDetails:
        metadata = [*(call.metadata or ()), (AUTHORIZATION, BEARER + self._credentials.token())]
        rest = (call.credentials, call.wait_for_ready, call.compression)
        return _CallDetails(call.method, call.timeout, metadata, *rest)
