"""embedstore.nn does in a training loop exactly what torch's own modules and optimizers do with dense tables."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import embedstore as es
from embedstore.interface import PushResult
from embedstore.store import LocalStore

DIM = 4
NUM_IDS = 12
# Ids that a dense table could not have: the table is indexed by number, the store by these.
IDS = torch.tensor([(i * 0x9E3779B97F4A7C15) % 2**63 - 2**62 for i in range(NUM_IDS)])
OPTIMIZERS: dict[str, tuple[es.Optimizer, Callable[[list[torch.Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (es.SGD(lr=0.1), lambda rows: torch.optim.SGD(rows, lr=0.1)),
    "adagrad": (es.Adagrad(lr=0.1), lambda rows: torch.optim.Adagrad(rows, lr=0.1)),
    "adam": (es.Adam(lr=0.01), lambda rows: torch.optim.Adam(rows, lr=0.01)),
}


class Recording(LocalStore):
    """An embedded store that remembers what it was asked, and whose answers can be lost on the way."""

    def __init__(self, *tables: es.TableSpec) -> None:
        super().__init__(None, tables)
        self.pushes: list[tuple[dict[str, Any], tuple[es.Origin, ...]]] = []
        self.pulls: list[set[str]] = []
        self.dtypes: list[Any] = []
        self.lose_answers = 0

    def pull(self, tables: Mapping[str, Any], *, meta: bool = False, dtype: Any = np.float32) -> Any:
        self.pulls.append(set(tables))
        self.dtypes.append(dtype)
        return super().pull(tables, meta=meta, dtype=dtype)  # type: ignore[call-overload]

    def push(
        self,
        tables: Mapping[str, Any],
        *,
        origins: Sequence[es.Origin] = (),
        event_time_ms: int | None = None,
        generations: Mapping[str, int] | None = None,
    ) -> PushResult:
        result = super().push(tables, origins=origins, event_time_ms=event_time_ms, generations=generations)
        self.pushes.append((dict(tables), tuple(origins)))
        if self.lose_answers:
            self.lose_answers -= 1
            raise es.UnavailableError("shard:1", "went away before it answered")
        return result


def spec(name: str = "items", optimizer: es.Optimizer | None = None, dim: int = DIM) -> es.TableSpec:
    return es.TableSpec(name, dim=dim, optimizer=optimizer or es.SGD(lr=1.0), num_chunks=4)


def initial_rows(seed: int, dim: int = DIM) -> torch.Tensor:
    return torch.randn(NUM_IDS, dim, generator=torch.Generator().manual_seed(seed))


def stored(store: Any, table: str = "items") -> torch.Tensor:
    return torch.from_numpy(store.pull({table: IDS})[table].copy())


@pytest.fixture
def store() -> Iterator[Recording]:
    opened = Recording(spec())
    opened.assign("items", IDS, initial_rows(0))
    yield opened
    opened.close()


@pytest.fixture
def model(store: Recording) -> es.nn.Embedding:
    return es.nn.Embedding(store, "items")


class DenseTable(torch.nn.Module):
    """A table whose rows are parameters of their own, so that torch's optimizers leave untouched rows alone."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = torch.nn.ParameterList([torch.nn.Parameter(row.clone()) for row in rows])

    def forward(self, numbers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weight = torch.stack(list(self.rows))
        return torch.where(mask[..., None], weight[numbers], 0.0)

    def forget_all_but(self, numbers: set[int]) -> None:
        for number, row in enumerate(self.rows):
            if number not in numbers:
                row.grad = None


class Batch:
    """A batch of one loop: numbers of rows, and which of them count."""

    def __init__(self, generator: torch.Generator) -> None:
        self.numbers = torch.randint(NUM_IDS, (3, 2), generator=generator)
        self.mask = torch.rand(3, 2, generator=generator) < 0.8

    def touched(self) -> set[int]:
        return set(self.numbers[self.mask].tolist())


loops = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "accumulate": st.lists(st.integers(1, 3), min_size=1, max_size=4),
        "max_norm": st.sampled_from([None, 0.5, 2.0]),
        "dense": st.booleans(),
    }
)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@settings(max_examples=25, deadline=None)
@given(loop=loops)
def test_loops_equal_torch_step_by_step(kind: str, loop: dict[str, Any]) -> None:
    check_loop(lambda *specs: LocalStore(None, specs), kind, loop)


def check_loop(open_store: Callable[..., Any], kind: str, loop: dict[str, Any]) -> None:
    """Two tables of different widths, a dense layer on top, duplicates, masks, accumulation and clipping."""
    server_side, torch_side = OPTIMIZERS[kind]
    generator = torch.Generator().manual_seed(loop["seed"])
    store = open_store(spec("items", server_side), spec("users", server_side, dim=3))
    tables = {"items": initial_rows(1), "users": initial_rows(2, 3)}
    for name, rows in tables.items():
        store.assign(name, IDS, rows)
    dense = {name: DenseTable(rows) for name, rows in tables.items()}
    ours = {name: es.nn.Embedding(store, name) for name in tables}
    mixed = torch.nn.Linear(DIM + 3, 1, bias=False)
    theirs_mixed = copy.deepcopy(mixed)
    own_dense = torch.optim.SGD(mixed.parameters(), lr=0.1) if loop["dense"] else None
    optimizer = es.nn.Optimizer(torch.nn.ModuleList(ours.values()), store, own_dense)
    own_rows: list[torch.Tensor] = [row for table in dense.values() for row in table.parameters()]
    reference = torch_side(own_rows)
    reference_dense = torch.optim.SGD(theirs_mixed.parameters(), lr=0.1 if loop["dense"] else 0.0)
    for number, micro_batches in enumerate(loop["accumulate"]):
        touched: dict[str, set[int]] = {name: set() for name in tables}
        for _ in range(micro_batches):
            batches = {name: Batch(generator) for name in tables}
            read = [ours[name](IDS[batch.numbers], batch.mask) for name, batch in batches.items()]
            mixed(torch.cat(read, -1)).square().mean().backward()
            expected = [dense[name](batch.numbers, batch.mask) for name, batch in batches.items()]
            for one, other in zip(read, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
            theirs_mixed(torch.cat(expected, -1)).square().mean().backward()
            for name, batch in batches.items():
                touched[name] |= batch.touched()
        for name, table in dense.items():
            table.forget_all_but(touched[name])
        if loop["max_norm"] is not None:
            live = [*optimizer.parameters(), *(() if loop["dense"] else mixed.parameters())]
            norm = torch.nn.utils.clip_grad_norm_(live, loop["max_norm"])
            other = torch.nn.utils.clip_grad_norm_([*own_rows, *theirs_mixed.parameters()], loop["max_norm"])
            torch.testing.assert_close(norm, other, rtol=1e-5, atol=1e-6)
        optimizer.step(event_time_ms=number)
        reference.step()
        reference_dense.step()
        optimizer.zero_grad()
        mixed.zero_grad()
        reference.zero_grad()
        reference_dense.zero_grad()
        for name, table in dense.items():
            expected_rows = torch.stack(list(table.rows)).detach()
            torch.testing.assert_close(stored(store, name), expected_rows, rtol=0, atol=1e-6)
        torch.testing.assert_close(mixed.weight, theirs_mixed.weight, rtol=0, atol=1e-6)
    store.close()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    mode=st.sampled_from(["sum", "mean"]),
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    flat=st.booleans(),
    masked=st.booleans(),
    weighted=st.booleans(),
)
def test_bags_equal_torch_bags(
    seed: int, mode: Any, lengths: list[int], flat: bool, masked: bool, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    store = LocalStore(None, [spec()])
    rows = initial_rows(seed)
    store.assign("items", IDS, rows)
    bag = es.nn.EmbeddingBag(store, "items", mode)
    optimizer = es.nn.Optimizer(bag, store)
    # Row NUM_IDS of the torch bag stands for what is masked.
    torch_bag = torch.nn.EmbeddingBag(NUM_IDS + 1, DIM, mode=mode, padding_idx=NUM_IDS)
    with torch.no_grad():
        torch_bag.weight.copy_(torch.cat([rows, torch.zeros(1, DIM)]))
    shape = (sum(lengths),) if flat else (len(lengths), max(1, *lengths))
    offsets = torch.tensor([0, *lengths[:-1]]).cumsum(0) if flat else None
    numbers = torch.randint(NUM_IDS, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.7 if masked else None
    weights = torch.rand(shape, generator=generator) if weighted and mode == "sum" else None
    read = bag(IDS[numbers], offsets, mask, weights)
    shown = numbers if mask is None else torch.where(mask, numbers, NUM_IDS)
    expected = torch_bag(shown, offsets, per_sample_weights=weights)
    torch.testing.assert_close(read, expected)
    scale = torch.rand(expected.shape, generator=generator)
    (read * scale).sum().backward()
    (expected * scale).sum().backward()
    optimizer.step()
    assert torch_bag.weight.grad is not None
    torch.testing.assert_close(stored(store), rows - torch_bag.weight.grad[:NUM_IDS], rtol=0, atol=1e-6)


def test_bags_of_length_zero_are_zeros(store: Recording) -> None:
    bag = es.nn.EmbeddingBag(store, "items", "mean")
    optimizer = es.nn.Optimizer(bag, store)
    read = bag(torch.empty(3, 0, dtype=torch.int64))
    assert torch.equal(read, torch.zeros(3, DIM))
    read.sum().backward()
    optimizer.step()
    assert torch.equal(stored(store), initial_rows(0))


def test_accumulated_batches_equal_one_big_batch() -> None:
    ids = IDS[torch.randint(NUM_IDS, (4, 8), generator=torch.Generator().manual_seed(3))]
    results = []
    for parts in (ids[None], ids):
        store = Recording(spec(optimizer=es.Adagrad(lr=0.1)))
        store.assign("items", IDS, initial_rows(0))
        model = es.nn.Embedding(store, "items")
        optimizer = es.nn.Optimizer(model, store)
        for part in parts:
            model(part).sin().sum().backward()
        torch.nn.utils.clip_grad_norm_(optimizer.parameters(), 1.0)
        optimizer.step()
        (pushed, _) = store.pushes[0]
        counts = dict(zip(pushed["items"].ids.tolist(), pushed["items"].counts.tolist(), strict=True))
        results.append((stored(store), counts))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-6)
    assert results[0][1] == results[1][1]
    assert sum(results[0][1].values()) == ids.numel()


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3, 4)])
def test_ids_of_any_shape_give_rows_behind_it(model: es.nn.Embedding, shape: tuple[int, ...]) -> None:
    numbers = torch.arange(int(np.prod(shape))).reshape(shape) % NUM_IDS
    read = model(IDS[numbers])
    assert read.shape == (*shape, DIM)
    assert torch.equal(read, initial_rows(0)[numbers])
    masked = model(IDS[numbers], torch.zeros(shape, dtype=torch.bool))
    assert torch.equal(masked, torch.zeros(*shape, DIM))


def test_one_push_a_step_carries_every_table_and_each_ids_occurrences() -> None:
    store = Recording(spec("items"), spec("users"))
    store.open_stream("log", 0)
    model = torch.nn.ModuleDict({"a": es.nn.Embedding(store, "items"), "b": es.nn.EmbeddingBag(store, "users", "sum")})
    again = es.nn.Embedding(store, "items")
    model["again"] = again
    optimizer = es.nn.Optimizer(model, store)
    mask = torch.tensor([True, True, True, False])
    loss = model["a"](torch.tensor([7, 7, 8, 9]), mask).sum() + model["b"](torch.tensor([[1, 1], [1, 2]])).sum()
    (loss + again(torch.tensor([8])).sum()).backward()
    optimizer.step(origins=[es.Origin("log", 0, 4)], event_time_ms=5)
    ((tables, origins),) = store.pushes
    seen = {name: dict(zip(push.ids.tolist(), push.counts.tolist(), strict=True)) for name, push in tables.items()}
    assert seen == {"items": {7: 2, 8: 2}, "users": {1: 3, 2: 1}}
    assert origins == (es.Origin("log", 0, 4),)
    assert optimizer.last_push is not None
    assert optimizer.last_push.streams["log"].applied == 4
    assert store.pull({"items": [7, 8, 9]})["items"][:, 0].tolist() == [-2.0, -2.0, 0.0]
    optimizer.step()
    assert len(store.pushes) == 1, "nothing is left to push"


@pytest.mark.parametrize("how", ["no_grad", "eval"])
def test_reading_without_training_leaves_nothing_behind(store: Recording, model: es.nn.Embedding, how: str) -> None:
    optimizer = es.nn.Optimizer(model, store)
    model.train(how != "eval")
    with torch.set_grad_enabled(how != "no_grad"):
        read = model(IDS)
    assert not read.requires_grad
    optimizer.step()
    assert store.pushes == []


def test_a_forward_without_backward_is_freed_with_its_output(store: Recording, model: es.nn.Embedding) -> None:
    optimizer = es.nn.Optimizer(model, store)
    read = model(IDS)
    leaf = weakref.ref(read.grad_fn.next_functions[0][0].variable)
    assert leaf() is not None
    del read
    gc.collect()
    assert leaf() is None
    assert list(optimizer.parameters()) == []


def test_zero_grad_drops_gradients_but_not_forwards_that_wait(store: Recording, model: es.nn.Embedding) -> None:
    optimizer = es.nn.Optimizer(model, store)
    model(IDS[:2]).sum().backward()
    read = model(IDS[2:4])
    optimizer.zero_grad()
    read.sum().backward()
    optimizer.step()
    moved = (initial_rows(0) - stored(store))[:, 0]
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.0, 1.0, 1.0, *[0.0] * 8]))


def test_a_second_backward_through_one_forward_adds_up(store: Recording, model: es.nn.Embedding) -> None:
    optimizer = es.nn.Optimizer(model, store)
    loss = model(IDS[:1]).sum()
    loss.backward(retain_graph=True)
    assert len(list(optimizer.parameters())) == 1
    loss.backward(retain_graph=True)
    optimizer.step()
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(stored(store)[0], initial_rows(0)[0] - 3)


def test_checkpointed_forwards_train_once(store: Recording, model: es.nn.Embedding) -> None:
    optimizer = es.nn.Optimizer(model, store)
    checkpoint(lambda ids: model(ids).sin(), IDS, use_reentrant=False).sum().backward()
    optimizer.step()
    ((pushed, _),) = store.pushes
    assert pushed["items"].counts.tolist() == [1] * NUM_IDS
    torch.testing.assert_close(stored(store), initial_rows(0) - initial_rows(0).cos())


def test_a_refused_push_keeps_gradients_and_dense_weights(store: Recording, model: es.nn.Embedding) -> None:
    store.open_stream("log", 0)
    layer = torch.nn.Linear(DIM, 1)
    before = layer.weight.detach().clone()
    optimizer = es.nn.Optimizer(model, store, torch.optim.SGD(layer.parameters(), lr=1.0))
    layer(model(IDS)).sum().backward()
    with pytest.raises(es.GapError):
        optimizer.step(origins=[es.Origin("log", 3, 4)])
    assert torch.equal(stored(store), initial_rows(0))
    assert torch.equal(layer.weight, before)
    optimizer.step(origins=[es.Origin("log", 0, 4)])
    torch.testing.assert_close(stored(store), initial_rows(0) - before)
    assert not torch.equal(layer.weight, before)


def test_a_step_whose_answer_was_lost_can_be_repeated(store: Recording, model: es.nn.Embedding) -> None:
    store.open_stream("log", 0)
    layer = torch.nn.Linear(DIM, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = es.nn.Optimizer(model, store, torch.optim.SGD(layer.parameters(), lr=1.0))
    store.lose_answers = 1
    layer(model(IDS[:1])).sum().backward()
    with pytest.raises(es.UnavailableError):
        optimizer.step(origins=[es.Origin("log", 0, 1)])
    assert torch.equal(layer.weight, before)
    optimizer.step(origins=[es.Origin("log", 0, 1)])
    assert optimizer.last_push is not None
    assert optimizer.last_push.repeated
    torch.testing.assert_close(stored(store)[:1], initial_rows(0)[:1] - before)
    torch.testing.assert_close(layer.weight, before - initial_rows(0)[:1])


def test_skip_pushes_the_origins_empty_and_drops_gradients(store: Recording, model: es.nn.Embedding) -> None:
    store.open_stream("log", 0)
    optimizer = es.nn.Optimizer(model, store)
    model(IDS).sum().backward()
    optimizer.skip([es.Origin("log", 0, 9)])
    assert store.pushes == [({}, (es.Origin("log", 0, 9),))]
    assert store.watermarks()["log"].applied == 9
    optimizer.step()
    assert torch.equal(stored(store), initial_rows(0))


@pytest.mark.parametrize("clip", [False, True])
def test_loss_scaling_skips_overflows_and_equals_training_without_it(
    store: Recording, model: es.nn.Embedding, clip: bool
) -> None:
    store.open_stream("log", 0)
    layer = torch.nn.Linear(DIM, 1)
    before = layer.weight.detach().clone()
    optimizer = es.nn.Optimizer(model, store, torch.optim.SGD(layer.parameters(), lr=0.5))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(factor: float, position: int) -> None:
        scaler.scale(layer(model(IDS)).sum() * factor).backward()
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(optimizer.parameters(), 1e9)
        scaler.step(optimizer, origins=[es.Origin("log", position, position + 1)])
        scaler.update()
        optimizer.zero_grad()

    step(float("inf"), 0)
    assert store.pushes == [({}, (es.Origin("log", 0, 1),))]
    assert torch.equal(layer.weight, before)
    assert scaler.get_scale() == 4.0
    step(1.0, 1)
    torch.testing.assert_close(stored(store), initial_rows(0) - before)
    torch.testing.assert_close(layer.weight, before - 0.5 * initial_rows(0).sum(0, keepdim=True))


def test_a_scaled_step_that_was_refused_is_not_scaled_twice(store: Recording, model: es.nn.Embedding) -> None:
    store.open_stream("log", 0)
    optimizer = es.nn.Optimizer(model, store)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(model(IDS).sum()).backward()
    with pytest.raises(es.GapError):
        scaler.step(optimizer, origins=[es.Origin("log", 1, 2)])
    scaler.step(optimizer, origins=[es.Origin("log", 0, 2)])
    torch.testing.assert_close(stored(store), initial_rows(0) - 1)


def test_autocast_and_other_dtypes_train_float32_rows(store: Recording, model: es.nn.Embedding) -> None:
    layer = torch.nn.Linear(DIM, DIM)
    optimizer = es.nn.Optimizer(model, store)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(model(IDS)).dtype == torch.bfloat16
    for dtype in (torch.bfloat16, torch.float64):
        before = stored(store)
        model.to(dtype)
        read = model(IDS)
        assert read.dtype == dtype
        read.sum().backward()
        optimizer.step()
        torch.testing.assert_close(stored(store), before - 1)


def test_schedulers_set_the_lr_of_pushes(store: Recording, model: es.nn.Embedding) -> None:
    optimizer = es.nn.Optimizer(model, store)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(3):
        model(IDS[:1]).sum().backward()
        optimizer.step()
        scheduler.step()
    assert [push["items"].lr for push, _ in store.pushes] == [None, 0.5, 0.25]
    torch.testing.assert_close(stored(store)[0], initial_rows(0)[0] - 1.75)


def test_an_lr_nobody_set_stays_the_tables_own(store: Recording, model: es.nn.Embedding) -> None:
    optimizer = es.nn.Optimizer(model, store)
    store.alter_table(spec(optimizer=es.SGD(lr=0.25)))
    model(IDS[:1]).sum().backward()
    optimizer.step()
    torch.testing.assert_close(stored(store)[0], initial_rows(0)[0] - 0.25)


def test_optimizer_state_is_settings_and_the_dense_part(store: Recording, model: es.nn.Embedding) -> None:
    layer = torch.nn.Linear(DIM, 1)
    optimizer = es.nn.Optimizer(model, store, torch.optim.Adam(layer.parameters()))
    layer(model(IDS)).sum().backward()
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = 0.125
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    other = es.nn.Optimizer(model, store, torch.optim.Adam(layer.parameters()))
    saved.seek(0)
    other.load_state_dict(torch.load(saved))
    assert [group["lr"] for group in other.param_groups] == [0.125, 0.125]
    assert other.state_dict()["dense"]["state"].keys() == optimizer.state_dict()["dense"]["state"].keys() != set()
    with pytest.raises(es.InvalidArgumentError, match=r"state_dict\.dense"):
        es.nn.Optimizer(model, store).load_state_dict(optimizer.state_dict())


def test_the_model_saves_copies_and_refuses_pickle(store: Recording, model: es.nn.Embedding) -> None:
    assert model.state_dict() == {}
    assert list(model.parameters()) == []
    model(IDS[:1]).sum().backward()
    copied = copy.deepcopy(model)
    assert copied.store is store
    es.nn.Optimizer(copied, store).step()
    assert store.pushes == [], "a copy starts without gradients"
    assert torch.equal(copied(IDS), model(IDS))
    with pytest.raises(TypeError, match="live store"):
        pickle.dumps(model)
    with pytest.raises(TypeError, match="live store"):
        copy.copy(es.nn.Optimizer(model, store))


def test_prefetch_pulls_all_tables_at_once_and_trains_the_same() -> None:
    results = []
    for prefetched in (False, True):
        store = Recording(spec("items"), spec("users"))
        store.assign("items", IDS, initial_rows(1))
        items, users = es.nn.Embedding(store, "items"), es.nn.EmbeddingBag(store, "users", "sum")
        tied = es.nn.Embedding(store, "items")
        model = torch.nn.ModuleList([items, users, tied])
        optimizer = es.nn.Optimizer(model, store)

        def learn() -> None:
            mask = torch.tensor([True, False, True])
            loss = items(IDS[:3], mask).square().sum() + tied(IDS[2:5]).square().sum() + users(IDS[:4, None]).sum()  # noqa: B023
            loss.backward()

        if prefetched:
            with es.nn.prefetch({items: [IDS[:3], IDS[5:7]], tied: IDS[2:5], users: IDS[:4]}):
                learn()
            assert store.pulls == [{"items", "users"}]
        else:
            learn()
            assert len(store.pulls) == 3
        optimizer.step()
        ((pushed, _),) = store.pushes
        counts = {
            table: dict(zip(push.ids.tolist(), push.counts.tolist(), strict=True)) for table, push in pushed.items()
        }
        results.append((stored(store), stored(store, "users"), counts))
    for one, other in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert results[0][2] == results[1][2]


def test_prefetched_rows_end_with_the_block_and_with_a_step(store: Recording, model: es.nn.Embedding) -> None:
    optimizer = es.nn.Optimizer(model, store)
    with es.nn.prefetch({model: IDS[:4]}):
        model(IDS[:2]).sum().backward()
        optimizer.step()
        torch.testing.assert_close(model(IDS[:2]).detach(), initial_rows(0)[:2] - 1)
    assert len(store.pulls) == 2
    with es.nn.prefetch({model: IDS[:4]}):
        assert torch.equal(model(IDS[:6])[2:].detach(), initial_rows(0)[2:6]), "other ids pull for themselves"
    assert len(store.pulls) == 4


def test_rows_prefetched_without_grad_never_swallow_a_gradient(store: Recording, model: es.nn.Embedding) -> None:
    optimizer = es.nn.Optimizer(model, store)
    with torch.no_grad():
        block = es.nn.prefetch({model: IDS})
        block.__enter__()
    model(IDS).sum().backward()
    block.__exit__(None, None, None)
    optimizer.step()
    torch.testing.assert_close(stored(store), initial_rows(0) - 1)


class ReadOnly:
    """The reading half of a store, as a follower has it."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        for name in ("pull", "contains", "scan", "get_dense", "tables", "stats", "close"):
            setattr(self, name, getattr(store, name))


def test_rows_of_a_follower_are_read_and_never_trained(store: Recording) -> None:
    follower: Any = ReadOnly(store)
    frozen = es.nn.Embedding(follower, "items")
    assert not frozen(IDS).requires_grad
    with pytest.raises(es.InvalidArgumentError, match=r"Optimizer\.store"):
        es.nn.Optimizer(frozen, follower)
    with pytest.raises(es.InvalidArgumentError, match=r"Optimizer\.model"):
        es.nn.Optimizer(frozen, store)


def test_bad_input_is_named(store: Recording, model: es.nn.Embedding) -> None:
    with pytest.raises(es.TableNotFoundError, match="nothing"):
        es.nn.Embedding(store, "nothing")
    with pytest.raises(es.InvalidArgumentError, match=r"Embedding\.ids"):
        model(torch.ones(3))
    with pytest.raises(es.InvalidArgumentError, match=r"Embedding\.mask"):
        model(IDS, torch.ones(3, dtype=torch.bool))
    with pytest.raises(es.InvalidArgumentError, match=r"Embedding\.dtype"):
        es.nn.Embedding(store, "items", dtype=torch.int64)
    bag = es.nn.EmbeddingBag(store, "items", "mean")
    with pytest.raises(es.InvalidArgumentError, match=r"EmbeddingBag\.ids"):
        bag(IDS)
    with pytest.raises(es.InvalidArgumentError, match=r"EmbeddingBag\.weights"):
        bag(IDS[None], weights=torch.ones(1, NUM_IDS))
    with pytest.raises(es.InvalidArgumentError, match=r"EmbeddingBag\.mode"):
        es.nn.EmbeddingBag(store, "items", "max")  # type: ignore[arg-type]


def test_nan_gradients_are_refused_whole_and_can_be_skipped(store: Recording, model: es.nn.Embedding) -> None:
    optimizer = es.nn.Optimizer(model, store)
    (model(IDS) * float("nan")).sum().backward()
    with pytest.raises(es.InvalidArgumentError, match="grads"):
        optimizer.step()
    assert torch.equal(stored(store), initial_rows(0))
    optimizer.skip()
    model(IDS).sum().backward()
    optimizer.step()
    torch.testing.assert_close(stored(store), initial_rows(0) - 1)
