"""Rows of float16 are the same from every store: the model, the embedded store and the remote one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from half_rows import bits, check_halves, rounded_rows
from stores import STORE_FACTORIES

import embedstore as es
from embedstore.interface import Store

DIM = 5
ITEMS = es.TableSpec("items", DIM, optimizer=es.SGD(lr=1.0), num_chunks=8)
WARM = es.TableSpec("warm", 9, optimizer=es.SGD(lr=1.0), init=es.Uniform(0.5, seed=3), on_miss="init", num_chunks=8)
HUGE = es.TableSpec("huge", 2, optimizer=es.SGD(lr=1.0), init=es.Constant(-1e6), on_miss="init", num_chunks=8)
EDGE_IDS = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
IDS = np.concatenate([np.arange(2, 300, dtype=np.uint64), EDGE_IDS])
NOTHING = np.empty(0, np.uint64)
OTHER_DTYPES: list[Any] = [np.float64, "float64", float, int, ">f2", ">f4", None, "half a float", "f2,f4", "f2,,", 2]


@pytest.fixture(params=sorted(STORE_FACTORIES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with STORE_FACTORIES[request.param](tmp_path, [ITEMS, WARM, HUGE]) as opened:
        yield opened.store


def any_floats(num_rows: int, dim: int) -> np.ndarray:
    """Finite float32 of all magnitudes."""
    pattern = np.random.default_rng(2).integers(0, 2**32, num_rows * dim, np.uint32)
    rows = pattern.view(np.float32).reshape(num_rows, dim)
    return np.where(np.isfinite(rows), rows, np.float32(1.0))


def test_halves_are_rounded_to_the_nearest_and_ties_to_even(store: Store) -> None:
    rows, halves = rounded_rows(DIM)
    ids = IDS[-len(rows) :]
    store.assign("items", ids, rows)
    assert bits(store.pull({"items": ids}, dtype=np.float16)["items"]) == bits(halves)
    assert bits(store.pull({"items": ids}, dtype=np.float16, meta=True)["items"].embeddings) == bits(halves)
    check_halves(store, {"items": ids})


def test_halves_of_every_number_with_and_without_meta(store: Store) -> None:
    present = IDS[::2]
    store.assign("items", present, any_floats(len(present), DIM))
    store.push({"warm": (present, any_floats(len(present), 9) % 3)}, event_time_ms=1_700_000_000_000)
    few_repeats = np.concatenate([IDS, EDGE_IDS])
    for wanted in (IDS, IDS[::-1], few_repeats, np.repeat(EDGE_IDS, 5), EDGE_IDS[:1], np.repeat(EDGE_IDS[1:2], 9)):
        check_halves(store, {"items": wanted})
        check_halves(store, {"items": wanted, "warm": wanted[:50], "huge": NOTHING})
    other_ids: list[Any] = [EDGE_IDS.view(np.int64), [3, 2, 3], torch.arange(40)]
    for other in other_ids:
        check_halves(store, {"items": other})


def test_ids_without_a_row_read_as_their_initial_value_in_halves(store: Store) -> None:
    check_halves(store, {"items": IDS, "warm": IDS, "huge": np.repeat(IDS, 2)})
    assert store.pull({"warm": IDS}, dtype=np.float16)["warm"].any()
    assert (store.pull({"huge": EDGE_IDS}, dtype=np.float16)["huge"] == -np.inf).all()
    assert not store.pull({"items": IDS}, dtype=np.float16)["items"].any()
    assert store.stats().tables["warm"].rows == 0


def test_no_ids_give_no_rows_of_the_dtype(store: Store) -> None:
    assert store.pull({}, dtype=np.float16) == {}
    nothing: list[Any] = [NOTHING, []]
    for none in nothing:
        check_halves(store, {"items": none, "warm": none})
        assert store.pull({"warm": none}, dtype=np.float16)["warm"].shape == (0, 9)


def test_a_dtype_is_read_as_numpy_reads_it(store: Store) -> None:
    store.assign("items", IDS, any_floats(len(IDS), DIM))
    for kind in (np.float16, np.float32):
        expected = store.pull({"items": IDS}, dtype=kind)["items"]
        assert expected.dtype == kind
        for dtype in (kind.__name__, np.dtype(kind), np.dtype(kind).str):
            assert bits(store.pull({"items": IDS}, dtype=dtype)["items"]) == bits(expected)


def test_any_other_dtype_is_refused_by_name(store: Store) -> None:
    every_tables: list[dict[str, Any]] = [{}, {"items": IDS}, {"items": NOTHING}, {"items": IDS, "warm": IDS}]
    for dtype in [*OTHER_DTYPES, torch.float16]:
        for tables in every_tables:
            for meta in (False, True):
                with pytest.raises(es.InvalidArgumentError, match="float32 or float16") as caught:
                    store.pull(tables, dtype=dtype, meta=meta)
                assert caught.value.field == "dtype"
