"""How rows start and how they learn: initializers and optimizers, with what they accept.

All classes here are immutable values, usable from any thread. Tables keep their numbers as float32, so a value that
float32 cannot tell from a forbidden one is refused too. The exact arithmetic is in ``native/optimizer.h`` and
``native/initializer.h``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

from embedstore.errors import InvalidArgumentError


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number, also as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_finite(owner: object, name: str, *, minimum: float | None = None, above: float | None = None) -> None:
    """Raise :class:`InvalidArgumentError` unless a field is a finite number in its range."""
    value = getattr(owner, name)
    label = f"{type(owner).__name__}.{name}"
    if not is_finite(value):
        raise InvalidArgumentError(label, f"must be a finite number, not {value!r}")
    if minimum is not None and value < minimum:
        raise InvalidArgumentError(label, f"must be >= {minimum}, not {value!r}")
    if above is not None and value <= above:
        raise InvalidArgumentError(label, f"must be > {above}, not {value!r}")


def check_integer(label: str, value: Any, low: int, high: int) -> None:
    """Raise :class:`InvalidArgumentError` unless a value is an integer in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgumentError(label, f"must be an integer in [{low}, {high}], not {value!r}")


def _check_float32(
    owner: object, name: str, *, minimum: float | None = None, above: float | None = None, below: float | None = None
) -> None:
    check_finite(owner, name, minimum=minimum, above=above)
    value = getattr(owner, name)
    label = f"{type(owner).__name__}.{name}"
    try:
        (kept,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        raise InvalidArgumentError(label, f"is too large for float32: {value!r}") from None
    if above is not None and kept <= above:
        raise InvalidArgumentError(label, f"must be > {above} in float32, not {value!r}")
    if below is not None and kept >= below:
        raise InvalidArgumentError(label, f"must be < {below} in float32, not {value!r}")


@dataclass(frozen=True)
class Optimizer:
    """Base of the server-side optimizers; ``lr`` is the learning rate of pushes that give none.

    A push sums the gradients of each row. ``clip_norm`` scales that sum ``g`` down to this L2 norm when it is longer
    (None: never). ``weight_decay`` then adds ``weight_decay * w`` to it, as torch.optim does. A push may give a
    learning rate of its own.
    """

    lr: float
    weight_decay: float = field(default=0.0, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_float32(self, "lr", minimum=0.0)
        _check_float32(self, "weight_decay", minimum=0.0)
        if self.clip_norm is not None:
            _check_float32(self, "clip_norm", above=0.0)


@dataclass(frozen=True)
class SGD(Optimizer):
    """``w -= lr * g``."""


@dataclass(frozen=True)
class Momentum(Optimizer):
    """``v = beta * v + g; w -= lr * v``."""

    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_float32(self, "beta", minimum=0.0, below=1.0)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """``s += g * g; w -= lr * g / (sqrt(s) + eps)`` (Duchi et al. 2011); ``s`` starts at ``initial_accumulator``."""

    initial_accumulator: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_float32(self, "initial_accumulator", minimum=0.0)
        _check_float32(self, "eps", above=0.0)


@dataclass(frozen=True)
class RowwiseAdagrad(Optimizer):
    """Adagrad with one accumulator a row, the mean of the squared gradient: 4 bytes of state instead of 4 a number."""

    initial_accumulator: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_float32(self, "initial_accumulator", minimum=0.0)
        _check_float32(self, "eps", above=0.0)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1) with a step count a row: the row's ``updates``."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_float32(self, "beta1", minimum=0.0, below=1.0)
        _check_float32(self, "beta2", minimum=0.0, below=1.0)
        _check_float32(self, "eps", above=0.0)


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """``s = decay * s + (1 - decay) * g * g; w -= lr * g / (sqrt(s) + eps)``."""

    decay: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_float32(self, "decay", minimum=0.0, below=1.0)
        _check_float32(self, "eps", above=0.0)


@dataclass(frozen=True)
class FTRL(Optimizer):
    """FTRL-Proximal (McMahan et al. 2013, algorithm 1): ``lr`` is its alpha; ``l1`` makes weights exactly zero.

    A row starts from its initial value, whatever that is, and keeps it until a gradient comes; ``l2`` pulls to that
    value from then on, so rows that shall stay sparse start from zeros. An assigned weight is learnt on from, and a
    push's own learning rate scales its own step only. It has no weight_decay: ``l2`` is its penalty.
    """

    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "l1", "l2"):
            _check_float32(self, name, minimum=0.0)
        if self.weight_decay:
            problem = "is not defined: FTRL solves for the weight, a decayed gradient would count twice; use l2"
            raise InvalidArgumentError("FTRL.weight_decay", problem)


@dataclass(frozen=True)
class Initializer:
    """Base of the initializers: pure functions of (seed, id), the same bits in every process and on every machine."""


@dataclass(frozen=True)
class Zeros(Initializer):
    """All zeros."""


@dataclass(frozen=True)
class Constant(Initializer):
    """Every number is ``value``."""

    value: float

    def __post_init__(self) -> None:
        _check_float32(self, "value")


@dataclass(frozen=True)
class _Seeded(Initializer):
    scale: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check_float32(self, "scale", minimum=0.0)
        check_integer(f"{type(self).__name__}.seed", self.seed, 0, 2**64 - 1)


@dataclass(frozen=True)
class Uniform(_Seeded):
    """Uniform in [-scale, scale)."""


@dataclass(frozen=True)
class Normal(_Seeded):
    """Normal with standard deviation ``scale``."""


@dataclass(frozen=True)
class TruncatedNormal(_Seeded):
    """Normal with standard deviation ``scale`` before it is cut: numbers outside two of them are drawn again."""


def optimizer_arguments(optimizer: Optimizer) -> dict[str, Any]:
    """What the native table is told of an optimizer."""
    arguments = dict.fromkeys(("initial_accumulator", "eps", "beta1", "beta2", "l1", "l2"), 0.0) | {
        "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "clip_norm": optimizer.clip_norm or 0.0,
    }
    match optimizer:
        case SGD():
            own: dict[str, Any] = {"optimizer": 1}
        case Momentum():
            own = {"optimizer": 2, "beta1": optimizer.beta}
        case Adagrad():
            own = {"optimizer": 3, "initial_accumulator": optimizer.initial_accumulator, "eps": optimizer.eps}
        case RowwiseAdagrad():
            own = {"optimizer": 4, "initial_accumulator": optimizer.initial_accumulator, "eps": optimizer.eps}
        case Adam():
            own = {"optimizer": 5, "eps": optimizer.eps, "beta1": optimizer.beta1, "beta2": optimizer.beta2}
        case RMSProp():
            own = {"optimizer": 6, "eps": optimizer.eps, "beta2": optimizer.decay}
        case FTRL():
            own = {"optimizer": 7, "beta1": optimizer.beta, "l1": optimizer.l1, "l2": optimizer.l2}
        case _:
            raise InvalidArgumentError("TableSpec.optimizer", f"must be one of embedstore's, not {optimizer!r}")
    return arguments | own


def init_arguments(init: Initializer) -> dict[str, Any]:
    """What the native table is told of an initializer."""
    match init:
        case Zeros():
            return {"init": 0, "init_scale": 0.0, "init_seed": 0}
        case Constant(value):
            return {"init": 1, "init_scale": value, "init_seed": 0}
        case Uniform(scale, seed):
            return {"init": 2, "init_scale": scale, "init_seed": seed}
        case Normal(scale, seed):
            return {"init": 3, "init_scale": scale, "init_seed": seed}
        case TruncatedNormal(scale, seed):
            return {"init": 4, "init_scale": scale, "init_seed": seed}
    raise InvalidArgumentError("TableSpec.init", f"must be one of embedstore's, not {init!r}")
