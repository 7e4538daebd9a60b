"""What every store does, call by call and error by error: the model, the embedded store and the remote one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_optimizers import EVERY_OPTIMIZER, initial_embedding, initial_state, learn
from model_table import chunk_of
from stores import STORE_FACTORIES, StoreHandle

import embedstore as es
from embedstore.interface import Reader, Store

ITEMS = es.TableSpec("items", dim=4, optimizer=es.SGD(lr=1.0), num_chunks=8)
USERS = es.TableSpec("users", dim=2, optimizer=es.Adagrad(lr=0.5, eps=1e-6), num_chunks=8)
NOW_MS = time.time_ns() // 1_000_000
EDGE_IDS = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)


@pytest.fixture(params=sorted(STORE_FACTORIES))
def handle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreHandle]:
    with STORE_FACTORIES[request.param](tmp_path, [ITEMS, USERS]) as opened:
        yield opened


@pytest.fixture
def store(handle: StoreHandle) -> Store:
    return handle.store


def ones(num_rows: int, dim: int = 4) -> np.ndarray:
    return np.ones((num_rows, dim), np.float32)


def events(store: Reader, *ids: int) -> list[float]:
    """With SGD, lr 1 and gradient 1 a row is minus the number of its events."""
    numbers: list[float] = (-store.pull({"items": np.array(ids, np.uint64)})["items"][:, 0]).tolist()
    return numbers


def refused(error: type[Exception], call: Callable[..., Any], field: str = "", arguments: Sequence[Any] = ()) -> Any:
    with pytest.raises(error) as caught:
        call(*arguments)
    assert field in getattr(caught.value, "field", ""), caught.value
    return caught.value


# -- reading


def test_both_protocols_are_implemented(store: Store) -> None:
    assert isinstance(store, Store)
    assert isinstance(store, Reader)


def test_a_miss_reads_as_zeros_and_changes_nothing(store: Store) -> None:
    rows = store.pull({"items": EDGE_IDS, "users": EDGE_IDS[:2]})
    assert rows["items"].shape == (5, 4)
    assert rows["users"].shape == (2, 2)
    assert rows["items"].dtype == np.float32
    assert not rows["items"].any()
    assert not store.contains("items", EDGE_IDS).any()
    assert store.stats().tables["items"].rows == 0


def test_a_miss_reads_as_its_initial_value_where_the_table_says_so(store: Store) -> None:
    spec = es.TableSpec("warm", dim=3, optimizer=es.SGD(lr=1.0), init=es.Constant(0.25), on_miss="init", num_chunks=8)
    assert store.create_table(spec)
    assert (store.pull({"warm": EDGE_IDS})["warm"] == 0.25).all()
    store.push({"warm": (EDGE_IDS[:1], ones(1, 3))})
    np.testing.assert_array_equal(store.pull({"warm": EDGE_IDS[:2]})["warm"], [[-0.75] * 3, [0.25] * 3])


def test_a_seeded_initial_value_is_what_a_new_row_starts_from(store: Store) -> None:
    spec = es.TableSpec(
        "seeded", dim=8, optimizer=es.SGD(lr=1.0), init=es.Uniform(0.5, seed=7), on_miss="init", num_chunks=8
    )
    store.create_table(spec)
    ids = np.arange(100, dtype=np.uint64)
    initial = store.pull({"seeded": ids})["seeded"]
    assert (np.abs(initial) <= 0.5).all()
    assert initial.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.1)
    store.push({"seeded": (ids, ones(100, 8))})
    np.testing.assert_allclose(store.pull({"seeded": ids})["seeded"], initial - 1, rtol=1e-6)


def test_no_id_is_special_and_int64_is_the_same_64_bits(store: Store) -> None:
    store.push({"items": (EDGE_IDS, np.arange(20, dtype=np.float32).reshape(5, 4))})
    rows = store.pull({"items": EDGE_IDS.view(np.int64)})["items"]
    np.testing.assert_array_equal(rows, -np.arange(20, dtype=np.float32).reshape(5, 4))
    assert store.contains("items", [-1, -2, 0, 3]).tolist() == [True, False, True, False]
    assert store.stats().tables["items"].rows == 5


def test_pull_keeps_order_and_repeats(store: Store) -> None:
    store.push({"items": ([7, 8], [[1, 1, 1, 1], [2, 2, 2, 2.0]])})
    rows = store.pull({"items": [8, 9, 7, 8, 8]})["items"]
    assert rows[:, 0].tolist() == [-2, 0, -1, -2, -2]


def test_empty_pull_and_push_are_fine(store: Store) -> None:
    none = np.empty(0, np.uint64)
    assert store.pull({"items": none})["items"].shape == (0, 4)
    assert store.pull({}) == {}
    assert store.contains("items", []).shape == (0,)
    assert len(store.pull({"items": []}, meta=True)["items"].found) == 0
    store.push({"items": (none, np.empty((0, 4), np.float32))})
    store.push({})
    store.assign("items", [], [])
    assert store.delete("items", []) == 0


def test_meta_tells_what_is_known_of_a_row(store: Store) -> None:
    first, later = NOW_MS - 5_000_000, NOW_MS - 1_000_000
    store.push({"items": ([5, 5], ones(2))}, event_time_ms=first)
    store.push({"items": ([5], ones(1))}, event_time_ms=later)
    rows = store.pull({"items": [5, 6]}, meta=True)["items"]
    assert rows.found.tolist() == [True, False]
    assert rows.updates.tolist() == [2, 0]
    assert rows.first_seen_s.tolist() == [first // 1000, 0]
    assert rows.last_seen_s.tolist() == [later // 1000, 0]
    np.testing.assert_array_equal(rows.embeddings[:, 0], [-3, 0])
    assert (rows.found.dtype, rows.updates.dtype) == (np.dtype(bool), np.dtype(np.uint32))
    assert (rows.first_seen_s.dtype, rows.last_seen_s.dtype) == (np.dtype(np.int64), np.dtype(np.int64))


def test_event_times_per_id_and_the_batch_as_their_default(store: Store) -> None:
    times = np.array([NOW_MS - 9_000_000, NOW_MS - 8_000_000])
    store.push({"items": es.TablePush([1, 2], ones(2), event_times_ms=times)}, event_time_ms=NOW_MS)
    assert store.pull({"items": [1, 2]}, meta=True)["items"].last_seen_s.tolist() == (times // 1000).tolist()


def test_the_clock_of_a_chunk_comes_from_its_own_ids_alone(store: Store) -> None:
    num_chunks = store.tables()["items"].num_chunks
    timed, same, other = 1, None, None
    for key in range(2, 10_000):
        beside = chunk_of(key, num_chunks) == chunk_of(timed, num_chunks)
        same, other = (same or key, other) if beside else (same, other or key)
    assert same and other
    store.open_stream("s", 0)
    store.push({"items": ([timed], ones(1))}, origins=[es.Origin("s", 0, 1)], event_time_ms=NOW_MS)
    store.push({"items": ([], [])}, origins=[es.Origin("s", 1, 2)], event_time_ms=NOW_MS + 1000)
    store.push({"items": ([same, other], ones(2))}, origins=[es.Origin("s", 2, 3)])
    assert store.pull({"items": [same, other]}, meta=True)["items"].last_seen_s.tolist() == [NOW_MS // 1000, 0]


def test_an_event_from_the_future_is_seen_about_now(store: Store) -> None:
    store.push({"items": ([1], ones(1))}, event_time_ms=NOW_MS + 10**9)
    seen_s = store.pull({"items": [1]}, meta=True)["items"].last_seen_s[0]
    assert NOW_MS // 1000 <= seen_s < NOW_MS // 1000 + 600


def test_scan_gives_every_row_once(store: Store) -> None:
    ids = np.arange(1000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    store.push({"items": (ids, np.arange(4000, dtype=np.float32).reshape(1000, 4))}, event_time_ms=NOW_MS)
    pieces = list(store.scan("items"))
    scanned = np.concatenate([piece for piece, _ in pieces])
    order = np.argsort(scanned)
    np.testing.assert_array_equal(scanned[order], np.sort(ids))
    embeddings = np.concatenate([rows.embeddings for _, rows in pieces])
    np.testing.assert_array_equal(embeddings, store.pull({"items": scanned})["items"])
    assert all(rows.found.all() and (rows.updates == 1).all() for _, rows in pieces)
    assert all((rows.last_seen_s == NOW_MS // 1000).all() for _, rows in pieces)
    assert not list(store.scan("users"))


def test_tables_tells_every_spec(store: Store) -> None:
    assert store.tables() == {"items": ITEMS, "users": USERS}


def test_stats_count_rows_and_bytes(store: Store) -> None:
    store.push({"items": ([1, 2, 3], ones(3))})
    stats = store.stats()
    assert stats.tables["items"].rows == 3
    assert stats.tables["users"].rows == 0
    assert set(stats.tables) == {"items", "users"}
    assert stats.tables["items"].chunks == 8
    assert stats.uptime_s >= 0


# -- pushing


def test_duplicates_are_summed_into_one_update(store: Store) -> None:
    store.push({"users": ([3, 4, 3], [[1, 0], [0, 2], [2, 0.0]])})
    rows = store.pull({"users": [3, 4]}, meta=True)["users"]
    assert rows.updates.tolist() == [1, 1]
    # Adagrad of one gradient moves by lr * g / |g|: by 3 / 3 and not by 1 / 1 + 2 / sqrt(5).
    np.testing.assert_allclose(rows.embeddings, [[-0.5, 0], [0, -0.5]], atol=1e-5)


def test_counts_travel_beside_the_ids_and_change_no_gradient(store: Store) -> None:
    store.push({"items": es.TablePush([3, 4, 3], ones(3), counts=np.array([2, 1, 5], np.uint32))})
    rows = store.pull({"items": [3, 4]}, meta=True)["items"]
    assert rows.embeddings[:, 0].tolist() == [-2, -1]
    assert rows.updates.tolist() == [1, 1]


def test_a_push_has_a_learning_rate_of_its_own(store: Store) -> None:
    store.push({"items": es.TablePush([1], ones(1), lr=0.25)})
    store.push({"items": ([1], ones(1))})
    assert events(store, 1) == [1.25]


def test_every_optimizer_learns_from_every_initial_value_to_the_bit(store: Store) -> None:
    inits = [es.Zeros(), es.Constant(0.5), es.Uniform(0.5, 1), es.Normal(0.5, 2), es.TruncatedNormal(0.5, 3)]
    specs = [
        es.TableSpec(f"t{at}", dim=9, optimizer=optimizer, init=inits[at % 5], on_miss="init", num_chunks=8)
        for at, optimizer in enumerate(EVERY_OPTIMIZER)
    ]
    expected = {}
    for spec in specs:
        assert store.create_table(spec)
        expected[spec.name] = [initial_embedding(spec.init, int(key), 9) for key in EDGE_IDS]
    states = {spec.name: [initial_state(spec.optimizer, 9) for _ in EDGE_IDS] for spec in specs}
    grads = np.random.default_rng(3).normal(size=(6, len(EDGE_IDS), 9)).astype(np.float32)
    for step, lr in enumerate([None, None, 0.25, None, 0.0, None]):
        for spec in specs:
            rows = store.pull({spec.name: EDGE_IDS})[spec.name]
            np.testing.assert_array_equal(rows, expected[spec.name])
            for row, state, grad in zip(expected[spec.name], states[spec.name], grads[step], strict=True):
                learn(spec.optimizer, row, state, grad, spec.optimizer.lr if lr is None else lr, step + 1)
        store.push({spec.name: es.TablePush(EDGE_IDS, grads[step], lr=lr) for spec in specs})
    for spec in specs:
        np.testing.assert_array_equal(store.pull({spec.name: EDGE_IDS})[spec.name], expected[spec.name])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.float32])
def test_any_float_format_of_gradients_is_taken(store: Store, dtype: type) -> None:
    store.push({"items": ([1], np.full((1, 4), 0.5, dtype))})
    assert events(store, 1) == [0.5]


def bad_pushes() -> dict[str, tuple[Any, type[Exception], str]]:
    nan, infinite = ones(2), ones(2)
    nan[1, 2], infinite[0, 0] = np.nan, -np.inf
    invalid = es.InvalidArgumentError
    return {
        "dim": (([1, 2], np.ones((2, 5), np.float32)), invalid, "grads"),
        "rows": (([1, 2], ones(3)), invalid, "grads"),
        "nan": (([1, 2], nan), invalid, "grads"),
        "infinite": (([1, 2], infinite), invalid, "grads"),
        "overflow": (([1], np.full((1, 4), 1e300)), invalid, "grads"),
        "text": (([1], [["a", "b", "c", "d"]]), invalid, "grads"),
        "complex": (([1], np.ones((1, 4), complex)), invalid, "grads"),
        "float ids": ((np.array([1.0, 2.0]), ones(2)), invalid, "ids"),
        "ids of two dimensions": (([[1, 2]], ones(2)), invalid, "ids"),
        "id over 64 bits": (([2**64], ones(1)), invalid, "ids"),
        "not a pair": (([1],), invalid, "items"),
        "counts length": (es.TablePush([1, 2], ones(2), counts=[1]), invalid, "counts"),
        "time length": (es.TablePush([1, 2], ones(2), event_times_ms=[1]), invalid, "event_times_ms"),
        "negative time": (es.TablePush([1, 2], ones(2), event_times_ms=[1, -1]), invalid, "event_times_ms"),
        "nan lr": (es.TablePush([1], ones(1), lr=float("nan")), invalid, "lr"),
        "negative lr": (es.TablePush([1], ones(1), lr=-1.0), invalid, "lr"),
        "text lr": (es.TablePush([1], ones(1), lr="0.1"), invalid, "lr"),  # type: ignore[arg-type]
        "truth lr": (es.TablePush([1], ones(1), lr=True), invalid, "lr"),
    }


@pytest.mark.parametrize("case", bad_pushes())
def test_a_bad_push_names_its_field_and_touches_no_table(store: Store, case: str) -> None:
    push, error, field = bad_pushes()[case]
    store.open_stream("s", 0)
    good = ([1, 2], np.ones((2, 2), np.float32))
    refused(error, lambda: store.push({"users": good, "items": push}, origins=[es.Origin("s", 0, 5)]), field)
    refused(error, lambda: store.push({"items": push, "users": good}), field)
    assert store.stats().tables["users"].rows == 0
    assert store.stats().tables["items"].rows == 0
    assert store.watermarks()["s"].applied == 0


def test_a_bad_event_time_of_a_batch_is_refused(store: Store) -> None:
    def push_at(time: Any) -> None:
        store.push({"items": ([1], ones(1))}, event_time_ms=time)

    for bad in (-1, 2**63, 1.5):
        refused(es.InvalidArgumentError, push_at, "event_time_ms", [bad])
    assert store.stats().tables["items"].rows == 0


def test_an_unknown_table_is_refused_by_every_call(store: Store) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: store.pull({"items": [1], "nowhere": [1]}),
        lambda: store.pull({"nowhere": [1]}, meta=True),
        lambda: store.push({"items": ([1], ones(1)), "nowhere": ([1], ones(1))}),
        lambda: store.assign("nowhere", [1], ones(1)),
        lambda: store.delete("nowhere", [1]),
        lambda: store.contains("nowhere", [1]),
        lambda: list(store.scan("nowhere")),
        lambda: store.drop_table("nowhere"),
        lambda: store.sweep("nowhere"),
        lambda: store.alter_table(es.TableSpec("nowhere", dim=4)),
    ]
    for call in calls:
        assert refused(es.TableNotFoundError, call).table == "nowhere"
    assert store.stats().tables["items"].rows == 0


# -- assign and delete


def test_assign_writes_rows_as_they_are(store: Store) -> None:
    store.assign("items", [1, 2, 1], [[1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3.0]], event_time_ms=NOW_MS)
    rows = store.pull({"items": [1, 2]}, meta=True)["items"]
    assert rows.embeddings[:, 0].tolist() == [3, 2]
    assert rows.updates.tolist() == [0, 0]
    assert rows.last_seen_s.tolist() == [NOW_MS // 1000] * 2


def test_assign_keeps_optimizer_state_and_updates(store: Store) -> None:
    store.push({"users": ([1], [[3.0, 4.0]])})
    store.assign("users", [1], [[0.0, 0.0]])
    store.push({"users": ([1], [[3.0, 4.0]])})
    rows = store.pull({"users": [1]}, meta=True)["users"]
    np.testing.assert_allclose(rows.embeddings, [[-0.5 / np.sqrt(2)] * 2], rtol=1e-4)
    assert rows.updates.tolist() == [2]


def test_a_bad_assign_names_its_field_and_touches_nothing(store: Store) -> None:
    nan = ones(2)
    nan[1, 3] = np.nan
    for rows, field in ((nan, "rows"), (ones(3), "rows"), (np.ones((2, 3), np.float32), "rows"), ([["a"]], "rows")):
        refused(es.InvalidArgumentError, store.assign, field, ["items", [1, 2], rows])
    refused(es.InvalidArgumentError, lambda: store.assign("items", [1.5], ones(1)), "ids")
    refused(es.InvalidArgumentError, lambda: store.assign("items", [1], ones(1), event_time_ms=-1), "event_time_ms")
    assert store.stats().tables["items"].rows == 0


def test_delete_counts_what_was_there(store: Store) -> None:
    store.push({"items": ([1, 2, 3], ones(3))})
    assert store.delete("items", [1, 3, 3, 9]) == 2
    assert store.contains("items", [1, 2, 3]).tolist() == [False, True, False]
    store.push({"items": ([1], ones(1))})
    rows = store.pull({"items": [1]}, meta=True)["items"]
    assert (rows.embeddings[0, 0], rows.updates[0]) == (-1, 1)


# -- streams


def test_an_opened_stream_stands_at_its_first_position(store: Store) -> None:
    state = store.open_stream("kafka/c/t/0", 100)
    assert state == es.StreamState(applied=100, durable=100, watermarks=(100,), generation=1)
    assert store.watermarks() == {"kafka/c/t/0": state}
    assert store.stats().streams == {"kafka/c/t/0": state}


def test_opening_a_known_stream_moves_only_its_generation(store: Store) -> None:
    store.open_stream("s", 10)
    store.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 10, 20)])
    state = store.open_stream("s", 0)
    assert (state.applied, state.generation) == (20, 2)


def test_bad_streams_are_refused(store: Store) -> None:
    for name, position, field in (("", 0, "stream"), ("x" * 513, 0, "stream"), ("s", -1, "position")):
        refused(es.InvalidArgumentError, store.open_stream, field, [name, position])
    refused(es.InvalidArgumentError, lambda: store.open_stream("client/1", 0), "stream")
    for begin, end in ((-1, 0), (5, 4), (0, 2**63)):
        refused(es.InvalidArgumentError, es.Origin, "Origin", ["s", begin, end])
    assert store.watermarks() == {}


def test_pushes_of_a_stream_tile_it(store: Store) -> None:
    store.open_stream("s", 0)
    result = store.push({"items": ([1, 2], ones(2))}, origins=[es.Origin("s", 0, 3)])
    assert not result.repeated
    assert result.streams["s"].applied == 3
    result = store.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 3, 9)])
    assert result.streams["s"].watermarks == (9,)
    assert events(store, 1, 2) == [2, 1]


def test_a_repeat_is_recognised_and_changes_nothing(store: Store) -> None:
    store.open_stream("s", 0)
    first = [es.Origin("s", 0, 3)]
    store.push({"items": ([1], ones(1))}, origins=first)
    store.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 3, 4)])
    for origins in (first, [es.Origin("s", 1, 4)], [es.Origin("s", 3, 4)]):
        result = store.push({"items": ([1, 7], ones(2))}, origins=origins)
        assert result.repeated
        assert result.streams["s"].applied == 4
    assert events(store, 1, 7) == [2, 0]


@pytest.mark.parametrize(("begin", "end"), [(5, 6), (11, 12), (4, 11), (9, 11), (0, 20)])
def test_gaps_and_straddles_are_refused_whole(store: Store, begin: int, end: int) -> None:
    store.open_stream("s", 0)
    store.push({"items": ([1], ones(1)), "users": ([1], ones(1, 2))}, origins=[es.Origin("s", 0, 10)])
    origins = [es.Origin("s", begin, end)]
    if end <= 10:
        assert store.push({"items": ([1], ones(1))}, origins=origins).repeated
        return
    error = refused(es.GapError, lambda: store.push({"items": ([1], ones(1))}, origins=origins))
    assert error.watermarks == {"s": [10]}
    assert events(store, 1) == [1]
    assert store.watermarks()["s"].watermarks == (10,)


def test_an_empty_push_moves_the_watermark(store: Store) -> None:
    store.open_stream("s", 0)
    store.push({}, origins=[es.Origin("s", 0, 5)])
    store.push({"items": ([], np.empty((0, 4)))}, origins=[es.Origin("s", 5, 8)])
    assert store.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 8, 9)]).streams["s"].applied == 9


def test_an_empty_range_may_be_pushed_where_the_stream_stands(store: Store) -> None:
    store.open_stream("s", 0)
    store.open_stream("t", 7)
    origins = [es.Origin("s", 0, 5), es.Origin("t", 7, 7)]
    assert not store.push({"items": ([1], ones(1))}, origins=origins).repeated
    assert store.push({"items": ([1], ones(1))}, origins=origins).repeated
    assert events(store, 1) == [1]
    refused(es.GapError, lambda: store.push({}, origins=[es.Origin("t", 8, 8)]))


def test_origins_of_several_streams_count_together(store: Store) -> None:
    store.open_stream("a", 0)
    store.open_stream("b", 100)
    store.push({"items": ([1], ones(1))}, origins=[es.Origin("b", 100, 110), es.Origin("a", 0, 10)])
    states = store.watermarks()
    assert (states["a"].applied, states["b"].applied) == (10, 110)
    mixed = [es.Origin("a", 0, 10), es.Origin("b", 110, 120)]
    error = refused(es.GapError, lambda: store.push({"items": ([1], ones(1))}, origins=mixed))
    assert error.watermarks == {"a": [10], "b": [110]}
    assert store.push({}, origins=[es.Origin("a", 5, 10), es.Origin("b", 100, 105)]).repeated
    assert events(store, 1) == [1]


def test_origins_that_cannot_belong_together_are_refused(store: Store) -> None:
    store.open_stream("s", 0)
    twice = [es.Origin("s", 0, 1), es.Origin("s", 1, 2)]
    refused(es.InvalidArgumentError, lambda: store.push({"items": ([1], ones(1))}, origins=twice), "origins")
    assert events(store, 1) == [0]


def test_an_unknown_stream_is_refused(store: Store) -> None:
    store.open_stream("s", 0)
    origins = [es.Origin("s", 0, 1), es.Origin("t", 0, 1)]
    error = refused(es.UnknownStreamError, lambda: store.push({"items": ([1], ones(1))}, origins=origins))
    assert error.stream == "t"
    assert events(store, 1) == [0]
    assert store.watermarks()["s"].applied == 0


def test_a_replaced_writer_can_do_nothing_more(handle: StoreHandle) -> None:
    old, new = handle.writer(), handle.writer()
    old.open_stream("s", 0)
    old.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 0, 1)])
    assert new.open_stream("s", 0).generation == 2
    error = refused(
        es.StaleGenerationError, lambda: old.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 1, 2)])
    )
    assert (error.stream, error.generation, error.current) == ("s", 1, 2)
    refused(es.StaleGenerationError, lambda: old.push({}, origins=[es.Origin("s", 0, 1)]))
    refused(es.StaleGenerationError, lambda: old.put_dense("model", {"w": np.ones(2)}, {"s": 5}))
    new.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 1, 2)])
    new.put_dense("model", {"w": np.zeros(2)}, {"s": 2})
    assert events(new, 1) == [2]
    assert not new.get_dense("model").tensors["w"].any()


def test_durable_follows_with_a_checkpoint(store: Store) -> None:
    store.open_stream("s", 5)
    store.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 5, 9)])
    assert (store.watermarks()["s"].applied, store.watermarks()["s"].durable) == (9, 5)
    before = store.stats().last_checkpoint_s
    store.checkpoint()
    assert (store.watermarks()["s"].applied, store.watermarks()["s"].durable) == (9, 9)
    assert store.stats().last_checkpoint_s >= max(before, NOW_MS // 1000)
    result = store.push({}, origins=[es.Origin("s", 9, 12)])
    assert (result.streams["s"].applied, result.streams["s"].durable) == (12, 9)


# -- tables


def test_texts_as_ids_are_told_how_to_become_ids(store: Store) -> None:
    error = refused(es.InvalidArgumentError, lambda: store.pull({"items": ["abc"]}))
    assert "embedstore.hash_ids" in str(error)


def test_create_is_idempotent_and_names_a_difference(store: Store) -> None:
    assert not store.create_table(ITEMS)
    other = es.TableSpec("items", dim=5, optimizer=es.SGD(lr=1.0), num_chunks=8)
    error = refused(es.TableExistsError, lambda: store.create_table(other))
    assert (error.table, error.field) == ("items", "dim")
    assert str(error) == "table 'items' exists with dim 4, not 5"


def test_alter_changes_the_learning_rate_and_nothing_else(store: Store) -> None:
    store.push({"items": ([1], ones(1))})
    store.alter_table(es.TableSpec("items", dim=4, optimizer=es.SGD(lr=0.25), num_chunks=8))
    store.push({"items": ([1], ones(1))})
    assert events(store, 1) == [1.25]
    assert store.tables()["items"].optimizer == es.SGD(lr=0.25)
    for other, field in (
        (es.TableSpec("items", dim=5, optimizer=es.SGD(lr=1.0), num_chunks=8), "dim"),
        (es.TableSpec("items", dim=4, optimizer=es.Adam(lr=1.0), num_chunks=8), "optimizer"),
        (es.TableSpec("items", dim=4, optimizer=es.SGD(lr=1.0), num_chunks=16), "num_chunks"),
        (es.TableSpec("items", dim=4, optimizer=es.SGD(lr=1.0), num_chunks=8, on_miss="init"), "on_miss"),
        (es.TableSpec("items", dim=4, optimizer=es.SGD(lr=1.0), num_chunks=8, admission=es.MinCount(2)), "admission"),
    ):
        refused(es.InvalidArgumentError, store.alter_table, field, [other])
    assert events(store, 1) == [1.25]


def test_a_table_made_in_mid_stream_begins_at_the_highest_watermarks(store: Store) -> None:
    store.open_stream("s", 0)
    store.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 0, 50)])
    store.create_table(es.TableSpec("late", dim=4, optimizer=es.SGD(lr=1.0), num_chunks=8))
    assert store.watermarks()["s"].watermarks == (50,)
    store.push({"late": ([1], ones(1))}, origins=[es.Origin("s", 50, 60)])
    assert store.watermarks()["s"].watermarks == (60,)
    assert store.pull({"late": [1]})["late"][0, 0] == -1


def test_a_dropped_table_is_gone_with_its_rows(store: Store) -> None:
    store.push({"items": ([1], ones(1))})
    store.drop_table("items")
    refused(es.TableNotFoundError, lambda: store.pull({"items": [1]}))
    assert set(store.tables()) == {"users"}
    assert store.create_table(ITEMS)
    assert events(store, 1) == [0]


def test_a_store_without_tables_still_knows_its_streams(store: Store) -> None:
    store.drop_table("items")
    store.drop_table("users")
    store.open_stream("s", 0)
    store.push({}, origins=[es.Origin("s", 0, 5)])
    assert store.push({}, origins=[es.Origin("s", 0, 5)]).repeated
    refused(es.GapError, lambda: store.push({}, origins=[es.Origin("s", 7, 8)]))
    store.checkpoint()
    assert (store.watermarks()["s"].applied, store.watermarks()["s"].durable) == (5, 5)
    store.create_table(ITEMS)
    store.push({"items": ([1], ones(1))}, origins=[es.Origin("s", 5, 6)])
    assert store.watermarks()["s"].watermarks == (6,)


# -- dense sets


def test_a_dense_set_is_published_whole(store: Store) -> None:
    store.open_stream("s", 0)
    tensors: dict[str, np.ndarray] = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.ones(3, np.float16),
        "steps": np.array(7, np.int64),
        "mask": np.array([True, False]),
        "empty": np.empty((0, 4), np.float64),
    }
    assert store.put_dense("ranker", tensors, {"s": 10}) == 1
    published = store.get_dense("ranker")
    assert published.position == {"s": 10}
    assert published.version == 1
    assert set(published.tensors) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(published.tensors[name], tensor)
        assert published.tensors[name].dtype == tensor.dtype
        assert published.tensors[name].shape == tensor.shape
    tensors["w"][0, 0] = 99
    assert store.get_dense("ranker").tensors["w"][0, 0] == 0


def test_a_dense_set_never_goes_back(store: Store) -> None:
    store.open_stream("a", 0)
    store.open_stream("b", 0)
    store.put_dense("model", {"w": np.ones(2)}, {"a": 10, "b": 5})
    error = refused(es.StaleDenseSetError, lambda: store.put_dense("model", {"w": np.zeros(2)}, {"a": 11, "b": 4}))
    assert (error.dense_set, error.stream, error.position, error.published) == ("model", "b", 4, 5)
    assert store.get_dense("model").tensors["w"].all()
    assert store.put_dense("model", {"v": np.zeros(1)}, {"a": 10, "b": 5}) == 2
    assert set(store.get_dense("model").tensors) == {"v"}
    assert store.put_dense("other", {"w": np.ones(2)}, {"a": 0}) == 1


def test_bad_dense_sets_are_refused(store: Store) -> None:
    refused(es.DenseSetNotFoundError, lambda: store.get_dense("model"))
    refused(es.UnknownStreamError, lambda: store.put_dense("model", {"w": np.ones(2)}, {"s": 1}))
    refused(es.InvalidArgumentError, lambda: store.put_dense("", {"w": np.ones(2)}, {}), "dense_set")
    refused(es.InvalidArgumentError, lambda: store.put_dense("model", {"w": np.array(["a"])}, {}), "w")
    store.open_stream("s", 0)
    refused(es.InvalidArgumentError, lambda: store.put_dense("model", {"w": np.ones(2)}, {"s": -1}), "position")
    refused(es.DenseSetNotFoundError, lambda: store.get_dense("model"))


# -- closing


def test_a_closed_store_refuses_everything(handle: StoreHandle) -> None:
    store = handle.store
    store.open_stream("s", 0)
    store.close()
    store.close()
    calls: list[Callable[[], Any]] = [
        lambda: store.pull({"items": [1]}),
        lambda: store.contains("items", [1]),
        lambda: list(store.scan("items")),
        lambda: store.get_dense("model"),
        store.tables,
        store.stats,
        lambda: store.push({"items": ([1], ones(1))}),
        lambda: store.push({}, origins=[es.Origin("s", 0, 1)]),
        lambda: store.assign("items", [1], ones(1)),
        lambda: store.delete("items", [1]),
        lambda: store.put_dense("model", {}, {}),
        lambda: store.open_stream("s", 0),
        store.watermarks,
        store.checkpoint,
        lambda: store.create_table(ITEMS),
        lambda: store.alter_table(ITEMS),
        lambda: store.drop_table("items"),
        store.sweep,
    ]
    for call in calls:
        refused(es.ClosedError, call)
