"""Errors as gRPC statuses and back: one table, so that a remote store raises exactly what an embedded one would.

A refused call carries the error's code, its message, and a ``google.rpc.Status`` whose detail is an ``ErrorDetail``
with the error's class name and values. Pure functions, usable from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from embedstore import errors
from embedstore.v1 import admin_pb2

MESSAGE_CHARS_MAX = 1024
METADATA_BYTES_MAX = 1 << 20
"""Bound of a call's metadata, in which the detail travels; both sides of a channel must set it."""

DETAIL_BYTES_MAX = METADATA_BYTES_MAX // 2
DETAIL_CHARS_MAX = 1024

SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""Codes of a call that nobody answered. CANCELLED: it reached a server in the moment that it stopped accepting, or had
to make room for another there."""

FULL = "Concurrent RPC limit exceeded"
"""What gRPC's server says, as RESOURCE_EXHAUSTED, of a call that it has not begun because there are too many."""


class Topology(NamedTuple):
    """One assignment of chunks to shards; ``addresses`` of all shards in order, empty when they are not known."""

    epoch: int
    addresses: tuple[str, ...]
    num_shards: int


Detail = admin_pb2.ErrorDetail


class _Row(NamedTuple):
    pack: Callable[[Any, Detail], None]
    unpack: Callable[[Detail], Exception]


def _set(detail: Detail, name: str = "", problem: str = "", topology: Topology | None = None, **numbers: int) -> None:
    detail.name, detail.problem = name, problem
    for key, value in numbers.items():
        detail.numbers[key] = value
    if topology is not None:
        detail.topology.CopyFrom(topology_to_proto(topology))


def topology_to_proto(topology: Topology) -> admin_pb2.TopologyRecord:
    """The record as a message."""
    return admin_pb2.TopologyRecord(epoch=topology.epoch, addresses=topology.addresses, num_shards=topology.num_shards)


def topology_from_proto(message: admin_pb2.TopologyRecord) -> Topology:
    """Read a record."""
    return Topology(message.epoch, tuple(message.addresses), message.num_shards)


def _topology(detail: Detail) -> Topology | None:
    return topology_from_proto(detail.topology) if detail.HasField("topology") else None


def _pack_gap(error: errors.GapError, detail: Detail) -> None:
    for stream, positions in error.watermarks.items():
        detail.streams.add(stream=stream, watermarks=positions)


def _plain(cls: type[errors.EmbedstoreError]) -> _Row:
    return _Row(lambda error, detail: _set(detail, problem=str(error)), lambda detail: cls(detail.problem))


def _named(cls: type[errors.EmbedstoreError], attribute: str) -> _Row:
    return _Row(lambda error, detail: _set(detail, getattr(error, attribute)), lambda detail: cls(detail.name))


def _argument(cls: type[errors.InvalidArgumentError]) -> _Row:
    return _Row(
        lambda error, detail: _set(detail, error.field, error.problem), lambda detail: cls(detail.name, detail.problem)
    )


_ROWS: dict[type[Exception], _Row] = {
    errors.InvalidArgumentError: _argument(errors.InvalidArgumentError),
    errors.UnsupportedError: _argument(errors.UnsupportedError),
    errors.EmbedstoreError: _plain(errors.EmbedstoreError),
    errors.TableNotFoundError: _named(errors.TableNotFoundError, "table"),
    errors.TableExistsError: _Row(
        lambda error, detail: _set(detail, error.table, f"{error.field} {error.values}".rstrip()),
        lambda detail: errors.TableExistsError(detail.name, *detail.problem.split(" ", 1)),
    ),
    errors.DenseSetNotFoundError: _named(errors.DenseSetNotFoundError, "dense_set"),
    errors.UnknownStreamError: _named(errors.UnknownStreamError, "stream"),
    errors.GapError: _Row(
        _pack_gap, lambda detail: errors.GapError({s.stream: list(s.watermarks) for s in detail.streams})
    ),
    errors.StaleGenerationError: _Row(
        lambda error, detail: _set(detail, error.stream, generation=error.generation, current=error.current),
        lambda detail: errors.StaleGenerationError(
            detail.name, detail.numbers["generation"], detail.numbers["current"]
        ),
    ),
    errors.StaleDenseSetError: _Row(
        lambda error, detail: _set(
            detail, error.dense_set, error.stream, position=error.position, published=error.published
        ),
        lambda detail: errors.StaleDenseSetError(
            detail.name, detail.problem, detail.numbers["position"], detail.numbers["published"]
        ),
    ),
    errors.StreamPositionError: _Row(
        lambda error, detail: _set(detail, error.stream, error.problem, position=error.position),
        lambda detail: errors.StreamPositionError(detail.name, detail.numbers["position"], detail.problem),
    ),
    errors.WrongShardError: _Row(
        lambda error, detail: _set(detail, problem=str(error), topology=error.topology),
        lambda detail: errors.WrongShardError(detail.problem, _topology(detail)),
    ),
    errors.StaleEpochError: _Row(
        lambda error, detail: _set(detail, epoch=error.epoch, current=error.current, topology=error.topology),
        lambda detail: errors.StaleEpochError(detail.numbers["epoch"], detail.numbers["current"], _topology(detail)),
    ),
    errors.UnavailableError: _Row(
        lambda error, detail: _set(detail, error.address, error.problem),
        lambda detail: errors.UnavailableError(detail.name, detail.problem),
    ),
    errors.LimitError: _Row(
        lambda error, detail: _set(detail, error.field, value=error.value, limit=error.limit),
        lambda detail: errors.LimitError(detail.name, detail.numbers["value"], detail.numbers["limit"]),
    ),
    errors.UnauthenticatedError: _plain(errors.UnauthenticatedError),
    errors.PermissionDeniedError: _plain(errors.PermissionDeniedError),
    errors.ReadOnlyError: _plain(errors.ReadOnlyError),
    errors.ClosedError: _plain(errors.ClosedError),
    errors.CorruptDeltaError: _plain(errors.CorruptDeltaError),
    errors.DeltaGapError: _plain(errors.DeltaGapError),
    errors.CorruptCheckpointError: _Row(
        lambda error, detail: _set(detail, error.path, error.problem),
        lambda detail: errors.CorruptCheckpointError(detail.name, detail.problem),
    ),
    errors.CheckpointFailedError: _Row(
        lambda error, detail: _set(detail, error.path, error.problem),
        lambda detail: errors.CheckpointFailedError(detail.name, detail.problem),
    ),
    errors.StoreLockedError: _named(errors.StoreLockedError, "path"),
}
_BY_NAME = {cls.__name__: row for cls, row in _ROWS.items()}


def to_status(error: Exception) -> grpc.Status:
    """The status that ``error`` travels as; anything that is not embedstore's own becomes a bare INTERNAL."""
    cls = next((cls for cls in type(error).__mro__ if cls in _ROWS), None)
    status = status_pb2.Status(code=code_pb2.INTERNAL, message=f"internal error ({type(error).__name__}); see the log")
    if cls is not None:
        status.code = code_pb2.Code.Value(cls.code)  # type: ignore[attr-defined]
        status.message = str(error)[:MESSAGE_CHARS_MAX]
        detail = Detail(kind=cls.__name__)
        _ROWS[cls].pack(error, detail)
        _bound(detail)
        status.details.add().Pack(detail)
    return rpc_status.to_status(status)


def _bound(detail: Detail) -> None:
    """Keep the detail within a call's metadata, whatever names a request had: gRPC would put an error of its own in the
    place of a larger one. A gap's writer learns of the streams that were left out when it comes again."""
    for name in ("name", "problem"):
        if len(text := getattr(detail, name)) > DETAIL_CHARS_MAX:
            setattr(detail, name, text[:DETAIL_CHARS_MAX])
    if detail.ByteSize() > DETAIL_BYTES_MAX:
        detail.ClearField("topology")
        while detail.streams and detail.ByteSize() > DETAIL_BYTES_MAX:
            del detail.streams[len(detail.streams) // 2 :]


def is_refusal(error: grpc.RpcError) -> bool:
    """Whether one of our servers answered, and said no: then it has done nothing."""
    return _detail(error) is not None


def may_come_again(error: grpc.RpcError) -> bool:
    """Whether the call was not answered, or not even begun, so that it is worth another attempt."""
    code = error.code()
    return code in SILENT or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and (error.details() or "").startswith(FULL))


def from_rpc_error(error: grpc.RpcError, address: str) -> Exception:
    """The error that the peer at ``address`` raised, or what stands for a failure of the call itself."""
    detail = _detail(error)
    row = _BY_NAME.get(detail.kind) if detail is not None else None
    if detail is not None and row is not None:
        return row.unpack(detail)
    code, text = error.code(), error.details() or ""
    if may_come_again(error):
        return errors.UnavailableError(address, text or code.name)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TransportLimitError(address, text)
    return errors.EmbedstoreError(f"{address}: {code.name}: {text}")


class TransportLimitError(errors.LimitError):
    """A bound of the connection itself was passed, such as the bytes of a message."""

    def __init__(self, address: str, problem: str) -> None:
        Exception.__init__(self, f"{address}: {problem}")
        self.field, self.value, self.limit = address, 0, 0


def _detail(error: Any) -> Detail | None:
    try:
        status = rpc_status.from_call(error)
        detail = Detail()
        found = status is not None and len(status.details) > 0 and status.details[0].Unpack(detail)
    except (ValueError, DecodeError):  # not one of ours
        return None
    return detail if found else None
