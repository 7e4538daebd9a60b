"""What an event is, what it is not, and that bad records are counted and reported, never fatal."""

from __future__ import annotations

import json
import logging
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import InvalidArgumentError
from embedstore.ids import hash_ids
from embedstore.interface import Origin
from trainer.decoding import LINES_PER_WINDOW_MAX, Decoder, SetAside, resolve_ids
from trainer.events import EVENT_TIME_MS_MAX, ID_MAX, RECORD_BYTES_MAX, ActivityEvent, EventBatch, merge_batches

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
ids = st.integers(0, ID_MAX) | texts
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
events = st.builds(
    ActivityEvent,
    user_id=ids,
    item_id=ids,
    action=texts,
    event_time_ms=st.integers(0, EVENT_TIME_MS_MAX),
    surface=st.just("") | texts,
    session_id=st.none() | ids,
    request_id=st.none() | ids,
    features=st.dictionaries(texts, numbers | texts, max_size=4),
)
GOOD = {"user_id": 1, "item_id": "shoe", "action": "click", "event_time_ms": 5}


def decode(*records: bytes, latest_ms: int = EVENT_TIME_MS_MAX) -> tuple[EventBatch, SetAside]:
    decoder = Decoder()
    batch = decoder.decode(Origin("s", 7, 7 + len(records)), enumerate(records, 7), repeat(latest_ms))
    return batch, decoder.set_aside


@settings(deadline=None)
@given(events)
def test_both_encodings_give_back_the_event(event: ActivityEvent) -> None:
    assert ActivityEvent.decode(event.to_json()) == event
    assert ActivityEvent.decode(event.to_protobuf()) == event


@settings(deadline=None)
@given(st.lists(events, max_size=5))
def test_both_encodings_give_the_same_columns(all_events: list[ActivityEvent]) -> None:
    from_json, _ = decode(*[event.to_json() for event in all_events])
    from_protobuf, _ = decode(*[event.to_protobuf() for event in all_events])
    for name in ("user_ids", "item_ids", "actions", "surfaces", "event_time_ms", "session_ids", "request_ids"):
        assert np.array_equal(getattr(from_json, name), getattr(from_protobuf, name))
    assert len(from_json) == len(all_events)
    assert from_json.item_ids.tolist() == resolve_ids([event.item_id for event in all_events]).tolist()


@settings(deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"{" + tail))
def test_random_bytes_are_an_event_or_are_set_aside(data: bytes) -> None:
    batch, account = decode(data)
    assert len(batch) + batch.set_aside == 1
    assert account.total == batch.set_aside
    assert batch.origins == (Origin("s", 7, 8),)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": None}, "user_id"),
        ({"user_id": -1}, "user_id"),
        ({"user_id": ID_MAX + 1}, "user_id"),
        ({"user_id": True}, "user_id"),
        ({"user_id": 1.0}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "x" * 1025}, "user_id"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"item_id": [1]}, "item_id"),
        ({"action": None}, "action"),
        ({"action": ""}, "action"),
        ({"action": 3}, "action"),
        ({"action": "x" * 257}, "action"),
        ({"surface": 3}, "surface"),
        ({"event_time_ms": None}, "event_time_ms"),
        ({"event_time_ms": -1}, "event_time_ms"),
        ({"event_time_ms": 1001}, "event_time_ms"),
        ({"event_time_ms": "5"}, "event_time_ms"),
        ({"event_time_ms": 5.0}, "event_time_ms"),
        ({"session_id": -3}, "session_id"),
        ({"request_id": {}}, "request_id"),
        ({"features": []}, "features"),
        ({"features": [1]}, "features"),
        ({"features": {"a": None}}, "features"),
        ({"features": {"a": 10**400}}, "features"),
        ({"features": {str(k): 1 for k in range(257)}}, "features"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], field: str) -> None:
    batch, account = decode(json.dumps({**GOOD, **change}).encode(), latest_ms=1000)
    assert batch.set_aside == 1
    assert account.recent[0][:3] == ("s", 7, field)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (b"", "user_id"),
        (b"{", "json"),
        (b'{"user_id": NaN}', "json"),
        (b'{"a":' * 20000, "record"),
        (b'{"a":' * 10000, "json"),
        (b'{"a": "\xff"}', "json"),
        (b'{"user_id": ' + b"9" * 5000 + b"}", "json"),
        (b"\xff\xff\xff", "protobuf"),
        (b"{" + b" " * RECORD_BYTES_MAX, "record"),
    ],
)
def test_what_is_no_event_at_all_is_set_aside(record: bytes, field: str) -> None:
    _, account = decode(record)
    assert dict(account.by_field) == {field: 1}


def test_a_missing_value_is_set_aside() -> None:
    decoder = Decoder()
    batch = decoder.decode(Origin("s", 0, 1), [(0, None)], repeat(0))
    assert batch.set_aside == 1


def test_good_records_around_a_bad_one_keep_their_positions() -> None:
    good = json.dumps(GOOD).encode()
    batch, _ = decode(good, b"{", good)
    assert batch.positions.tolist() == [7, 9]
    assert batch.item_ids.tolist() == hash_ids(["shoe", "shoe"]).tolist()
    assert batch.session_ids.tolist() == [0, 0]
    assert batch.surfaces.tolist() == hash_ids(["", ""]).tolist()


def test_a_text_in_digits_is_not_the_number() -> None:
    assert resolve_ids([7, "7", None]).tolist() == [7, int(hash_ids(["7"])[0]), 0]


def test_a_new_event_is_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="item_id: negative"):
        ActivityEvent(1, -2, "click", 0)


def test_log_lines_are_limited_and_the_count_is_exact(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    account = SetAside(clock_s=lambda: now_s[0])
    error = InvalidArgumentError("user_id", "negative")
    with caplog.at_level(logging.WARNING):
        for position in range(100):
            account.report("stream", position, error)
        assert len(caplog.records) == LINES_PER_WINDOW_MAX
        assert "stream at 0: user_id: negative" in caplog.text
        now_s[0] = 60.0
        account.report("stream", 100, error)
        account.flush()
    assert account.total == 101
    assert f"{100 - LINES_PER_WINDOW_MAX} more bad records" in caplog.text


def test_merged_batches_keep_their_streams_apart() -> None:
    good = json.dumps(GOOD).encode()
    parts = [Decoder().decode(Origin(stream, 3, 5), [(3, good), (4, good)], repeat(10)) for stream in ("a", "b")]
    merged = merge_batches(parts)
    assert [merged.origins[k].stream for k in merged.stream_index] == ["a", "a", "b", "b"]
    assert len(merge_batches([])) == 0
    assert merge_batches([]).origins == ()
