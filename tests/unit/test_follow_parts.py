"""Parts of large values, cursors as bytes, and who the leaders are: the pure pieces of following."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import InvalidArgumentError
from embedstore.server.members import Leaders, choose
from embedstore.server.parts import Assembler, Cursors, from_bytes, split, to_bytes
from embedstore.v1 import admin_pb2, sync_pb2

VALUES = st.dictionaries(st.integers(0, 5), st.binary(max_size=40), min_size=1)


@given(VALUES, st.integers(1, 9))
def test_values_come_out_of_their_parts_as_they_went_in(values: dict[int, bytes], part_bytes: int) -> None:
    assembler: Assembler[int] = Assembler()
    out = {}
    for key, value in values.items():
        for offset, data in split(value, part_bytes):
            assert len(data) <= part_bytes
            whole = assembler.add(key, offset, len(value), data)
            if whole is not None:
                out[key] = whole
    assert out == values
    assert not assembler.lost


@given(VALUES, st.integers(1, 9), st.randoms(use_true_random=False))
def test_lost_repeated_and_reordered_parts_never_make_a_wrong_value(
    values: dict[int, bytes], part_bytes: int, rng: random.Random
) -> None:
    parts = [
        (key, offset, len(value), data) for key, value in values.items() for offset, data in split(value, part_bytes)
    ]
    parts += rng.sample(parts, rng.randint(0, len(parts)))
    rng.shuffle(parts)
    parts = parts[: rng.randint(0, len(parts))]
    assembler: Assembler[int] = Assembler()
    out = {}
    for part in parts:
        whole = assembler.add(*part)
        if whole is not None:
            assert whole == values[part[0]]
            out[part[0]] = whole
    unfinished = {key for key, *_ in parts} - set(out) - set(assembler.lost)
    assert len(unfinished) <= 1, "only the value whose parts may still come is neither whole nor asked for again"


@given(st.binary(min_size=2, max_size=40), st.integers(1, 9))
def test_every_part_sent_twice_in_a_row_is_harmless(value: bytes, part_bytes: int) -> None:
    assembler: Assembler[str] = Assembler()
    whole = []
    for offset, data in split(value, part_bytes):
        whole += [each for _ in range(2) if (each := assembler.add("a", offset, len(value), data)) is not None]
    assert whole[0] == value
    assert all(each == value for each in whole)


def test_a_value_over_the_limit_is_refused_before_anything_is_kept() -> None:
    assembler: Assembler[str] = Assembler(value_bytes_max=8)
    assert assembler.add("a", 0, 9, b"12345678") is None
    assert assembler.lost == ["a"]


def test_parts_that_make_no_sense_are_lost_not_fatal() -> None:
    for offset, length, data in ((4, 3, b"x"), (0, 1, b"xy"), (0, 2, b""), (2**63, 2**64 - 1, b"x")):
        assembler: Assembler[str] = Assembler()
        assert assembler.add("a", offset, length, data) is None
        assert assembler.lost == ["a"]


def test_cursors_survive_the_wire() -> None:
    cursors = Cursors(np.array([0, 7], np.uint32), np.array([2**64 - 1, 1], np.uint64), np.array([5, 2**63], np.uint64))
    again = Cursors.from_proto(cursors.to_proto("items"))
    for name in ("chunks", "incarnations", "versions"):
        np.testing.assert_array_equal(getattr(again, name), getattr(cursors, name))


@pytest.mark.parametrize("field", ["chunks", "incarnations", "versions"])
def test_cursors_of_the_wrong_length_name_the_field(field: str) -> None:
    message = Cursors.at_zero([1, 2]).to_proto("items")
    setattr(message, field, getattr(message, field) + b"x")
    with pytest.raises(InvalidArgumentError, match=f"TableCursors.{field}"):
        Cursors.from_proto(message)


def test_one_column_longer_than_the_others_is_refused() -> None:
    message = sync_pb2.TableCursors(table="items", chunks=bytes(8), incarnations=bytes(16), versions=bytes(24))
    with pytest.raises(InvalidArgumentError, match=r"TableCursors\.versions"):
        Cursors.from_proto(message)


def test_numbers_travel_little_endian() -> None:
    assert to_bytes(np.array([1, 258]), "<u4") == b"\x01\0\0\0\x02\x01\0\0"
    np.testing.assert_array_equal(from_bytes("x", b"\x02\x01\0\0", "<u4"), [258])


def answer(
    shard: int, num_shards: int, *addresses: str, epoch: int = 1, follower: bool = False
) -> admin_pb2.TopologyResponse:
    record = admin_pb2.TopologyRecord(epoch=epoch, num_shards=num_shards, addresses=addresses)
    return admin_pb2.TopologyResponse(topology=record, shard=shard, ready=True, follower=follower)


def test_one_member_is_enough_to_know_all() -> None:
    leaders = choose(Leaders(), {"a:1": answer(0, 2, "a:1", "b:1")})
    assert leaders == Leaders(1, 2, {0: "a:1", 1: "b:1"})
    assert leaders.complete


def test_members_that_know_no_addresses_are_known_by_what_they_answer() -> None:
    leaders = choose(Leaders(), {"b:1": answer(1, 2)})
    assert leaders == Leaders(1, 2, {1: "b:1"})
    assert not leaders.complete
    assert choose(leaders, {"a:1": answer(0, 2)}) == Leaders(1, 2, {0: "a:1", 1: "b:1"})


def test_a_member_that_moved_is_found_at_its_new_place() -> None:
    known = Leaders(1, 2, {0: "a:1", 1: "b:1"})
    assert choose(known, {"a:1": answer(0, 2), "b:9": answer(1, 2)}).addresses == {0: "a:1", 1: "b:9"}


def test_another_name_of_a_member_that_still_answers_changes_nothing() -> None:
    known = Leaders(1, 1, {0: "a:1"})
    assert choose(known, {"a:1": answer(0, 1), "localhost:1": answer(0, 1)}) == known


def test_what_is_known_stays_known_while_nobody_answers() -> None:
    known = Leaders(3, 2, {0: "a:1", 1: "b:1"})
    assert choose(known, {}) == known
    assert choose(known, {"old:1": answer(0, 4, epoch=2)}) == known


def test_a_newer_record_replaces_all() -> None:
    known = Leaders(1, 2, {0: "a:1", 1: "b:1"})
    leaders = choose(known, {"a:1": answer(0, 2), "c:1": answer(2, 3, "a:1", "b:1", "c:1", epoch=2)})
    assert leaders == Leaders(2, 3, {0: "a:1", 1: "b:1", 2: "c:1"})


def test_a_shard_that_was_replaced_is_no_leader_even_while_its_successor_is_silent() -> None:
    known = Leaders(1, 2, {0: "a:1", 1: "b:1"})
    replaced = answer(1, 2, "a:1", "b:9", epoch=2)
    leaders = choose(known, {"b:1": replaced})
    assert leaders == Leaders(2, 2, {0: "a:1", 1: "b:9"})
    assert choose(leaders, {"b:1": replaced, "a:1": answer(0, 2, "a:1", "b:9", epoch=2)}) == leaders
    assert choose(leaders, {"b:9": answer(1, 2, "a:1", "b:9", epoch=2), "b:1": replaced}) == leaders


def test_in_the_first_epoch_the_written_address_counts_as_soon_as_it_answers() -> None:
    here = answer(1, 2, "a:1", "b:1")
    leaders = choose(Leaders(), {"b:9": here})
    assert leaders.addresses == {0: "a:1", 1: "b:9"}
    assert choose(leaders, {"b:9": here, "b:1": here}).addresses == {0: "a:1", 1: "b:1"}


@settings(max_examples=200)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a:1", "b:1", "c:1"]),
            st.builds(
                lambda shard, num, named, epoch: answer(shard, num, *named, epoch=epoch),
                st.integers(0, 4),
                st.sampled_from([0, 1, 2, 3, 1 << 20]),
                st.lists(st.sampled_from(["a:1", "b:1", "c:1", ""]), max_size=4),
                st.integers(0, 4),
            ),
        ),
        max_size=6,
    )
)
def test_whatever_shards_say_the_epoch_never_goes_back(rounds: list[dict[str, Any]]) -> None:
    known = Leaders()
    for answers in rounds:
        chosen = choose(known, answers)
        assert chosen.epoch >= known.epoch
        assert set(chosen.addresses) <= set(range(chosen.num_shards))
        if (chosen.epoch, chosen.num_shards) == (known.epoch, known.num_shards):
            assert set(known.addresses) <= set(chosen.addresses)
        known = chosen


def test_a_follower_is_the_one_leader_of_a_chain() -> None:
    answers = {"f:1": answer(0, 2, "a:1", "b:1", follower=True), "g:1": answer(0, 2, "a:1", "b:1", follower=True)}
    leaders = choose(Leaders(), answers)
    assert leaders == Leaders(1, 1, {0: "f:1"})
    assert choose(leaders, answers) == leaders
    assert choose(leaders, {"g:1": answers["g:1"]}) == Leaders(1, 1, {0: "g:1"})
