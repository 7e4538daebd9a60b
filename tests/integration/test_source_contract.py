"""What every source promises, on every source: ranges that tile, same positions, same events, typed errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka_broker import KafkaTopics
from source_cases import FILE_CASES, SourceCase, kafka_case

from embedstore.errors import InvalidArgumentError, StreamPositionError
from trainer.events import EventBatch
from trainer.sources import Source

TIMEOUT_S = 30.0


@pytest.fixture(scope="module", params=[*FILE_CASES, "kafka"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SourceCase:
    if request.param == "kafka":
        topics: KafkaTopics = request.getfixturevalue("kafka")
        return kafka_case(topics)
    return FILE_CASES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def source(case: SourceCase) -> Iterator[Source]:
    with closing(case.open()) as opened:
        yield opened


class Reader:
    """Polls a source and checks every batch against the truth."""

    def __init__(self, source: Source, case: SourceCase) -> None:
        self.source, self.case = source, case
        self.positions = source.streams()
        source.seek(self.positions)

    def poll(
        self, max_events: int, only: str | None = None, stop_at: dict[str, int] | None = None
    ) -> EventBatch | None:
        batch = self.source.poll(max_events, 0.2, only=only, stop_at=stop_at or {})
        if batch is None:
            assert all(self.positions[name] == self.case.ends[name] for name in ([only] if only else self.positions))
            return None
        assert len(batch) <= max_events
        assert len({origin.stream for origin in batch.origins}) == len(batch.origins)
        for index, origin in enumerate(batch.origins):
            assert only in (None, origin.stream)
            assert origin.begin == self.positions[origin.stream] < origin.end <= self.case.ends[origin.stream]
            stop = (stop_at or {}).get(origin.stream, origin.end)
            assert not origin.begin < stop < origin.end
            truth = self.case.truth[origin.stream]
            expected = [
                (position, truth[position]) for position in range(origin.begin, origin.end) if position in truth
            ]
            mine = batch.stream_index == index
            assert list(zip(batch.positions[mine].tolist(), batch.item_ids[mine].tolist(), strict=True)) == expected
            self.positions[origin.stream] = origin.end
        return batch

    def drain(self, max_events: int = 256) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.positions != self.case.ends:
            assert time.monotonic() < deadline_s, self.positions
            self.poll(max_events)


@pytest.mark.parametrize("max_events", [1, 256, 100_000])
def test_every_event_is_read_once(source: Source, case: SourceCase, max_events: int) -> None:
    if max_events == 1 and sum(case.ends.values()) > 1000:
        max_events = 7
    Reader(source, case).drain(max_events)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_polls_and_seeks_tile_the_streams(source: Source, case: SourceCase, data: st.DataObject) -> None:
    reader = Reader(source, case)
    names = sorted(case.ends)
    positions = st.fixed_dictionaries({}, optional={name: st.integers(0, case.ends[name]) for name in names})
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):
            target = data.draw(positions)
            source.seek(target)
            reader.positions.update(target)
        only = data.draw(st.none() | st.sampled_from(names))
        reader.poll(data.draw(st.integers(1, 2000)), only, data.draw(positions))
    reader.drain(5000)


def test_a_stop_is_reached_exactly_and_then_passed(source: Source, case: SourceCase) -> None:
    reader = Reader(source, case)
    name = sorted(case.ends)[0]
    stops = {name: 133}
    deadline_s = time.monotonic() + TIMEOUT_S
    while reader.positions[name] < 133:
        assert time.monotonic() < deadline_s
        reader.poll(50, name, stops)
    assert reader.positions[name] == 133
    while reader.positions[name] == 133:
        assert time.monotonic() < deadline_s
        reader.poll(50, name, stops)


def test_a_source_opened_again_has_the_same_streams_and_events(source: Source, case: SourceCase) -> None:
    with closing(case.open()) as again:
        assert again.streams() == source.streams() == dict.fromkeys(case.ends, 0)
        Reader(again, case).drain(1000)


def test_ends_are_known_or_live(source: Source, case: SourceCase) -> None:
    assert source.ends() in (case.ends, dict.fromkeys(case.ends))
    assert source.log_ends() == case.ends
    assert isinstance(source, Source)


def test_the_end_of_a_finite_source_is_told_every_time(source: Source, case: SourceCase) -> None:
    reader = Reader(source, case)
    source.seek(case.ends)
    reader.positions.update(case.ends)
    for only in (None, *case.ends):
        batch = reader.poll(10, only)
        assert (batch is None) == (source.ends() == case.ends)
        assert batch is None or batch.origins == ()


def test_lag_is_what_is_left(source: Source, case: SourceCase) -> None:
    reader = Reader(source, case)
    reader.drain()
    assert source.lag_records() == dict.fromkeys(case.ends, 0)


def test_a_position_outside_the_log_is_refused_and_nothing_moves(source: Source, case: SourceCase) -> None:
    reader = Reader(source, case)
    reader.poll(10)
    name = max(case.ends)
    with pytest.raises(StreamPositionError, match="ends at") as caught:
        source.seek({**dict.fromkeys(case.ends, 0), name: case.ends[name] + 1})
    assert (caught.value.stream, caught.value.position) == (name, case.ends[name] + 1)
    reader.drain(1000)


def test_unknown_streams_and_empty_polls_are_the_callers_fault(source: Source) -> None:
    with pytest.raises(InvalidArgumentError, match="positions"):
        source.seek({"file/none/0": 0})
    with pytest.raises(InvalidArgumentError, match="only"):
        source.poll(1, 0.0, only="file/none/0")
    with pytest.raises(InvalidArgumentError, match="max_events"):
        source.poll(0, 0.0)


def test_commit_and_close_are_always_possible(case: SourceCase) -> None:
    source = case.open()
    source.commit(case.ends)
    source.close()
    source.close()
