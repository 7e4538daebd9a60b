"""A module of float16 pulls half the bytes, and nothing else can tell: no output, no gradient, no push."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from half_rows import rounded_rows

import embedstore as es
from embedstore.store import LocalStore

DIM = 4
NUM_IDS = 14
IDS = torch.tensor([(i * 0x9E3779B97F4A7C15) % 2**63 - 2**62 for i in range(NUM_IDS)])
NUMBERS = torch.tensor([[0, 3, 3, 13], [5, 0, 0, 0], [9, 1, 13, 2]])
MASK = torch.tensor([[True, True, False, True], [False, True, True, False], [True, True, True, True]])
Read = Callable[[torch.nn.Module], torch.Tensor]


class Asked(LocalStore):
    """Remembers of each pull its tables and dtype."""

    def __init__(self) -> None:
        super().__init__(None, [es.TableSpec(name, DIM, optimizer=es.SGD(1.0), num_chunks=4) for name in ("a", "b")])
        self.pulls: list[tuple[set[str], Any]] = []
        for seed, name in enumerate(("a", "b")):
            self.assign(name, IDS, torch.randn(NUM_IDS, DIM, generator=torch.Generator().manual_seed(seed)))

    def pull(self, tables: Mapping[str, Any], *, meta: bool = False, dtype: Any = np.float32) -> Any:
        self.pulls.append((set(tables), dtype))
        return super().pull(tables, meta=meta, dtype=dtype)  # type: ignore[call-overload]

    def taken(self) -> list[tuple[set[str], Any]]:
        """The pulls since the last time."""
        pulls, self.pulls = self.pulls, []
        return pulls


@pytest.fixture
def store() -> Iterator[Asked]:
    with Asked() as opened:
        yield opened


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    assert one.dtype == other.dtype
    return one.shape == other.shape and one.detach().numpy().tobytes() == other.detach().numpy().tobytes()


def gradient_of_step(store: Asked, model: torch.nn.Module, output: torch.Tensor) -> np.ndarray:
    """What a step that follows from ``output`` does to the rows; they are put back."""
    before = LocalStore.pull(store, {"a": IDS})["a"]
    optimizer = es.nn.Optimizer(model, store)
    scale = torch.rand(output.shape, generator=torch.Generator().manual_seed(4))
    torch.autograd.backward((output.float() * scale).square().sum())
    optimizer.step()
    after = LocalStore.pull(store, {"a": IDS})["a"]
    store.assign("a", IDS, before)
    moved: np.ndarray = before - after
    return moved


READS: dict[str, Read] = {
    "plain": lambda model: model(IDS[NUMBERS]),
    "masked": lambda model: model(IDS[NUMBERS], MASK),
    "nothing but masked": lambda model: model(IDS[NUMBERS], torch.zeros_like(MASK)),
    "no ids": lambda model: model(IDS[:0]),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("made", ["dtype", "half"])
def test_a_half_module_gives_what_a_float32_one_gives_converted(
    store: Asked, read: str, training: bool, made: str
) -> None:
    whole = es.nn.Embedding(store, "a").train(training)
    model = es.nn.Embedding(store, "a", dtype=torch.float16) if made == "dtype" else es.nn.Embedding(store, "a").half()
    model.train(training)
    expected = READS[read](whole).half()
    assert [dtype for _, dtype in store.taken()] == [np.float32] * (read in ("plain", "masked"))
    output = READS[read](model)
    assert [dtype for _, dtype in store.taken()] == [np.float16] * (read in ("plain", "masked"))
    assert same_bits(output, expected)
    assert output.requires_grad == expected.requires_grad == training
    if training:
        theirs, ours = gradient_of_step(store, whole, expected), gradient_of_step(store, model, output)
        assert theirs.any() == (read in ("plain", "masked"))
        assert theirs.tobytes() == ours.tobytes()


def test_numbers_that_round_and_overflow_are_the_same_either_way(store: Asked) -> None:
    rows, halves = rounded_rows(DIM)
    store.assign("a", IDS[: len(rows)], rows)
    output = es.nn.Embedding(store, "a").half()(IDS[: len(rows)])
    assert same_bits(output, torch.from_numpy(halves))
    assert same_bits(output, es.nn.Embedding(store, "a")(IDS[: len(rows)]).half())


def test_gradients_of_equal_ids_are_summed_in_float32(store: Asked) -> None:
    model = es.nn.Embedding(store, "a").half()
    optimizer = es.nn.Optimizer(model, store)
    before = LocalStore.pull(store, {"a": IDS[:1]})["a"]
    for _ in range(2):
        model(IDS[:1].expand(3000)).sum().backward()
    assert [parameter.grad.dtype for parameter in optimizer.parameters() if parameter.grad is not None] == [
        torch.float32
    ]
    optimizer.step()
    moved = before - LocalStore.pull(store, {"a": IDS[:1]})["a"]
    np.testing.assert_allclose(moved, 6000.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32])
def test_other_dtypes_pull_float32(store: Asked, dtype: torch.dtype) -> None:
    expected = es.nn.Embedding(store, "a")(IDS).to(dtype)
    store.taken()
    assert torch.equal(es.nn.Embedding(store, "a", dtype=dtype)(IDS), expected)
    assert store.taken() == [({"a"}, np.float32)]


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_halves_lose_nothing_before_they_are_whole(store: Asked, mode: Any) -> None:
    store.assign("a", IDS, np.full((NUM_IDS, DIM), 1 + 2**-11 - 2**-20, np.float32))
    bag = es.nn.EmbeddingBag(store, "a", mode).half()
    store.taken()
    output = bag(IDS.expand(2, NUM_IDS))
    assert store.taken() == [({"a"}, np.float32)]
    assert same_bits(output, es.nn.EmbeddingBag(store, "a", mode)(IDS.expand(2, NUM_IDS)).half())
    if mode == "sum":
        rounded_first = es.nn.Embedding(store, "a").half()(IDS).sum(0)
        assert not torch.equal(output[0], rounded_first), "this table can tell the two apart"


def test_prefetch_pulls_halves_when_nobody_needs_more(store: Asked) -> None:
    one, other = es.nn.Embedding(store, "a").half(), es.nn.Embedding(store, "b").half()
    wide, bag = es.nn.Embedding(store, "a"), es.nn.EmbeddingBag(store, "b").half()
    expected = {module: module(IDS[None]) for module in (one, other, wide, bag)}
    store.taken()
    for readers, dtype in (
        ((one, other), np.float16),
        ((one, other, wide), np.float32),
        ((one, bag), np.float32),
        ((other, bag), np.float32),
    ):
        with es.nn.prefetch(dict.fromkeys(readers, IDS)):
            assert store.taken() == [({reader.table for reader in readers}, dtype)]
            for reader in readers:
                assert same_bits(reader(IDS[None]), expected[reader])
            assert not store.taken(), "the forwards read what was prefetched"


def test_rounded_rows_are_not_served_to_a_module_that_is_float32_by_now(store: Asked) -> None:
    model = es.nn.Embedding(store, "a").half()
    with es.nn.prefetch({model: IDS}):
        model.float()
        assert same_bits(model(IDS), torch.from_numpy(LocalStore.pull(store, {"a": IDS})["a"]))


def test_a_default_dtype_of_half_trains_as_well(store: Asked) -> None:
    torch.set_default_dtype(torch.float16)
    try:
        model = es.nn.Embedding(store, "a")
        optimizer = es.nn.Optimizer(model, store)
        before = LocalStore.pull(store, {"a": IDS})["a"]
        for mask in (None, torch.ones(NUM_IDS, dtype=torch.bool)):
            output = model(IDS, mask)
            assert output.dtype == torch.float16
            output.sum().backward()
        optimizer.step()
        np.testing.assert_allclose(LocalStore.pull(store, {"a": IDS})["a"], before - 2, rtol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
