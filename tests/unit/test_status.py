"""Every error arrives at a client as what it was, with the code of its class."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from embedstore import errors
from embedstore.status import SILENT, Topology, from_rpc_error, to_status

TOPOLOGY = Topology(3, ("a:1", "b:2"), 2)
SAMPLES: list[Exception] = [
    errors.InvalidArgumentError("TableSpec.dim", "must be 1"),
    errors.UnsupportedError("TableSpec.ttl_s", "is not supported yet"),
    errors.EmbedstoreError("something"),
    errors.TableNotFoundError("items"),
    errors.TableExistsError("items", "dim"),
    errors.TableExistsError("items", "dim", "4, not 5"),
    errors.DenseSetNotFoundError("dense"),
    errors.UnknownStreamError("kafka/c/t/0"),
    errors.GapError({"a": [7, 3], "b": [2**62]}),
    errors.StaleGenerationError("a", 4, 5),
    errors.StaleDenseSetError("dense", "a", 3, 9),
    errors.StreamPositionError("a", 3, "is past the end"),
    errors.WrongShardError("chunk 3 lives on shard 1", TOPOLOGY),
    errors.StaleEpochError(4, 3, TOPOLOGY),
    errors.UnavailableError("h:1", "recovering"),
    errors.LimitError("ids", 5, 4),
    errors.UnauthenticatedError("a bearer token is needed"),
    errors.PermissionDeniedError("needs role admin"),
    errors.ReadOnlyError("a follower only reads"),
    errors.ClosedError("closed"),
    errors.CorruptDeltaError("checksum"),
    errors.DeltaGapError("version 3"),
    errors.CorruptCheckpointError("/x/y", "checksum"),
    errors.CheckpointFailedError("/x/y", "disk full"),
    errors.StoreLockedError("/x/y"),
]


class Call(grpc.RpcError):
    """A finished call as a client sees it."""

    def __init__(self, status: Any) -> None:
        self.status = status

    def code(self) -> Any:
        return self.status.code

    def details(self) -> Any:
        return self.status.details

    def trailing_metadata(self) -> Any:
        return self.status.trailing_metadata


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_wire(error: Any) -> None:
    status = to_status(error)
    assert status.code is grpc.StatusCode[error.code]
    back = from_rpc_error(Call(status), "h:1")
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert {k: v for k, v in vars(back).items() if k != "args"} == {k: v for k, v in vars(error).items() if k != "args"}


def test_every_error_class_has_its_row() -> None:
    classes = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)}
    assert {type(sample) for sample in SAMPLES} == classes - {errors.LostUpdatesWarning}


def test_a_subclass_travels_as_its_nearest_known_class() -> None:
    class OursError(errors.TableNotFoundError):
        pass

    assert type(from_rpc_error(Call(to_status(OursError("t"))), "h:1")) is errors.TableNotFoundError


def test_a_bug_tells_no_details_and_is_internal() -> None:
    status = to_status(KeyError("secret"))
    assert status.code is grpc.StatusCode.INTERNAL
    assert "secret" not in status.details
    back = from_rpc_error(Call(status), "h:1")
    assert type(back) is errors.EmbedstoreError and "h:1" in str(back)


@pytest.mark.parametrize("code", SILENT)
def test_a_silent_peer_is_named(code: grpc.StatusCode) -> None:
    back = from_rpc_error(Call(_bare(code, "no answer")), "h:7")
    assert isinstance(back, errors.UnavailableError)
    assert back.address == "h:7"


def test_garbage_as_detail_is_not_trusted() -> None:
    status = _bare(grpc.StatusCode.NOT_FOUND, "x")
    status.trailing_metadata = (("grpc-status-details-bin", b"\xff\xff\xff"),)
    assert type(from_rpc_error(Call(status), "h:7")) is errors.EmbedstoreError


class _Status:
    trailing_metadata: Any = ()

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details


def _bare(code: grpc.StatusCode, details: str) -> _Status:
    return _Status(code, details)
