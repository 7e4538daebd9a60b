"""Laws of tables that keep their rows packed: what is read is what was written, within the bounds, however it came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedstore.errors import InvalidArgumentError
from embedstore.row_formats import NATIVE_ROW_TYPES, RowFormat
from embedstore.spec import SGD, TableSpec, Uniform
from embedstore.table import Table

FORMATS: tuple[RowFormat, ...] = ("fp16", "int8", "int4")
ERRORS = {"fp16": 2**-11, "int8": 0.0046, "int4": 0.079}
"""Relative L2 error of Gaussian rows of 64."""
BYTES = {"fp32": 256, "fp16": 128, "int8": 72, "int4": 40}
"""Of an embedding of 64."""
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def packed(rows: RowFormat, dim: int, **fields: Any) -> Table:
    spec = TableSpec("t", dim, optimizer=SGD(1.0), num_chunks=4, **fields)
    return Table(spec, embeddings_only=True, rows=rows)


def trained(rows: np.ndarray) -> Table:
    """A leader's table of these rows, float32 [n, dim], under the ids 0 ... n - 1."""
    table = Table(TableSpec("t", rows.shape[1], optimizer=SGD(1.0), num_chunks=4))
    table.assign(np.arange(len(rows)), rows, now_ms=1000, event_time_ms=1000)
    return table


def follow(source: Table, target: Table) -> Table:
    for chunk in source.chunks:
        target.apply(source.delta(chunk, embeddings_only=True))
    return target


def gaussian(num_rows: int, dim: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_rows, dim), dtype=np.float32)


@pytest.mark.parametrize("rows", FORMATS)
def test_a_follower_is_as_close_as_its_format_promises(rows: RowFormat) -> None:
    values = gaussian(4000, 64)
    table = follow(trained(values), packed(rows, 64))
    read = table.pull(np.arange(4000))
    error = np.linalg.norm(read - values) / np.linalg.norm(values)
    print(f"{rows}: {error:.4%}")
    assert 0 < error <= ERRORS[rows]
    assert np.array_equal(table.pull(np.arange(4000), dtype=np.float16), read.astype(np.float16))
    assert np.array_equal(table.pull_rows(np.arange(4000)).embeddings, read)
    for chunk in table.chunks:
        ids, scanned = table.scan_chunk(chunk)
        assert np.array_equal(scanned.embeddings, read[ids.astype(int)])


def test_a_row_takes_the_bytes_of_its_format() -> None:
    source = trained(gaussian(20_000, 64))
    formats: tuple[RowFormat, ...] = ("fp32", *FORMATS)
    taken = {rows: follow(source, packed(rows, 64)).stats().memory_bytes / 20_000 for rows in formats}
    print(taken)
    for rows in formats:
        assert BYTES[rows] + 20 <= taken[rows]
        assert taken["fp32"] - taken[rows] == pytest.approx(BYTES["fp32"] - BYTES[rows], rel=0.1)


@given(
    values=st.integers(1, 70).flatmap(
        lambda dim: hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(dim)), elements=FLOATS)
    ),
    rows=st.sampled_from(FORMATS),
)
@settings(max_examples=300, deadline=None)
def test_every_link_of_a_chain_reads_the_same_bits(values: np.ndarray, rows: RowFormat) -> None:
    ids = np.arange(len(values))
    first = follow(trained(values), packed(rows, values.shape[1]))
    second = follow(first, packed(rows, values.shape[1]))
    full = follow(second, packed("fp32", values.shape[1]))
    read = first.pull(ids)
    assert np.all(np.abs(read) <= 65504)
    assert second.pull(ids).tobytes() == full.pull(ids).tobytes() == read.tobytes()


@given(values=hnp.arrays(np.float32, (3, 40), elements=FLOATS), rows=st.sampled_from(FORMATS))
@settings(max_examples=100, deadline=None)
def test_an_assigned_row_reads_as_one_that_came_in_a_delta(values: np.ndarray, rows: RowFormat) -> None:
    table = packed(rows, 40)
    table.assign(np.arange(3), values, now_ms=1000)
    assert table.pull(np.arange(3)).tobytes() == follow(trained(values), packed(rows, 40)).pull(np.arange(3)).tobytes()


@pytest.mark.parametrize("rows", FORMATS)
def test_changes_and_removals_arrive_in_a_packed_table(rows: RowFormat) -> None:
    source, table = trained(gaussian(300, 33)), packed(rows, 33)
    follow(source, table)
    source.assign(np.arange(100, 400), gaussian(300, 33, seed=2), now_ms=2000)
    source.delete(np.arange(50))
    states = table.chunk_states()
    for chunk in source.chunks:
        delta = source.delta(chunk, int(states.incarnations[chunk]), int(states.versions[chunk]), embeddings_only=True)
        table.apply(delta)
    ids = np.arange(50, 400)
    assert len(table) == 350 and not table.contains(np.arange(50)).any()
    assert (
        table.pull(ids).tobytes() == follow(trained(source.pull(np.arange(400))), packed(rows, 33)).pull(ids).tobytes()
    )
    assert table.pull_rows(ids).last_seen_s.tolist() == source.pull_rows(ids).last_seen_s.tolist()


@pytest.mark.parametrize("rows", FORMATS)
def test_an_id_without_a_row_reads_as_it_does_anywhere(rows: RowFormat) -> None:
    ids = np.arange(5)
    assert not packed(rows, 7).pull(ids).any()
    fields: dict[str, Any] = {"init": Uniform(0.5, seed=3), "on_miss": "init"}
    expected = packed("fp32", 7, **fields).pull(ids)
    assert expected.all()
    assert np.array_equal(packed(rows, 7, **fields).pull(ids), expected)
    assert np.array_equal(packed(rows, 7, **fields).pull(ids, dtype=np.float16), expected.astype(np.float16))


def test_what_cannot_be_packed_is_refused_by_name() -> None:
    spec = TableSpec("t", 4)
    for wrong in ("int2", "INT8", "", 8, b"int8"):
        with pytest.raises(InvalidArgumentError, match="rows: must be fp32, fp16, int8 or int4"):
            Table(spec, embeddings_only=True, rows=wrong)  # type: ignore[arg-type]
    for rows in FORMATS:
        with pytest.raises(InvalidArgumentError, match="rows: must be fp32 beside optimizer state"):
            Table(spec, rows=rows)
        table = packed(rows, 4)
        assert table.row_format == rows
        with pytest.raises(InvalidArgumentError, match="embeddings only"):
            table.push([1], np.ones((1, 4)), now_ms=0)
        with pytest.raises(InvalidArgumentError, match="finite"):
            table.assign([1], np.full((1, 4), np.nan), now_ms=0)
    assert set(NATIVE_ROW_TYPES) == {"fp32", *FORMATS}
