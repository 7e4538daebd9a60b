"""The flat Adam is Adam."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from embedstore.errors import InvalidArgumentError
from trainer.model.adam import FlatAdam


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(4)
    left = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    right = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    right.load_state_dict(left.state_dict())
    return left, right


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    torch.autograd.backward(model(torch.randn(9, 5, generator=generator)).square().mean())


def test_it_moves_the_weights_as_the_reference_does_with_a_rate_for_each_group() -> None:
    ours, theirs = networks()
    optimizer = FlatAdam([(list(ours[0].parameters()), 0.01), (list(ours[2].parameters()), 0.1)])
    reference = torch.optim.Adam(
        [{"params": theirs[0].parameters(), "lr": 0.01}, {"params": theirs[2].parameters(), "lr": 0.1}]
    )
    for step in range(30):
        optimizer.zero_grad()
        reference.zero_grad()
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    one, two = networks()
    first, second = (FlatAdam([(list(model.parameters()), 0.01)]) for model in (one, two))
    gradients(one, 1)
    first.step()
    two.load_state_dict(one.state_dict())
    second.load_state(first.state())
    for model, optimizer in ((one, first), (two, second)):
        optimizer.zero_grad()
        gradients(model, 2)
        optimizer.step()
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_state_of_other_weights_is_refused() -> None:
    one, _ = networks()
    optimizer = FlatAdam([(list(one.parameters()), 0.01)])
    with pytest.raises(InvalidArgumentError, match="mean"):
        FlatAdam([(list(one[0].parameters()), 0.01)]).load_state(optimizer.state())
