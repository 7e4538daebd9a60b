"""Optimizers and initializers: what their papers say, what torch does, and state that survives every move."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from delta_reader import read_delta
from hypothesis import given, settings
from hypothesis import strategies as st
from model_optimizers import (
    EVERY_OPTIMIZER,
    initial_embedding,
    initial_state,
    initializers,
    learn,
    optimizers,
)

import embedstore as es
from embedstore.errors import InvalidArgumentError
from embedstore.rules import Initializer, Optimizer
from embedstore.store import LocalStore
from embedstore.table import Table

STEPS = 300
KEY = 2**64 - 3
KINDS = [type(optimizer).__name__ for optimizer in EVERY_OPTIMIZER]


def table_of(optimizer: Optimizer, dim: int, init: Initializer | None = None, *, num_chunks: int = 1) -> Table:
    return Table(es.TableSpec("t", dim, optimizer=optimizer, init=init or es.Zeros(), num_chunks=num_chunks))


def pushed(table: Table, grads: np.ndarray, lr: float | None = None) -> np.ndarray:
    """The row of KEY after one more gradient."""
    table.push(np.array([KEY], np.uint64), grads[None], now_ms=0, lr=lr)
    row: np.ndarray = table.pull(np.array([KEY], np.uint64))[0]
    return row


# --- the models, to the bit


@given(
    optimizer=optimizers,
    init=initializers,
    dim=st.sampled_from([1, 2, 5, 15, 16, 17, 33, 64, 70]),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1e-25, 1.0, 1e18, 3e38]),
)
@settings(max_examples=120, deadline=None)
def test_every_step_is_the_models_to_the_bit(
    optimizer: Optimizer, init: Initializer, dim: int, seed: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    table = table_of(optimizer, dim, init)
    w, state = initial_embedding(init, KEY, dim), initial_state(optimizer, dim)
    for step in range(1, 25):
        g = np.where(rng.random(dim) < 0.2, 0, rng.uniform(-size, size, dim)).astype(np.float32)
        lr = float(rng.choice([0.0, 0.3])) if step % 5 == 0 else None
        learn(optimizer, w, state, g, optimizer.lr if lr is None else lr, step)
        np.testing.assert_array_equal(pushed(table, g, lr), w)
    np.testing.assert_array_equal(read_delta(table.delta(0)).states[0], np.concatenate([*state, []]))


# --- their papers, in double


def reference(optimizer: Optimizer, w: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """A rule in float64 that works on ``w``: of a gradient and its number it returns the weights."""
    s = np.full(len(w), getattr(optimizer, "initial_accumulator", 0.0))
    m, lr = np.zeros(len(w)), optimizer.lr
    if isinstance(optimizer, es.FTRL):
        # As if w had been reached before: the state whose closed form is w.
        m -= np.where(w == 0, 0, w * (optimizer.beta / lr + optimizer.l2) + np.sign(w) * optimizer.l1)

    def step(g: np.ndarray, t: int) -> np.ndarray:
        nonlocal w, s, m
        norm = np.linalg.norm(g)
        if optimizer.clip_norm is not None and norm > optimizer.clip_norm:
            g = g * (optimizer.clip_norm / norm)
        g = g + optimizer.weight_decay * w
        match optimizer:
            case es.SGD():
                w = w - lr * g
            case es.Momentum(beta=beta):
                m = beta * m + g
                w = w - lr * m
            case es.Adagrad(eps=eps):
                s = s + g**2
                w = w - lr * g / (np.sqrt(s) + eps)
            case es.RowwiseAdagrad(eps=eps):
                s = s + (g**2).mean()
                w = w - lr * g / (np.sqrt(s) + eps)
            case es.Adam(beta1=b1, beta2=b2, eps=eps):
                m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g**2
                w = w - lr * (m / (1 - b1**t)) / (np.sqrt(s / (1 - b2**t)) + eps)
            case es.RMSProp(decay=decay, eps=eps):
                s = decay * s + (1 - decay) * g**2
                w = w - lr * g / (np.sqrt(s) + eps)
            case es.FTRL(beta=beta, l1=l1, l2=l2):
                m = m + g - (np.sqrt(s + g**2) - np.sqrt(s)) / lr * w
                s = s + g**2
                w = np.where(np.abs(m) <= l1, 0, -(m - np.sign(m) * l1) / ((beta + np.sqrt(s)) / lr + l2))
        return w

    return step


@pytest.mark.parametrize("init", [es.Zeros(), es.Uniform(0.5, seed=4)], ids=["zeros", "uniform"])
@pytest.mark.parametrize("optimizer", [*EVERY_OPTIMIZER, es.FTRL(0.05, beta=0.5, l1=4.0)], ids=[*KINDS, "FTRL-sparse"])
def test_hundreds_of_steps_follow_the_papers_in_float64(optimizer: Optimizer, init: Initializer) -> None:
    rng = np.random.default_rng(17)
    dim = 24
    table = table_of(optimizer, dim, init)
    step = reference(optimizer, initial_embedding(init, KEY, dim).astype(np.float64))
    drift, zeros = rng.normal(size=dim) * 0.3, 0
    for t in range(1, STEPS + 1):
        g = (rng.normal(size=dim) + drift * math.sin(t / 40)).astype(np.float32)
        expected = step(g.astype(np.float64), t)
        np.testing.assert_allclose(pushed(table, g), expected, rtol=2e-4, atol=2e-5)
        zeros += int((expected == 0).sum())
    assert zeros < STEPS * dim / 2 and (zeros > 40 or not isinstance(optimizer, es.FTRL) or optimizer.l1 < 1)


# --- torch


TORCH: dict[str, tuple[Optimizer, Callable[[list[torch.Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (es.SGD(0.1, weight_decay=0.05), lambda w: torch.optim.SGD(w, 0.1, weight_decay=0.05)),
    "momentum": (
        es.Momentum(0.02, beta=0.9, weight_decay=0.05),
        lambda w: torch.optim.SGD(w, 0.02, momentum=0.9, weight_decay=0.05),
    ),
    "adagrad": (
        es.Adagrad(0.1, initial_accumulator=0.2, eps=1e-8, weight_decay=0.05),
        lambda w: torch.optim.Adagrad(w, 0.1, initial_accumulator_value=0.2, eps=1e-8, weight_decay=0.05),
    ),
    "adam": (
        es.Adam(0.01, beta1=0.8, beta2=0.99, weight_decay=0.05),
        lambda w: torch.optim.Adam(w, 0.01, betas=(0.8, 0.99), weight_decay=0.05),
    ),
    "rmsprop": (
        es.RMSProp(0.01, decay=0.95, weight_decay=0.05),
        lambda w: torch.optim.RMSprop(w, 0.01, alpha=0.95, weight_decay=0.05),
    ),
}


@pytest.mark.parametrize("kind", TORCH)
def test_rows_learn_as_torchs_own_parameters_do(kind: str) -> None:
    """Each row is a parameter of its own, so that torch too leaves alone what a step did not touch."""
    optimizer, make = TORCH[kind]
    rng = np.random.default_rng(23)
    ids, dim = np.arange(6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15), 9
    table = table_of(optimizer, dim, es.Normal(0.5, seed=2), num_chunks=4)
    rows = [torch.nn.Parameter(torch.from_numpy(initial_embedding(es.Normal(0.5, seed=2), int(k), dim))) for k in ids]
    theirs = make(list(rows))
    for _ in range(STEPS):
        touched = np.flatnonzero(rng.random(len(ids)) < 0.6)
        grads = rng.normal(size=(len(touched), dim)).astype(np.float32)
        table.push(ids[touched], grads, now_ms=0)
        for row in rows:
            row.grad = None
        for at, grad in zip(touched, grads, strict=True):
            rows[at].grad = torch.from_numpy(grad)
        theirs.step()
    expected = torch.stack([row.detach() for row in rows]).numpy()
    np.testing.assert_allclose(table.pull(ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER, ids=KINDS)
def test_a_clipped_gradient_does_what_torchs_clipped_one_does(optimizer: Optimizer) -> None:
    rng = np.random.default_rng(29)
    clipping, plain = replace(optimizer, clip_norm=1.5), replace(optimizer, clip_norm=None)
    ours, theirs = table_of(clipping, 8), table_of(plain, 8)
    for size in (0.01, 0.4, 1.0, 30.0, 1e25, 0.5):
        g = (rng.normal(size=8) * size).astype(np.float32)
        parameter = torch.nn.Parameter(torch.zeros(8, dtype=torch.float64))
        parameter.grad = torch.from_numpy(g.astype(np.float64))
        torch.nn.utils.clip_grad_norm_([parameter], 1.5)
        np.testing.assert_allclose(pushed(ours, g), pushed(theirs, parameter.grad.numpy()), rtol=1e-5, atol=1e-6)


# --- state that moves


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER, ids=KINDS)
def test_learning_goes_on_over_a_delta_bit_for_bit(optimizer: Optimizer) -> None:
    rng = np.random.default_rng(31)
    ids = np.arange(200, dtype=np.uint64)
    source = table_of(optimizer, 5, es.TruncatedNormal(0.1, seed=1), num_chunks=2)
    for _ in range(8):
        source.push(ids, rng.normal(size=(200, 5)), now_ms=0)
    replica = Table(source.spec)
    for chunk in source.chunks:
        replica.apply(source.delta(chunk))
        assert read_delta(replica.delta(chunk)).states.tobytes() == read_delta(source.delta(chunk)).states.tobytes()
    for _ in range(8):
        grads = rng.normal(size=(200, 5))
        source.push(ids, grads, now_ms=0)
        replica.push(ids, grads, now_ms=0)
    np.testing.assert_array_equal(replica.pull(ids), source.pull(ids))
    for chunk in source.chunks:
        assert read_delta(replica.delta(chunk)).states.tobytes() == read_delta(source.delta(chunk)).states.tobytes()


def test_learning_goes_on_over_a_restart_bit_for_bit(tmp_path: Path) -> None:
    specs = [
        es.TableSpec(f"t{number}", 6, optimizer=optimizer, init=es.Normal(0.1, seed=number), num_chunks=4)
        for number, optimizer in enumerate(EVERY_OPTIMIZER)
    ]
    ids = np.arange(60, dtype=np.uint64)
    rng = np.random.default_rng(37)
    steps = [rng.normal(size=(60, 6)).astype(np.float32) for _ in range(9)]

    def learnt(path: Path, *, restarts: bool) -> dict[str, np.ndarray]:
        store = LocalStore(path, specs)
        for at, grads in enumerate(steps):
            store.push({spec.name: (ids, grads) for spec in specs})
            if restarts and at % 3 == 2:
                store.close()
                store = LocalStore(path, specs)
        rows: dict[str, np.ndarray] = store.pull({spec.name: ids for spec in specs})
        states = {
            f"{spec.name} {chunk}": read_delta(store.table(spec.name).delta(chunk))
            for spec in specs
            for chunk in range(4)
        }
        store.close()
        return rows | {name: delta.states[np.argsort(delta.ids)] for name, delta in states.items()}

    straight, stopped = learnt(tmp_path / "straight", restarts=False), learnt(tmp_path / "stopped", restarts=True)
    for name, rows in straight.items():
        np.testing.assert_array_equal(stopped[name], rows, err_msg=name)


# --- FTRL's own


def test_ftrl_learns_on_from_an_assigned_weight_and_from_another_learning_rate() -> None:
    optimizer = es.FTRL(0.5, beta=1.0, l1=0.2, l2=0.1)
    table = table_of(optimizer, 3)
    for _ in range(20):
        pushed(table, np.array([1, -1, 0.01], np.float32))
    table.assign(np.array([KEY], np.uint64), np.array([[0.25, -2.0, 0.125]], np.float32), now_ms=0)
    none = np.zeros(3, np.float32)
    assert pushed(table, none).tolist() == [0.25, -2.0, 0.125]
    assert pushed(table, none, lr=9.0).tolist() == [0.25, -2.0, 0.125]
    moved = pushed(table, np.array([0.001, 0.001, -0.001], np.float32)) - [0.25, -2.0, 0.125]
    assert (np.sign(moved) == [-1, -1, 1]).all() and (np.abs(moved) < 1e-3).all()


# --- initial values


@pytest.mark.parametrize("init", [es.Uniform(0.05, seed=77), es.Normal(0.05, seed=77), es.TruncatedNormal(0.05, 77)])
def test_initial_values_are_the_same_in_two_processes_and_in_the_model(init: Initializer) -> None:
    keys = [0, 1, 2**64 - 1, 123456789]
    here = Table(es.TableSpec("t", 70, init=init, on_miss="init")).pull(np.array(keys, np.uint64))
    code = (
        "import json, numpy as np, embedstore as es\n"
        "from embedstore.table import Table\n"
        f"table = Table(es.TableSpec('other', 70, init=es.{init!r}, on_miss='init', num_chunks=2))\n"
        f"print(json.dumps(table.pull(np.array({keys}, np.uint64)).astype(float).tolist()))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    np.testing.assert_array_equal(here, np.array(json.loads(there), np.float32))
    np.testing.assert_array_equal(here, [initial_embedding(init, key, 70) for key in keys])


def normal_distribution(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


@pytest.mark.parametrize("kind", [es.Normal, es.TruncatedNormal])
def test_normal_values_have_the_moments_and_the_shape_of_their_distribution(kind: type[Any]) -> None:
    count, scale = 200_000, 0.25
    table = Table(es.TableSpec("t", 40, init=kind(scale, seed=5), on_miss="init"))
    rows = table.pull(np.arange(count // 40)).astype(np.float64) / scale
    values = np.sort(rows.ravel())
    below = np.array([normal_distribution(x) for x in values.tolist()])
    variance = 1.0
    if kind is es.TruncatedNormal:
        assert values[0] >= -2 and values[-1] <= 2
        cut = normal_distribution(-2)
        below = (below - cut) / (1 - 2 * cut)
        variance = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / (1 - 2 * cut)
    assert abs(values.mean()) < 4 * math.sqrt(variance / count)
    assert abs(values.var() / variance - 1) < 4 * math.sqrt(2 / count)
    assert np.abs(below - (np.arange(count) + 0.5) / count).max() < 1.95 / math.sqrt(count)  # Kolmogorov-Smirnov
    for a, b in ((rows[:, ::2], rows[:, 1::2]), (rows[:-1], rows[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / math.sqrt(a.size)


# --- refusals


REFUSED: dict[str, Callable[[], object]] = {
    "FTRL.weight_decay": lambda: es.FTRL(0.1, weight_decay=0.01),
    "SGD.lr": lambda: es.SGD(1e39),
    "SGD.weight_decay": lambda: es.SGD(0.1, weight_decay=-0.1),
    "Adam.clip_norm": lambda: es.Adam(0.1, clip_norm=0.0),
    "Adagrad.clip_norm": lambda: es.Adagrad(0.1, clip_norm=1e-60),
    "Adagrad.eps": lambda: es.Adagrad(0.1, eps=1e-50),
    "Adam.beta2": lambda: es.Adam(0.1, beta2=1 - 1e-12),
    "Momentum.beta": lambda: es.Momentum(0.1, beta=1.0),
    "RMSProp.decay": lambda: es.RMSProp(0.1, decay=-0.5),
    "RowwiseAdagrad.initial_accumulator": lambda: es.RowwiseAdagrad(0.1, initial_accumulator=float("nan")),
    "FTRL.l1": lambda: es.FTRL(0.1, l1=float("inf")),
    "Normal.scale": lambda: es.Normal(-1.0),
    "TruncatedNormal.seed": lambda: es.TruncatedNormal(1.0, seed=2**64),
    "Constant.value": lambda: es.Constant(-4e38),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_float32_or_the_rule_cannot_take_is_refused_by_name(field: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        REFUSED[field]()
    assert refused.value.field == field


@given(optimizer=optimizers, init=initializers)
@settings(max_examples=60, deadline=None)
def test_specs_are_the_same_after_the_wire(optimizer: Optimizer, init: Initializer) -> None:
    spec = es.TableSpec("t", 3, optimizer=optimizer, init=init)
    assert es.TableSpec.from_proto(spec.to_proto()) == spec
