"""No place of a history knows a later one, and padding is as if it were not there."""

from __future__ import annotations

import pytest
import torch

from embedstore.errors import InvalidArgumentError
from trainer.model.sequence import SequenceModel, last_places


@pytest.fixture
def model() -> SequenceModel:
    torch.manual_seed(3)
    return SequenceModel(16, length=7, layers=2, heads=4)


def test_the_future_does_not_influence_the_past(model: SequenceModel) -> None:
    events = torch.randn(5, 7, 16)
    hidden = model(events)
    for place in range(6):
        changed = events.clone()
        changed[:, place + 1 :] = torch.randn(5, 6 - place, 16) * 100
        torch.testing.assert_close(model(changed)[:, : place + 1], hidden[:, : place + 1], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(model(changed)[:, place + 1 :], hidden[:, place + 1 :])


def test_the_future_has_no_gradient(model: SequenceModel) -> None:
    events = torch.randn(2, 7, 16, requires_grad=True)
    torch.autograd.backward(model(events)[:, 3].sum())
    assert events.grad is not None
    assert not events.grad[:, 4:].any()
    assert (events.grad[:, :4].abs().sum(dim=-1) > 0).all()


def test_a_shorter_history_gives_the_same_vector_with_or_without_padding(model: SequenceModel) -> None:
    events = torch.randn(3, 7, 16)
    lengths = torch.tensor([1, 4, 7])
    padded = last_places(model(events), lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model(events[row : row + 1, :length])[0, -1]
        torch.testing.assert_close(padded[row], alone, rtol=1e-5, atol=1e-6)


def test_the_short_way_to_the_latest_place_is_exact_in_value_and_gradient(model: SequenceModel) -> None:
    lengths = torch.tensor([1, 3, 7, 6])
    grads, vectors = [], []
    for short in (False, True):
        torch.manual_seed(0)
        events = torch.randn(4, 7, 16, requires_grad=True)
        vector = model.last(events, lengths) if short else last_places(model(events), lengths)
        model.zero_grad()
        torch.autograd.backward((vector * torch.arange(16)).sum())
        assert events.grad is not None
        grads.append([events.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
        vectors.append(vector)
    torch.testing.assert_close(vectors[0], vectors[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_outputs_are_unit_vectors_whatever_the_scale_of_the_rows(model: SequenceModel) -> None:
    norms = model(torch.randn(3, 7, 16) * 50).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_order_matters(model: SequenceModel) -> None:
    events = torch.randn(1, 7, 16)
    assert not torch.allclose(model(events)[:, -1], model(events[:, [1, 0, 2, 3, 4, 5, 6]])[:, -1], atol=1e-4)


def test_heads_that_do_not_divide_dim_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        SequenceModel(16, length=4, heads=3)
    assert caught.value.field == "SequenceModel.heads"
