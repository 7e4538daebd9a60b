"""A user's past is what came before, in whatever batches it is read, evicted, stored or read again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import CorruptCheckpointError, InvalidArgumentError, StoreLockedError
from embedstore.interface import Origin
from trainer.events import BATCH_DTYPES, EventBatch
from trainer.history import HistoryStore, Window

LENGTH = 3
DEPTH = 6


@dataclass(frozen=True)
class Event:
    user: int
    item: int
    session: int
    time_ms: int
    stream: str
    position: int


def make_log(users: list[int], stream: str = "s", step_ms: int = 10) -> list[Event]:
    return [Event(user, 100 + i, user % 3, 1000 + step_ms * i, stream, 2 * i) for i, user in enumerate(users)]


def as_batch(events: list[Event], begin: int, end: int, stream: str) -> EventBatch:
    columns = {
        "user_ids": [e.user for e in events],
        "item_ids": [e.item for e in events],
        "actions": [e.item + 1 for e in events],
        "surfaces": [e.item + 2 for e in events],
        "event_time_ms": [e.time_ms for e in events],
        "session_ids": [e.session for e in events],
        "request_ids": [0 for _ in events],
        "stream_index": [0 for _ in events],
        "positions": [e.position for e in events],
    }
    arrays: dict[str, Any] = {name: np.array(columns[name], BATCH_DTYPES[name]) for name in BATCH_DTYPES}
    return EventBatch(**arrays, origins=(Origin(stream, begin, end),))


def batches(log: list[Event], first: int, cuts: list[int]) -> list[EventBatch]:
    """The log from place ``first`` on, cut before the places ``cuts``."""
    bounds = sorted({first, *(cut for cut in cuts if first < cut < len(log)), len(log)})
    spans = itertools.pairwise(bounds)
    return [as_batch(log[a:b], 2 * a, 2 * b, log[0].stream) for a, b in spans]


def past_items(log: list[Event], place: int) -> list[int]:
    return [e.item for e in log[:place] if e.user == log[place].user][-LENGTH:]


def check(window: Window, row: int, expected: list[int]) -> None:
    count = int(window.lengths[row])
    assert window.items[row, :count].tolist() == expected
    assert window.actions[row, :count].tolist() == [item + 1 for item in expected]
    assert window.surfaces[row, :count].tolist() == [item + 2 for item in expected]
    assert not window.items[row, count:].any()
    assert window.valid()[row].tolist() == [place < count for place in range(LENGTH)]


logs = st.lists(st.integers(0, 20), min_size=1, max_size=80)
cuts = st.lists(st.integers(1, 79), max_size=12)


@given(users=logs, cuts=cuts)
@settings(max_examples=60, deadline=None)
def test_events_see_their_users_latest_events_before_them_in_any_batching(users: list[int], cuts: list[int]) -> None:
    log = make_log(users)
    history = HistoryStore(None, length=LENGTH, depth=DEPTH, users_max=64)
    place = 0
    for batch in batches(log, 0, cuts):
        window = history.extend(batch)
        for row in range(len(batch)):
            check(window, row, past_items(log, place))
            place += 1
    assert place == len(log)


@given(users=logs, first_cuts=cuts, again_cuts=cuts, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_replay_from_the_committed_position_sees_exactly_what_the_first_reading_saw(
    users: list[int], first_cuts: list[int], again_cuts: list[int], data: st.DataObject
) -> None:
    log = make_log(users)
    history = HistoryStore(None, length=LENGTH, depth=DEPTH, users_max=64)
    for batch in batches(log, 0, first_cuts):
        history.extend(batch)
        begin = batch.origins[0].begin
        if data.draw(st.booleans()):
            history.commit({"s": data.draw(st.integers(0, begin // 2)) * 2})
    committed = history.committed("s")
    start = data.draw(st.integers(committed // 2, len(log) - 1))
    place = start
    for batch in batches(log, start, again_cuts):
        window = history.extend(batch)
        for row in range(len(batch)):
            check(window, row, past_items(log, place))
            place += 1


@given(users=logs, cuts=cuts, data=st.data())
@settings(max_examples=25, deadline=None)
def test_eviction_restart_and_loss_of_unwritten_users_change_nothing_that_a_replay_sees(
    users: list[int], cuts: list[int], data: st.DataObject
) -> None:
    """Memory for 16 of 21 users; the process dies at some batch and starts again from its last flush."""
    log = make_log(users)
    with TemporaryDirectory() as directory:
        history = HistoryStore(Path(directory) / "h", length=LENGTH, depth=DEPTH, users_max=21 + 3)
        cut = 0
        for batch in batches(log, 0, [*cuts, *range(0, 80, 7)]):
            history.extend(batch)
            if data.draw(st.booleans()):
                history.flush()
                history.commit({"s": cut})
                cut = batch.origins[0].end
                history.flush()
        history._db.close()
        history = HistoryStore(Path(directory) / "h", length=LENGTH, depth=DEPTH, users_max=21 + 3)
        place = cut // 2
        for batch in batches(log, place, cuts) if place < len(log) else []:
            window = history.extend(batch, {"s": cut})
            for row in range(len(batch)):
                check(window, row, past_items(log, place))
                place += 1
        history.close()


def test_least_recently_used_users_come_back_from_disk(tmp_path: Path) -> None:
    log = make_log([*range(100), *range(100)])
    history = HistoryStore(tmp_path / "h", length=LENGTH, depth=DEPTH, users_max=16)
    place = 0
    for batch in batches(log, 0, list(range(0, 200, 8))):
        window = history.extend(batch)
        for row in range(len(batch)):
            check(window, row, past_items(log, place))
            place += 1
    assert len(history) <= 16
    history.close()


@given(order=st.lists(st.booleans(), min_size=2, max_size=40))
@settings(max_examples=40, deadline=None)
def test_a_replayed_event_of_one_of_two_streams_never_sees_itself_or_anything_later(order: list[bool]) -> None:
    history = HistoryStore(None, length=LENGTH, depth=DEPTH, users_max=64)
    events: list[Event] = []
    for i, left in enumerate(order):
        stream = "left" if left else "right"
        events.append(Event(7, 100 + i, 0, 1000 + i, stream, i))
        history.extend(as_batch(events[-1:], i, i + 1, stream))
    for i, event in enumerate(events):
        window = history.extend(as_batch([event], i, i + 1, event.stream))
        check(window, 0, [e.item for e in events[:i]][-LENGTH:])


def test_entries_beyond_the_array_are_kept_until_the_commit_passes_them() -> None:
    log = make_log([5] * 60)
    history = HistoryStore(None, length=LENGTH, depth=DEPTH, users_max=64)
    for batch in batches(log, 0, [20, 40]):
        history.extend(batch)
    assert history.spilled_entries == 60 - DEPTH
    window = history.extend(as_batch(log[4:5], 8, 10, "s"))
    check(window, 0, past_items(log, 4))
    history.commit({"s": 2 * 60})
    assert history.spilled_entries == 0


def test_a_sessions_first_event_is_told_from_its_later_ones() -> None:
    history = HistoryStore(None, length=LENGTH, depth=DEPTH, users_max=64)
    sessions = [11, 11, 12, 11, 0, 0, 12]
    log = [Event(1, 100 + i, session, 1000 + i, "s", 2 * i) for i, session in enumerate(sessions)]
    expected = [False, True, False, True, False, False, True]
    assert history.extend(as_batch(log[:3], 0, 6, "s")).session_seen.tolist() == expected[:3]
    assert history.extend(as_batch(log[3:], 6, 14, "s")).session_seen.tolist() == expected[3:]
    assert history.extend(as_batch(log, 0, 14, "s")).session_seen.tolist() == expected


def test_events_below_the_floor_are_looked_up_and_not_taken_in() -> None:
    log = make_log([1, 1, 1])
    history = HistoryStore(None, length=LENGTH, depth=DEPTH, users_max=64)
    history.extend(as_batch(log, 0, 6, "s"), {"s": 4})
    check(history.extend(as_batch([Event(1, 999, 0, 9999, "s", 90)], 90, 91, "s")), 0, [102])


def test_histories_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    history = HistoryStore(tmp_path / "histories", length=LENGTH)
    with pytest.raises(StoreLockedError, match="histories"):
        HistoryStore(tmp_path / "histories", length=LENGTH)
    history.close()
    (tmp_path / "histories" / "CURRENT").write_bytes(b"damaged")
    with pytest.raises(CorruptCheckpointError, match="histories"):
        HistoryStore(tmp_path / "histories", length=LENGTH)
    with pytest.raises(InvalidArgumentError, match="state"):
        HistoryStore(tmp_path / "histories" / "CURRENT" / "histories", length=LENGTH)
