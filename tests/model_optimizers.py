"""Optimizers and initializers as the headers of the native core describe them, to the bit, and strategies of specs.

Slow and plain: float32 by numpy, double by Python, one operation after the other, nothing shared with the native code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from embedstore.rules import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    Constant,
    Initializer,
    Momentum,
    Normal,
    Optimizer,
    RMSProp,
    RowwiseAdagrad,
    TruncatedNormal,
    Uniform,
    Zeros,
)

MASK = 2**64 - 1
F = np.float32


def mix64(x: int) -> int:
    """The finalizer of splitmix64."""
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


# --- optimizers


def initial_state(optimizer: Optimizer, dim: int) -> list[np.ndarray]:
    """The state of a new row, in the order in which a delta holds it."""
    match optimizer:
        case SGD():
            return []
        case Adagrad():
            return [np.full(dim, optimizer.initial_accumulator, F)]
        case RowwiseAdagrad():
            return [np.full(1, optimizer.initial_accumulator, F)]
        case Adam() | FTRL():
            return [np.zeros(dim, F), np.zeros(dim, F)]
    return [np.zeros(dim, F)]


def learn(
    optimizer: Optimizer, w: np.ndarray, state: list[np.ndarray], gradient: np.ndarray, lr: float, updates: int
) -> None:
    """One step, in place; ``updates`` counts it."""
    with np.errstate(all="ignore"):
        g = ready(optimizer, w, gradient)
        _step(optimizer, w, state, g, F(lr), updates)


def ready(optimizer: Optimizer, w: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The gradient, clipped and decayed."""
    if optimizer.clip_norm is not None:
        bound = float(F(optimizer.clip_norm))
        norm = math.sqrt(square_sum(g))
        if norm > bound:
            g = g * F(bound / norm)
    if optimizer.weight_decay:
        g = g + F(optimizer.weight_decay) * w
    return g


def square_sum(values: np.ndarray) -> float:
    """In sixteen lanes, which are then folded."""
    lanes = [0.0] * 16
    for at, value in enumerate(values.tolist()):
        lanes[at % 16] += value * value
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[j] + lanes[j + half] for j in range(half)]
    return lanes[0]


def _step(
    optimizer: Optimizer, w: np.ndarray, state: list[np.ndarray], g: np.ndarray, lr: np.float32, updates: int
) -> None:
    one = F(1)
    match optimizer:
        case SGD():
            w -= lr * g
        case Momentum(beta=beta):
            (v,) = state
            v[:] = F(beta) * v + g
            w -= lr * v
        case Adagrad(eps=eps):
            (s,) = state
            s += g * g
            w -= lr * g / (np.sqrt(s) + F(eps))
        case RowwiseAdagrad(eps=eps):
            (s,) = state
            s += F(square_sum(g) / len(g))
            w -= lr / (np.sqrt(s) + F(eps)) * g
        case Adam(beta1=beta1, beta2=beta2, eps=eps):
            m, v = state
            m[:] = F(beta1) * m + (one - F(beta1)) * g
            v[:] = F(beta2) * v + (one - F(beta2)) * (g * g)
            step = F(float(lr) / bias_correction(float(F(beta1)), updates))
            scale = F(1.0 / math.sqrt(bias_correction(float(F(beta2)), updates)))
            w -= step * m / (np.sqrt(v) * scale + F(eps))
        case RMSProp(decay=decay, eps=eps):
            (s,) = state
            s[:] = F(decay) * s + (one - F(decay)) * (g * g)
            w -= lr * g / (np.sqrt(s) + F(eps))
        case FTRL():
            _ftrl_step(optimizer, w, state, g, lr)


def _ftrl_step(optimizer: FTRL, w: np.ndarray, state: list[np.ndarray], g: np.ndarray, lr: np.float32) -> None:
    z, n = state
    l1, ridge = F(optimizer.l1), lr * F(optimizer.l2)
    n += g * g
    for d in range(len(w)):
        divisor = (F(optimizer.beta) + np.sqrt(n[d])) + ridge
        rate = F(0) if divisor == 0 else lr / divisor
        moved = w[d] - rate * g[d]
        if (w[d] > 0 and moved > 0) or (w[d] < 0 and moved < 0):
            w[d], z[d] = moved, 0
            continue
        if w[d] == 0:
            pull = z[d] + g[d]
        else:
            pull = abs(moved) / rate - l1
            pull = pull if w[d] > 0 else -pull
        beyond = abs(pull) - l1
        w[d] = F(0) if beyond <= 0 else -np.copysign(rate * beyond, pull)
        z[d] = min(max(pull, -l1), l1) if w[d] == 0 else 0


def bias_correction(beta: float, updates: int) -> float:
    """1 - beta ** updates, by the digits of ``updates`` to base 32."""
    power, base, rest = 1.0, beta, updates
    while base > 2.0**-26:
        digit = 1.0
        for _ in range(rest % 32):
            digit *= base
        power *= digit
        rest //= 32
        next_base = 1.0
        for _ in range(32):
            next_base *= base
        base = next_base
    return 1.0 if rest else 1.0 - power


# --- initializers


def initial_embedding(init: Initializer, key: int, dim: int) -> np.ndarray:
    """The first embedding of an id, float32 [dim]."""
    match init:
        case Constant(value):
            return np.full(dim, value, F)
        case Uniform(scale, seed):
            centred = np.array([(half >> 8) - 2**23 for half in _halves(seed, key, dim)], np.float64)
            return (centred * 2.0**-23).astype(F) * F(scale)
        case Normal(scale, seed):
            drawn = [standard((half - 2147483647.5) * 2.0**-32) for half in _halves(seed, key, dim)]
            return np.array(drawn, np.float64).astype(F) * F(scale)
        case TruncatedNormal(scale, seed):
            within = [(half - 2147483647.5) * 2.0**-32 * 0.95449973610364158 for half in _halves(seed, key, dim)]
            drawn = [min(max(standard(q), -2.0), 2.0) for q in within]
            return np.array(drawn, np.float64).astype(F) * F(scale)
    return np.zeros(dim, F)


def _halves(seed: int, key: int, dim: int) -> list[int]:
    start = mix64(key ^ mix64(seed))
    halves = []
    for k in range((dim + 1) // 2):
        bits = mix64((start + (k + 1) * 0x9E3779B97F4A7C15) & MASK)
        halves += [bits & 0xFFFFFFFF, bits >> 32]
    return halves[:dim]


def standard(q: float) -> float:
    """The inverse of the normal distribution at 0.5 + q: AS 241, PPND7."""
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        above = _polynomial([3.3871327179, 50.434271938, 159.29113202, 59.109374720], r)
        return q * (above / _polynomial([1.0, 17.895169469, 78.757757664, 67.187563600], r))
    r = math.sqrt(-natural_log(0.5 - abs(q))) - 1.6
    above = _polynomial([1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103], r)
    return math.copysign(above / _polynomial([1.0, 0.73700164250, 0.12021132975], r), q)


def natural_log(p: float) -> float:
    """Of a normal positive number, by the series of the inverse hyperbolic tangent."""
    mantissa, exponent = math.frexp(p)
    mantissa, exponent = mantissa * 2, exponent - 1
    if mantissa >= math.sqrt(2):
        mantissa, exponent = mantissa / 2, exponent + 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * 0.6931471805599453 + 2.0 * s * _polynomial([1 / n for n in range(1, 17, 2)], s * s)


def _polynomial(coefficients: list[float], x: float) -> float:
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


# --- strategies

_common: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.sampled_from([0.01, 0.1, 0.5]),
    "clip_norm": st.sampled_from([None, None, 0.5, 2.0]),
}
_decay = _common | {"weight_decay": st.sampled_from([0.0, 0.0, 0.01, 0.5])}
_accumulator = {"initial_accumulator": st.sampled_from([0.0, 0.1, 0.5]), "eps": st.sampled_from([1e-10, 1e-3])}
_betas = st.sampled_from([0.0, 0.5, 0.9])

optimizers: st.SearchStrategy[Optimizer] = st.one_of(
    st.builds(SGD, **_decay),
    st.builds(Momentum, beta=_betas, **_decay),
    st.builds(Adagrad, **_accumulator, **_decay),
    st.builds(RowwiseAdagrad, **_accumulator, **_decay),
    st.builds(Adam, beta1=_betas, beta2=st.sampled_from([0.9, 0.999]), **_decay),
    st.builds(RMSProp, decay=st.sampled_from([0.9, 0.99]), **_decay),
    st.builds(FTRL, beta=st.sampled_from([0.0, 1.0]), l1=st.sampled_from([0.0, 0.5]), l2=_betas, **_common),
)
"""Every kind, with and without decay and clip."""

_scales = {"scale": st.sampled_from([0.05, 1.0]), "seed": st.sampled_from([0, 9, 2**64 - 1])}
initializers: st.SearchStrategy[Initializer] = st.one_of(
    st.just(Zeros()),
    st.just(Constant(0.25)),
    st.builds(Uniform, **_scales),
    st.builds(Normal, **_scales),
    st.builds(TruncatedNormal, **_scales),
)
"""Every kind."""

EVERY_OPTIMIZER: list[Optimizer] = [
    SGD(0.1, weight_decay=0.01, clip_norm=1.0),
    Momentum(0.1, beta=0.8, weight_decay=0.01),
    Adagrad(0.1, initial_accumulator=0.1, clip_norm=1.0),
    RowwiseAdagrad(0.1, weight_decay=0.01),
    Adam(0.01, weight_decay=0.01, clip_norm=2.0),
    RMSProp(0.01),
    FTRL(0.1, l1=0.3, l2=0.1),
]
"""One of every kind."""
