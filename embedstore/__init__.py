"""embedstore: a collision-less embedding store for PyTorch that learns from a live stream.

``open`` gives a store of this process, ``connect`` one on shard servers, ``follow`` a read-only serving copy; all three
take the same calls (:mod:`embedstore.interface`). Importing this package imports neither torch nor grpc: what needs
them is loaded with its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedstore.errors import (
    CheckpointFailedError,
    ClosedError,
    CorruptCheckpointError,
    CorruptDeltaError,
    DeltaGapError,
    DenseSetNotFoundError,
    EmbedstoreError,
    GapError,
    InvalidArgumentError,
    LimitError,
    LostUpdatesWarning,
    PermissionDeniedError,
    ReadOnlyError,
    StaleDenseSetError,
    StaleEpochError,
    StaleGenerationError,
    StoreLockedError,
    StreamPositionError,
    TableExistsError,
    TableNotFoundError,
    UnauthenticatedError,
    UnavailableError,
    UnknownStreamError,
    UnsupportedError,
    WrongShardError,
)
from embedstore.interface import (
    CheckpointResult,
    DenseSet,
    FollowerState,
    LeaderState,
    Origin,
    PushResult,
    Reader,
    Rows,
    Store,
    StoreStats,
    StreamState,
    SweepResult,
    TablePush,
    TableStats,
)
from embedstore.spec import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    Constant,
    MinCount,
    Momentum,
    Normal,
    Probability,
    RMSProp,
    RowwiseAdagrad,
    TableSpec,
    TruncatedNormal,
    Uniform,
    Zeros,
)

if TYPE_CHECKING:
    from embedstore import nn
    from embedstore.client import connect
    from embedstore.credentials import Credentials
    from embedstore.ids import hash_ids
    from embedstore.server.exposed import expose_metrics
    from embedstore.server.follow import follow
    from embedstore.store import open

_LAZY = {
    "Credentials": "embedstore.credentials",
    "connect": "embedstore.client",
    "expose_metrics": "embedstore.server.exposed",
    "follow": "embedstore.server.follow",
    "hash_ids": "embedstore.ids",
    "open": "embedstore.store",
}

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "CheckpointFailedError",
    "CheckpointResult",
    "ClosedError",
    "Constant",
    "CorruptCheckpointError",
    "CorruptDeltaError",
    "Credentials",
    "DeltaGapError",
    "DenseSet",
    "DenseSetNotFoundError",
    "EmbedstoreError",
    "FollowerState",
    "GapError",
    "InvalidArgumentError",
    "LeaderState",
    "LimitError",
    "LostUpdatesWarning",
    "MinCount",
    "Momentum",
    "Normal",
    "Origin",
    "PermissionDeniedError",
    "Probability",
    "PushResult",
    "RMSProp",
    "ReadOnlyError",
    "Reader",
    "Rows",
    "RowwiseAdagrad",
    "StaleDenseSetError",
    "StaleEpochError",
    "StaleGenerationError",
    "Store",
    "StoreLockedError",
    "StoreStats",
    "StreamPositionError",
    "StreamState",
    "SweepResult",
    "TableExistsError",
    "TableNotFoundError",
    "TablePush",
    "TableSpec",
    "TableStats",
    "TruncatedNormal",
    "UnauthenticatedError",
    "UnavailableError",
    "Uniform",
    "UnknownStreamError",
    "UnsupportedError",
    "WrongShardError",
    "Zeros",
    "connect",
    "expose_metrics",
    "follow",
    "hash_ids",
    "nn",
    "open",
]


def __getattr__(name: str) -> Any:
    if name == "nn":
        return import_module("embedstore.nn")
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
