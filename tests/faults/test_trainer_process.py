"""``embedtrain stream`` as a process: killed, stopped, replaced, left without its state or without its log."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka_broker import KafkaTopics
from trainer_processes import Embedtrain, Shards, applied, until

from trainer.cut import read_cut
from trainer.decoding import SetAside
from trainer.produce import events_of, produce

EVENTS = 1200
PARTS = 3
WORLD = f"synthetic://?seed=3&items=80&users=60&events={EVENTS}"


def rows(store: Any) -> dict[int, bytes]:
    """Every item's row."""
    return {
        int(key): row.tobytes()
        for ids, found in store.scan("items")
        for key, row in zip(ids.tolist(), found.embeddings, strict=True)
    }


def expected_tests(events: list[Any]) -> int:
    """Events that are not the first of their session, of users that have a past."""
    seen: set[Any] = set()
    count = 0
    for event in events:
        session = (event.user_id, event.session_id)
        count += session in seen
        seen.add(session)
    return count


@pytest.mark.timeout(240)
def test_killed_at_random_it_takes_in_and_scores_every_event_once(kafka: KafkaTopics, tmp_path: Path) -> None:
    topic = kafka.create(partitions=2)
    events = list(events_of(WORLD, SetAside()))
    rng = np.random.default_rng()
    with Shards(tmp_path) as shards, shards.connect() as store:
        for part in range(PARTS):
            start, end = EVENTS * part // PARTS, EVENTS * (part + 1) // PARTS
            produce(events[start:end], kafka.uri(topic))
            with Embedtrain(tmp_path, "trainer", kafka.uri(topic), shards.addresses) as trainer:
                if part == PARTS - 1:
                    until(lambda end=end: applied(store) == end, trainer.log)  # type: ignore[misc]
                    summary = trainer.terminate()
                    break
                at = int(rng.integers(start + 1, end))
                until(lambda at=at: applied(store) >= at, trainer.log)  # type: ignore[misc]
                trainer.process.kill()
                shards.kill(part % 2)
                shards.start(part % 2)
        assert summary["events"] == EVENTS
        assert summary["tests"] + summary["unscored"] == expected_tests(events)
        ends = {stream: state.applied for stream, state in store.watermarks().items() if "kafka/" in stream}
        cut = read_cut(tmp_path / "trainer")
        dense = store.get_dense("sequence_model")
        assert cut is not None
        assert cut.positions == dense.position == summary["positions"] == ends
        for name, tensor in dense.tensors.items():
            assert np.array_equal(tensor, cut.arrays[f"dense/{name}"]), name


@pytest.mark.timeout(240)
def test_a_stopped_trainer_that_wakes_after_its_replacement_changes_nothing(kafka: KafkaTopics, tmp_path: Path) -> None:
    topic = kafka.create(partitions=1)
    events = list(events_of(WORLD, SetAside()))
    produce(events[:400], kafka.uri(topic))
    with Shards(tmp_path) as shards, shards.connect() as store:
        with Embedtrain(tmp_path, "old", kafka.uri(topic), shards.addresses) as old:
            until(lambda: applied(store) == 400, old.log)
            old.process.send_signal(signal.SIGSTOP)
            produce(events[400:800], kafka.uri(topic))
            with Embedtrain(tmp_path, "new", kafka.uri(topic), shards.addresses) as new:
                until(lambda: applied(store) == 800, new.log)
                summary = new.terminate()
            before = rows(store)
            states, dense = store.watermarks(), store.get_dense("sequence_model")
            produce(events[800:], kafka.uri(topic))
            old.process.send_signal(signal.SIGCONT)
            assert "replaced by a newer trainer of the same stream" in old.end()
        assert rows(store) == before
        assert store.watermarks() == states
        assert store.get_dense("sequence_model").version == dense.version
        assert summary["positions"] == dense.position


@pytest.mark.timeout(240)
def test_without_its_state_it_goes_on_from_the_published_weights(kafka: KafkaTopics, tmp_path: Path) -> None:
    topic = kafka.create(partitions=1)
    events = list(events_of(WORLD, SetAside()))
    produce(events[:600], kafka.uri(topic))
    with Shards(tmp_path) as shards, shards.connect() as store:
        with Embedtrain(tmp_path, "trainer", kafka.uri(topic), shards.addresses) as trainer:
            until(lambda: applied(store) == 600, trainer.log)
            trainer.terminate()
        before, dense = rows(store), store.get_dense("sequence_model")
        shutil.rmtree(tmp_path / "trainer")
        kafka.send(topic, [b"no event"])
        with Embedtrain(tmp_path, "trainer", kafka.uri(topic), shards.addresses) as trainer:
            until(lambda: applied(store) == 601, trainer.log)
            trainer.terminate()
        cut = read_cut(tmp_path / "trainer")
        assert cut is not None
        assert rows(store) == before
        for name, tensor in dense.tensors.items():
            assert np.array_equal(tensor, cut.arrays[f"dense/{name}"]), name
        assert "reading histories" in trainer.log() or "again: 0 to 600" in trainer.log()


@pytest.mark.timeout(240)
def test_a_shard_with_an_empty_disk_is_taught_the_whole_log_again(kafka: KafkaTopics, tmp_path: Path) -> None:
    topic = kafka.create(partitions=2)
    produce(events_of(WORLD, SetAside()), kafka.uri(topic))
    with Shards(tmp_path) as shards, shards.connect() as store:
        with Embedtrain(tmp_path, "trainer", kafka.uri(topic), shards.addresses) as trainer:
            until(lambda: applied(store) == EVENTS, trainer.log)
            before = rows(store).keys()
            shards.kill(1)
            shutil.rmtree(shards.data(1))
            shards.start(1)
            kafka.send(topic, [b"no event"])
            assert "Started again, the trainer makes what is missing" in trainer.end()
        with Embedtrain(tmp_path, "trainer", kafka.uri(topic), shards.addresses) as trainer:
            until(lambda: applied(store) == EVENTS + 1, trainer.log)
            summary = trainer.terminate()
        assert rows(store).keys() == before
        assert summary["events"] == EVENTS


@pytest.mark.timeout(240)
def test_events_that_the_log_lost_are_named_and_only_given_up_when_told_to(kafka: KafkaTopics, tmp_path: Path) -> None:
    topic = kafka.create(partitions=1)
    produce(events_of(WORLD, SetAside()), kafka.uri(topic))
    uri = kafka.uri(topic)
    with Shards(tmp_path) as shards, shards.connect() as store:
        with Embedtrain(tmp_path, "trainer", uri, shards.addresses) as trainer:
            until(lambda: applied(store) == EVENTS, trainer.log)
            trainer.terminate()
        [stream] = [stream for stream in store.watermarks() if "kafka/" in stream]
        kafka.trim(topic, 500)
        shards.kill(1)
        shutil.rmtree(shards.data(1))
        shards.start(1)
        with Embedtrain(tmp_path, "trainer", uri, shards.addresses) as trainer:
            assert (
                f"{stream!r} at 0: a shard has forgotten it, and the log begins at 500: [0, 500) is gone"
                in trainer.end()
            )
        with Embedtrain(tmp_path, "trainer", uri, shards.addresses, "--accept-loss") as trainer:
            until(lambda: applied(store) == EVENTS, trainer.log)
            assert trainer.terminate()["events"] == EVENTS

        kafka.delete(topic)
        produce(events_of(WORLD, SetAside()), uri, partitions=1)
        with Embedtrain(tmp_path, "trainer", uri, shards.addresses) as trainer:
            assert f"{stream!r} at {EVENTS}: the topic was deleted and created again" in trainer.end()
        assert applied(store) == EVENTS
        with Embedtrain(tmp_path, "trainer", uri, shards.addresses, "--accept-loss") as trainer:
            until(lambda: applied(store) == 2 * EVENTS, trainer.log)
            trainer.terminate()
