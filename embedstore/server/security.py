"""Who may call this process, and what: TLS with certificates that can be renewed, and bearer tokens with roles.

A token file is TOML, a section a token: ``[tokens.NAME]`` with ``role`` (read, train or admin; each may do what those
before it may) and ``sha256``, the digest of the token in hexadecimal. The token itself is nowhere on the server. The
health service is open to everyone who can connect. Usable from any thread.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health

from embedstore.certificates import moment
from embedstore.credentials import AUTHORIZATION, BEARER, Credentials, read_file, stamp_of
from embedstore.errors import (
    EmbedstoreError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from embedstore.server.metrics import Requests
from embedstore.status import to_status

log = logging.getLogger("embedstore.server")

ROLES = ("read", "train", "admin")
_READ = frozenset(
    ["Pull", "Scan", "GetDense", "Watermarks", "DescribeTable", "ListTables", "Topology", "Stats", "Follow"]
)
_TRAIN = frozenset(["Push", "Assign", "Delete", "OpenStream", "PutDense", "CreateTable", "Checkpoint"])
_LONG = frozenset(["Follow", "Scan", "ServerReflectionInfo"])
_OPEN = f"/{health.SERVICE_NAME}/"
UNKNOWN_METHOD = "unknown"
"""As a label: callers choose the names of methods that are not there."""
_REFLECTION = "ServerReflectionInfo"
_SHA256_CHARS = 64
WARN_S = 7 * 86_400.0
LOOK_INTERVAL_S = 86_400.0
ASK_AGAIN_S = 5.0
"""So often a call that goes on is asked for its token again."""


def role_needed(method: str) -> str:
    """For a method by its path; what is not known here needs the highest."""
    name = method.rpartition("/")[2]
    if name in _READ or name == _REFLECTION:
        return "read"
    return "train" if name in _TRAIN else "admin"


class Tokens:
    """The tokens of a file, read again when it has changed; one that cannot be read then is told in the log, and the
    last good one holds. :class:`InvalidArgumentError` names what is wrong with the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = stamp_of(path)
        self._problem = ""
        self._roles = read_tokens(path)

    def require(self, role: str, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """:class:`UnauthenticatedError` or :class:`PermissionDeniedError` unless the caller's token has this role;
        returns the one that it has."""
        given = next((value for key, value in metadata if key == AUTHORIZATION), "")
        if not isinstance(given, str) or not given.startswith(BEARER):
            raise UnauthenticatedError("a bearer token is needed (EMBEDSTORE_TOKEN_FILE, or credentials=)")
        found = self._role(hashlib.sha256(given.removeprefix(BEARER).encode()).hexdigest())
        if found is None:
            raise UnauthenticatedError("this token is not known here")
        if ROLES.index(found) < ROLES.index(role):
            raise PermissionDeniedError(f"needs a token with role {role}, this one has {found}")
        return found

    def _role(self, digest: str) -> str | None:
        stamp = stamp_of(self._path)
        if stamp != self._stamp:
            try:
                self._roles = read_tokens(self._path)
                self._stamp, self._problem = stamp, ""
            except InvalidArgumentError as error:  # the next call tries again: it may be half-written
                if error.problem != self._problem:
                    log.error("the tokens stay as they were: %s", error)
                self._problem = error.problem
        return next((role for known, role in self._roles.items() if hmac.compare_digest(known, digest)), None)


def read_tokens(path: Path) -> dict[str, str]:
    """Roles by digest; :class:`InvalidArgumentError` names what is wrong with the file."""
    data = read_file("tokens", path)
    try:
        sections = tomllib.loads(data.decode()).get("tokens")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError("tokens", f"{path}: {error}") from error
    if not isinstance(sections, dict) or not sections:
        raise InvalidArgumentError("tokens", f"{path} has no [tokens.NAME] section")
    roles = {}
    for name, section in sections.items():
        entries = section if isinstance(section, dict) else {}
        role, digest = entries.get("role"), str(entries.get("sha256", "")).lower()
        if role not in ROLES:
            raise InvalidArgumentError(f"tokens.{name}.role", f"must be one of {', '.join(ROLES)}, not {role!r}")
        if len(digest) != _SHA256_CHARS or set(digest) - set("0123456789abcdef"):
            raise InvalidArgumentError(f"tokens.{name}.sha256", "must be 64 hexadecimal digits")
        if set(entries) - {"role", "sha256"}:
            raise InvalidArgumentError(f"tokens.{name}", "has role and sha256, nothing else")
        roles[digest] = role
    return roles


class TokenCheck(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls before anything of their request is read, and counts that in ``requests``."""

    def __init__(self, tokens: Tokens, requests: Requests) -> None:
        self._tokens = tokens
        self._requests = requests

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See :class:`grpc.ServerInterceptor`."""
        method = handler_call_details.method
        name = method.rpartition("/")[2]
        handler: grpc.RpcMethodHandler[Any, Any] | None
        role = ""
        if not method.startswith(_OPEN):
            try:
                role = self._tokens.require(role_needed(method), handler_call_details.invocation_metadata)
            except EmbedstoreError as error:
                known = name in _READ or name in self._requests.seconds
                self._requests.refuse(name if known else UNKNOWN_METHOD, error)
                return _refusal(error)
        handler = continuation(handler_call_details)
        if handler is not None and name in _LONG and handler.stream_stream is not None:
            return self._asked_again(handler, name, role)
        return handler

    def _asked_again(
        self, handler: grpc.RpcMethodHandler[Any, Any], name: str, role: str
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The same method, as long as the token has the role that it had at first."""

        def answers(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            due_s = time.monotonic() + ASK_AGAIN_S
            messages: Any = handler.stream_stream(requests, context)  # type: ignore[misc]
            with closing(messages):
                for message in messages:
                    if time.monotonic() >= due_s:
                        due_s = time.monotonic() + ASK_AGAIN_S
                        try:
                            self._tokens.require(role, context.invocation_metadata())
                        except EmbedstoreError as error:
                            self._requests.refuse(name, error)
                            context.abort_with_status(to_status(error))
                    yield message

        return grpc.stream_stream_rpc_method_handler(answers, handler.request_deserializer, handler.response_serializer)


def _refusal(error: EmbedstoreError) -> grpc.RpcMethodHandler[Any, Any]:
    def refuse(requests: Any, context: grpc.ServicerContext) -> Any:
        context.abort_with_status(to_status(error))

    # As a stream of requests nothing is waited for; what the caller thinks the method is makes no difference.
    return grpc.stream_stream_rpc_method_handler(refuse)


def server_credentials(credentials: Credentials, *, mtls: bool) -> grpc.ServerCredentials | None:
    """TLS with the process's certificate, as it is on disk at each handshake; None without one.

    ``mtls``: callers need one, too, from ``tls_ca``. :class:`InvalidArgumentError` for files that are no such thing.
    """
    if credentials.tls_cert is None:
        if mtls:
            raise InvalidArgumentError("mtls", "needs tls_cert, tls_key and tls_ca")
        return None
    if mtls and credentials.tls_ca is None:
        raise InvalidArgumentError("tls_ca", "is needed for mtls: who callers' certificates must come from")
    stamp, looked_s = credentials.stamp(), time.monotonic()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal stamp, looked_s
        now = credentials.stamp()
        if now == stamp:
            if time.monotonic() - looked_s >= LOOK_INTERVAL_S:
                looked_s = time.monotonic()
                warn_of_end(credentials)
            return None
        try:
            configuration = _configuration(credentials, mtls)
        except InvalidArgumentError as error:
            log.error("the certificate stays as it was: %s", error)
            return None
        stamp, looked_s = now, time.monotonic()
        warn_of_end(credentials)
        return configuration

    warn_of_end(credentials)
    return grpc.dynamic_ssl_server_credentials(_configuration(credentials, mtls), renewed, mtls)  # type: ignore[arg-type]


def warn_of_end(credentials: Credentials) -> None:
    """Say in the log when the process's certificate does not hold, or not for long any more: in its last week, or its
    last quarter where that is shorter."""
    held = credentials.validity()
    if held is None:
        return
    left_s = held.ends_s - time.time()
    if problem := held.problem():
        log.error("the certificate %s %s: callers refuse it", credentials.tls_cert, problem)
    elif left_s < min(WARN_S, (held.ends_s - held.begins_s) / 4):
        log.warning("the certificate %s expires on %s", credentials.tls_cert, moment(held.ends_s))


def _configuration(credentials: Credentials, mtls: bool) -> grpc.ServerCertificateConfiguration:
    ca, key, cert = credentials.pems()
    assert key is not None
    assert cert is not None
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca if mtls else None)
