"""embedstore.nn trains a remote store as it does an embedded one: the same loops equal torch over two shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stores import STORE_FACTORIES

import embedstore as es
from embedstore.interface import Store

DIM = 4
IDS = torch.arange(40) * 0x5851F42D4C957F2D - 2**40


@pytest.fixture(params=["memory", "remote-1", "remote-2"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    items = es.TableSpec("items", dim=DIM, optimizer=es.Adagrad(lr=0.1), init=es.Uniform(0.5, seed=3), on_miss="init")
    users = es.TableSpec("users", dim=DIM, optimizer=es.Adam(lr=0.1), init=es.Uniform(0.5, seed=4), on_miss="init")
    with STORE_FACTORIES[request.param](tmp_path, [items, users]) as opened:
        yield opened.store


class Model(torch.nn.Module):
    """A user's bag of items and the user, to one number."""

    def __init__(self, items: torch.nn.Module, bag: torch.nn.Module, users: torch.nn.Module) -> None:
        super().__init__()
        self.items, self.bag, self.users = items, bag, users
        self.layer = torch.nn.Linear(3 * DIM, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 3 * DIM)[None])

    def forward(self, item: torch.Tensor, history: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        parts = [self.items(item), self.bag(history), self.users(user)]
        score: torch.Tensor = self.layer(torch.cat(parts, -1))
        return score


def test_an_ordinary_loop_equals_torch(store: Store) -> None:
    generator = torch.Generator().manual_seed(5)
    store.open_stream("log", 0)
    dense_items = torch.nn.Embedding(len(IDS), DIM, _weight=_rows(store, "items"))
    dense_bag = torch.nn.EmbeddingBag(len(IDS), DIM, mode="mean")
    dense_bag.weight = dense_items.weight
    dense_users = torch.nn.Embedding(len(IDS), DIM, _weight=_rows(store, "users"))
    theirs = Model(dense_items, dense_bag, dense_users)
    ours = Model(
        es.nn.Embedding(store, "items"), es.nn.EmbeddingBag(store, "items", "mean"), es.nn.Embedding(store, "users")
    )
    optimizer = es.nn.Optimizer(ours, store, torch.optim.SGD(ours.layer.parameters(), lr=0.1))
    # Every user is in every batch: torch's Adam steps all rows, the store's those it is given.
    reference = [
        torch.optim.Adagrad([dense_items.weight], lr=0.1),
        torch.optim.Adam([dense_users.weight], lr=0.1),
        torch.optim.SGD(theirs.layer.parameters(), lr=0.1),
    ]
    for number in range(5):
        item, history = (torch.randint(len(IDS), shape, generator=generator) for shape in ((40,), (40, 3)))
        user = torch.randperm(len(IDS), generator=generator)
        label = torch.rand(40, 1, generator=generator)
        losses = []
        for model, ids in ((ours, IDS), (theirs, torch.arange(len(IDS)))):
            loss = (model(ids[item], ids[history], ids[user]) - label).square().sum()
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        torch.nn.utils.clip_grad_norm_(optimizer.parameters(), 1.0)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step(origins=[es.Origin("log", 40 * number, 40 * (number + 1))], event_time_ms=number)
        optimizer.zero_grad()
        for one in reference:
            one.step()
            one.zero_grad()
        torch.testing.assert_close(_rows(store, "items"), dense_items.weight.detach(), rtol=0, atol=2e-6)
        torch.testing.assert_close(_rows(store, "users"), dense_users.weight.detach(), rtol=0, atol=2e-6)
    assert store.watermarks()["log"].applied == 200


def test_one_step_is_repeated_safely_and_a_gap_refuses_it_whole(store: Store) -> None:
    store.open_stream("log", 0)
    model = es.nn.Embedding(store, "items")
    optimizer = es.nn.Optimizer(model, store)
    before = _rows(store, "items")
    model(IDS).sum().backward()
    with pytest.raises(es.GapError) as refused:
        optimizer.step(origins=[es.Origin("log", 7, 8)])
    assert refused.value.watermarks == {"log": [0]}
    assert torch.equal(_rows(store, "items"), before)
    for _ in range(2):
        optimizer.step(origins=[es.Origin("log", 0, 8)])
        torch.testing.assert_close(_rows(store, "items"), before - 0.1)
        model(IDS).sum().backward()


def _rows(store: Store, table: str) -> torch.Tensor:
    return torch.from_numpy(store.pull({table: IDS})[table].copy())
