"""What a table is: frozen, validated at construction, the same in Python, on the wire and on disk.

All classes here are immutable values, usable from any thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from embedstore.errors import InvalidArgumentError
from embedstore.rules import FTRL as FTRL
from embedstore.rules import SGD as SGD
from embedstore.rules import Adagrad as Adagrad
from embedstore.rules import Adam as Adam
from embedstore.rules import Constant as Constant
from embedstore.rules import Initializer as Initializer
from embedstore.rules import Momentum as Momentum
from embedstore.rules import Normal as Normal
from embedstore.rules import Optimizer as Optimizer
from embedstore.rules import RMSProp as RMSProp
from embedstore.rules import RowwiseAdagrad as RowwiseAdagrad
from embedstore.rules import TruncatedNormal as TruncatedNormal
from embedstore.rules import Uniform as Uniform
from embedstore.rules import Zeros as Zeros
from embedstore.rules import check_finite, check_integer
from embedstore.v1 import spec_pb2

DIM_MAX = 4096
NUM_CHUNKS_MAX = 1 << 16
NUM_CHUNKS_DEFAULT = 256
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")

OnMiss = Literal["zeros", "init"]


@dataclass(frozen=True)
class Admission:
    """Base of the rules that let an id have a row."""


@dataclass(frozen=True)
class MinCount(Admission):
    """An id gets a row with its ``count``-th occurrence; a push says how often each of its ids occurred.

    The gradients of the occurrences before it are dropped. Occurrences are counted in at most ``memory_bytes`` (0:
    16 MiB) of the whole table, 8 a counted id, taken as needed and divided evenly over the chunks; a chunk whose share
    is full halves all its counts, so that ids that come rarely are forgotten.
    """

    count: int
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        check_integer("MinCount.count", self.count, 1, 2**31 - 1)
        check_integer("MinCount.memory_bytes", self.memory_bytes, 0, 2**40)


@dataclass(frozen=True)
class Probability(Admission):
    """Each occurrence admits an id with probability ``p``.

    At which occurrence is a pure function of ``seed`` and the id, distributed as the first success of such draws, so
    it is the same in every process. Counting and ``memory_bytes`` are as in :class:`MinCount`.
    """

    p: float
    seed: int = 0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        check_finite(self, "p", above=0.0)
        if self.p > 1.0:
            raise InvalidArgumentError("Probability.p", "must be <= 1")
        check_integer("Probability.seed", self.seed, 0, 2**64 - 1)
        check_integer("Probability.memory_bytes", self.memory_bytes, 0, 2**40)


@dataclass(frozen=True)
class TableSpec:
    """A named set of rows.

    ``dim`` floats a row; ``on_miss`` is what a pull reads for an id without a row ("zeros", or "init": its initial
    value). ``num_chunks`` is a power of two and fixed for the table's life.

    What may live in it: ``admission`` (None: every id) lets ids in. A row that was last seen ``ttl_s`` seconds of event
    time before the latest event is gone. ``rows_max`` and ``bytes_max`` (rows with their optimizer
    state and their part of the index) bound the table; each chunk has an even share, at least one row, and gives up its
    least recently seen rows when it has more. None: no bound.
    """

    name: str
    dim: int
    optimizer: Optimizer = field(default_factory=lambda: Adagrad(lr=0.05))
    init: Initializer = field(default_factory=Zeros)
    on_miss: OnMiss = "zeros"
    admission: Admission | None = None
    ttl_s: float | None = None
    rows_max: int | None = None
    bytes_max: int | None = None
    num_chunks: int = NUM_CHUNKS_DEFAULT

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InvalidArgumentError(
                "TableSpec.name", f"must be 1-63 of a-z 0-9 _ . - and start with a letter or digit, not {self.name!r}"
            )
        check_integer("TableSpec.dim", self.dim, 1, DIM_MAX)
        check_integer("TableSpec.num_chunks", self.num_chunks, 1, NUM_CHUNKS_MAX)
        if self.num_chunks & (self.num_chunks - 1):
            raise InvalidArgumentError("TableSpec.num_chunks", f"must be a power of two, not {self.num_chunks}")
        for name, kind in (("optimizer", Optimizer), ("init", Initializer)):
            value = getattr(self, name)
            if not isinstance(value, kind) or type(value) is kind:
                raise InvalidArgumentError(f"TableSpec.{name}", f"must be one of embedstore's, not {value!r}")
        if self.admission is not None and not isinstance(self.admission, MinCount | Probability):
            raise InvalidArgumentError("TableSpec.admission", f"must be a rule or None, not {self.admission!r}")
        if self.on_miss not in ("zeros", "init"):
            raise InvalidArgumentError("TableSpec.on_miss", f'must be "zeros" or "init", not {self.on_miss!r}')
        if self.ttl_s is not None:
            check_finite(self, "ttl_s", minimum=0.001)
        for name in ("rows_max", "bytes_max"):
            if getattr(self, name) is not None:
                check_integer(f"TableSpec.{name}", getattr(self, name), 1, 2**63 - 1)
        if self.rows_max is not None and self.rows_max < self.num_chunks:
            problem = f"{self.rows_max} rows are less than one for each of the {self.num_chunks} chunks"
            raise InvalidArgumentError("TableSpec.rows_max", problem)

    def lasting(self) -> TableSpec:
        """The spec without what can be altered: lr, ttl_s, rows_max and bytes_max."""
        return replace(self, optimizer=replace(self.optimizer, lr=0.0), ttl_s=None, rows_max=None, bytes_max=None)

    def first_difference(self, other: TableSpec) -> str | None:
        """The first field in which two specs differ, or None."""
        return next((f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)), None)

    def to_proto(self) -> spec_pb2.TableSpec:
        """The same spec as a protobuf message."""
        message = spec_pb2.TableSpec(
            name=self.name,
            dim=self.dim,
            on_miss=spec_pb2.ON_MISS_INIT if self.on_miss == "init" else spec_pb2.ON_MISS_ZEROS,
            num_chunks=self.num_chunks,
            ttl_s=self.ttl_s,
            rows_max=self.rows_max,
            bytes_max=self.bytes_max,
        )
        _to_oneof(self.optimizer, message.optimizer, _OPTIMIZERS)
        _to_oneof(self.init, message.init, _INITIALIZERS)
        if self.admission is not None:
            _to_oneof(self.admission, message.admission, _ADMISSIONS)
        return message

    @classmethod
    def from_proto(cls, message: spec_pb2.TableSpec) -> TableSpec:
        """Read a protobuf message; :class:`InvalidArgumentError` names a bad field."""
        optional = {
            name: getattr(message, name) if message.HasField(name) else None
            for name in ("ttl_s", "rows_max", "bytes_max")
        }
        if message.on_miss not in (spec_pb2.ON_MISS_UNSPECIFIED, spec_pb2.ON_MISS_ZEROS, spec_pb2.ON_MISS_INIT):
            raise InvalidArgumentError("TableSpec.on_miss", f"unknown value {message.on_miss}")
        return cls(
            name=message.name,
            dim=message.dim,
            optimizer=_from_oneof("TableSpec.optimizer", message.optimizer, _OPTIMIZERS),
            init=_from_oneof("TableSpec.init", message.init, _INITIALIZERS),
            on_miss="init" if message.on_miss == spec_pb2.ON_MISS_INIT else "zeros",
            admission=_from_oneof("TableSpec.admission", message.admission, _ADMISSIONS)
            if message.HasField("admission")
            else None,
            num_chunks=message.num_chunks,
            **optional,
        )


_OPTIMIZERS: dict[str, type] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
    "adam": Adam,
    "rmsprop": RMSProp,
    "ftrl": FTRL,
}
_INITIALIZERS: dict[str, type] = {
    "zeros": Zeros,
    "constant": Constant,
    "uniform": Uniform,
    "normal": Normal,
    "truncated_normal": TruncatedNormal,
}
_ADMISSIONS: dict[str, type] = {"min_count": MinCount, "probability": Probability}


def _to_oneof(value: Any, message: Any, kinds: dict[str, type]) -> None:
    kind = next(name for name, cls in kinds.items() if type(value) is cls)
    target = getattr(message, kind)
    target.SetInParent()
    for f in fields(value):
        item = getattr(value, f.name)
        if item is not None:
            owner = target if f.name in target.DESCRIPTOR.fields_by_name else message
            setattr(owner, f.name, item)


def _from_oneof(label: str, message: Any, kinds: dict[str, type]) -> Any:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError(label, "is missing or of a kind this release does not know")
    source = getattr(message, kind)
    values = {}
    for f in fields(kinds[kind]):
        owner = source if f.name in source.DESCRIPTOR.fields_by_name else message
        descriptor = owner.DESCRIPTOR.fields_by_name[f.name]
        values[f.name] = None if descriptor.has_presence and not owner.HasField(f.name) else getattr(owner, f.name)
    return kinds[kind](**values)
