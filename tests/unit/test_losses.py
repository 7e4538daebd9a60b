"""The loss is the one of its definition, and a sample of negatives stands for all of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.model.losses import info_nce, sampling_log_q


def reference(logits: np.ndarray, target: np.ndarray, log_q: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """The definition, one number at a time in float64."""
    losses = []
    for i, row in enumerate(logits.astype(np.float64)):
        positive = math.exp(row[target[i]])
        others = [
            math.exp(row[j]) / math.exp(float(log_q[j])) for j in range(len(row)) if j != target[i] and not masked[i, j]
        ]
        losses.append(-math.log(positive / (positive + sum(others))))
    return np.array(losses)


@given(seed=st.integers(0, 2**32 - 1), queries=st.integers(1, 9), columns=st.integers(1, 17))
@settings(max_examples=60, deadline=None)
def test_info_nce_equals_its_float64_definition(seed: int, queries: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (queries, columns)).astype(np.float32)
    target = rng.integers(0, columns, queries)
    log_q = np.log(rng.uniform(0.01, 1, columns)).astype(np.float32)
    masked = rng.random((queries, columns)) < 0.3
    got = info_nce(*(torch.from_numpy(a) for a in (logits, target, log_q, masked)))
    np.testing.assert_allclose(got.numpy(), reference(logits, target, log_q, masked), rtol=2e-5, atol=1e-6)


def test_a_query_without_negatives_costs_nothing_and_has_a_finite_gradient() -> None:
    logits = torch.tensor([[1.0, 5.0], [2.0, 3.0]], requires_grad=True)
    loss = info_nce(logits, torch.tensor([0, 1]), torch.zeros(2), torch.tensor([[False, True], [False, False]]))
    torch.autograd.backward(loss.sum())
    assert loss[0].item() == 0.0
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0.0, 0.0]
    assert torch.isfinite(logits.grad).all()


def test_masked_candidates_have_no_gradient() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    masked = torch.zeros(4, 6, dtype=torch.bool)
    masked[1, 3] = masked[2, 0] = True
    torch.autograd.backward(info_nce(logits, torch.tensor([5, 5, 5, 5]), torch.zeros(6), masked).sum())
    assert logits.grad is not None
    assert logits.grad[1, 3] == 0.0
    assert logits.grad[2, 0] == 0.0


def test_corrected_samples_estimate_the_sum_over_all_items() -> None:
    """Draw many samples: the mean corrected sum of exponentials is the sum over all items."""
    rng = np.random.default_rng(5)
    items, head, tail, batch = 60, 10, 15, 4
    scores = rng.normal(0, 1, items)
    share = rng.dirichlet(np.ones(items) * 0.5)
    drawn = np.where(np.arange(items) < head, 1.0, tail / (items - head))
    chance = np.exp(sampling_log_q(torch.from_numpy(drawn), torch.from_numpy(share), batch).numpy())
    sums = []
    for _ in range(4000):
        picked = np.zeros(items, bool)
        picked[:head] = True
        picked[head + rng.choice(items - head, tail, replace=False)] = True
        picked[rng.choice(items, batch, p=share)] = True
        sums.append((np.exp(scores[picked]) / chance[picked]).sum())
    standard_error = np.std(sums) / math.sqrt(len(sums))
    assert abs(np.mean(sums) - np.exp(scores).sum()) < 4 * standard_error
