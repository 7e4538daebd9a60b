"""Hostile bytes: whatever is applied, with a checksum that is right, is refused with a typed error or taken whole.

A mutation is described by field or column, from the format's document, so that it reaches behind the checksum and the
sizes. The native tests do the same at random places and many times as often, under sanitizers.
"""

from __future__ import annotations

import struct
from typing import Any

import crc32c
import hypothesis.strategies as st
import numpy as np
from delta_reader import HEADER, read_delta
from hypothesis import example, given, settings

from embedstore.errors import CorruptDeltaError, DeltaGapError, WrongShardError
from embedstore.spec import Adagrad, MinCount, TableSpec
from embedstore.table import Table

SPEC = TableSpec("t", 3, optimizer=Adagrad(0.1), num_chunks=2, admission=MinCount(3, memory_bytes=4096))
REFUSALS = (CorruptDeltaError, DeltaGapError, WrongShardError)
HOSTILE = [
    0,
    1,
    2,
    3,
    63,
    64,
    255,
    512,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**48,
    2**56,
    2**60,
    2**61 + 1,
    2**63,
    2**64 - 1,
]
FIELD_BYTES = [{"s": 4, "H": 2, "I": 4, "Q": 8, "q": 8}[code] for code in HEADER.format if code.isalpha()]
NUM_FIELDS = len(FIELD_BYTES)


def history() -> tuple[list[bytes], list[bytes]]:
    """Deltas that bring a table to where the fuzz begins, and sound ones from there: continuations and full chunks."""
    table = Table(SPEC)
    rng = np.random.default_rng(4)
    table.open_stream("file/abc/0", 5)
    table.push(np.arange(40), rng.normal(size=(40, 3)), now_ms=10**6, counts=np.full(40, 3), event_times_ms=10**6)
    table.push(np.arange(100, 160), rng.normal(size=(60, 3)), now_ms=10**6)
    base = [table.delta(chunk) for chunk in table.chunks]
    stands = table.chunk_states()
    table.push(np.arange(20, 60), rng.normal(size=(40, 3)), now_ms=10**7, counts=np.full(40, 3), event_times_ms=10**7)
    table.push(np.arange(140, 180), rng.normal(size=(40, 3)), now_ms=10**7)
    table.delete(np.arange(10))
    cursors = list(zip(stands.incarnations.tolist(), stands.versions.tolist(), strict=True))
    sound = [table.delta(chunk, *cursors[chunk]) for chunk in table.chunks]
    table.branch()
    table.push(np.arange(15, 30), rng.normal(size=(15, 3)), now_ms=10**7)
    sound += [table.delta(chunk, *cursors[chunk]) for chunk in table.chunks]
    return base, sound + [table.delta(chunk) for chunk in table.chunks]


BASE, SOUND = history()
assert all(read_delta(delta).sketch_blocks for delta in BASE + SOUND[:2] + SOUND[-2:])


def table_at_base(*, embeddings_only: bool = False) -> Table:
    table = Table(SPEC, embeddings_only=embeddings_only)
    for delta in BASE:
        table.apply(delta)
    return table


def digest(table: Table) -> list[bytes]:
    return [table.delta(chunk) for chunk in table.chunks]


def with_checksum(body: bytes) -> bytes:
    return body + struct.pack("<I", crc32c.crc32c(body))


def set_field(body: bytes, number: int, value: int) -> bytes:
    """The body with another value in a field of its header, cut to the field's size."""
    size = FIELD_BYTES[number]
    raw = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    at = sum(FIELD_BYTES[:number])
    return body[:at] + raw + body[at + size :]


mutations = st.one_of(
    st.tuples(st.just("field"), st.integers(0, NUM_FIELDS - 1), st.sampled_from(HOSTILE) | st.integers(0, 2**64 - 1)),
    st.tuples(st.just("nudge"), st.integers(0, NUM_FIELDS - 1), st.integers(-3, 3)),
    st.tuples(st.just("bytes"), st.integers(0, 10**6), st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("word"), st.integers(0, 10**6), st.sampled_from(HOSTILE)),
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.integers(1, 300)),
    st.tuples(st.just("insert"), st.integers(0, 10**6), st.integers(1, 300)),
    st.tuples(st.just("swap"), st.integers(0, 10**6), st.integers(0, 10**6)),
    st.tuples(st.just("splice"), st.integers(0, 10**6), st.integers(0, len(SOUND) - 1)),
    st.tuples(st.just("head of"), st.just(0), st.integers(0, len(SOUND) - 1)),
)


def mutated(body: bytes, mutation: tuple[str, int, Any]) -> bytes:
    kind, where, what = mutation
    at = where % max(1, len(body))
    match kind:
        case "field" if len(body) >= HEADER.size:
            return set_field(body, where, what)
        case "nudge" if len(body) >= HEADER.size:
            value = HEADER.unpack_from(body)[where]
            return set_field(body, where, (value if isinstance(value, int) else 0) + what)
        case "bytes":
            return b"".join((body[:at], what, body[at + len(what) :]))
        case "word":
            at -= at % 4
            return body[:at] + struct.pack("<Q", what) + body[at + 8 :]
        case "cut":
            return b"".join((body[:at], body[at + what :]))
        case "insert":
            return b"".join((body[:at], bytes(what), body[at:]))
        case "swap":
            other = what % max(1, len(body))
            low, high, size = min(at, other), max(at, other), 8
            if high + size > len(body) or low + size > high:
                return body
            parts = body[:low], body[low : low + size], body[low + size : high], body[high : high + size]
            return parts[0] + parts[3] + parts[2] + parts[1] + body[high + size :]
        case "splice":
            return b"".join((body[:at], SOUND[what][at:-4]))
        case "head of":
            return b"".join((SOUND[what][: HEADER.size], body[HEADER.size :]))
    return body


@given(
    sound=st.sampled_from(SOUND),
    changes=st.lists(mutations, min_size=1, max_size=4),
    right_size=st.booleans(),
    embeddings_only=st.booleans(),
)
@example(sound=SOUND[0], changes=[("field", 15, 2**60)], right_size=False, embeddings_only=False)
@example(sound=SOUND[0], changes=[("field", 16, 2**60)], right_size=True, embeddings_only=False)
@example(sound=SOUND[-1], changes=[("word", 3104, 0)], right_size=False, embeddings_only=True)
@settings(max_examples=1500, deadline=None)
def test_hostile_bytes_are_refused_or_taken_whole(
    sound: bytes, changes: list[tuple[str, int, Any]], right_size: bool, embeddings_only: bool
) -> None:
    body = sound[:-4]
    for change in changes:
        body = mutated(body, change)
    if right_size and len(body) >= HEADER.size:
        body = set_field(body, NUM_FIELDS - 1, len(body) + 4)
    delta = with_checksum(body)
    table = table_at_base(embeddings_only=embeddings_only)
    before = digest(table)
    try:
        chunk, incarnation, version = table.apply(delta)
    except REFUSALS:
        assert digest(table) == before
        return
    stands = table.chunk_states()
    assert (int(stands.incarnations[chunk]), int(stands.versions[chunk])) == (incarnation, version)
    read = read_delta(delta, sketch_dropped=embeddings_only)
    now = read_delta(table.delta(chunk))
    assert len(np.unique(now.ids)) == len(now.ids)
    ids, _ = table.scan_chunk(chunk)
    assert table.contains(ids).all()
    if (incarnation, version) == (read.incarnation, read.to_version) and read.from_version == 0:
        assert sorted(now.ids.tolist()) == sorted(read.ids.tolist()) or digest(table) == before
    copy = Table(SPEC, embeddings_only=embeddings_only)
    copy.apply(table.delta(chunk))
    assert np.array_equal(np.sort(copy.scan_chunk(chunk)[0]), np.sort(ids))


@given(order=st.permutations(range(len(SOUND))), again=st.lists(st.integers(0, len(SOUND) - 1), max_size=4))
@settings(max_examples=100, deadline=None)
def test_sound_deltas_in_any_order_and_repeated_end_alike(order: list[int], again: list[int]) -> None:
    table = table_at_base()
    for number in [*order, *again, *range(len(SOUND))]:
        before = digest(table)
        try:
            table.apply(SOUND[number])
        except DeltaGapError:
            assert digest(table) == before
    final = Table(SPEC)
    for delta in SOUND[-2:]:
        final.apply(delta)
    for chunk in table.chunks:
        (ids, rows), (other_ids, other_rows) = table.scan_chunk(chunk), final.scan_chunk(chunk)
        order_a, order_b = np.argsort(ids), np.argsort(other_ids)
        assert np.array_equal(ids[order_a], other_ids[order_b])
        assert np.array_equal(rows.embeddings[order_a], other_rows.embeddings[order_b])
