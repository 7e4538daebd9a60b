"""Kafka topic to follower: produce, train, follow; restart broker and trainer, and go on at the right offset."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka_broker import KafkaTopics
from processes import Process

import embedstore as es
from trainer.decoding import SetAside
from trainer.produce import events_of, produce
from trainer.sources.kafka import KafkaSource
from trainer.sources.world import World, WorldSpec

FIRST, SECOND = 1500, 700
WORLD = f"synthetic://?seed=9&items=100&users=200&events={FIRST + SECOND}"
CONFIG = """
[model]
dim = 16
layers = 1
heads = 2
length = 4
[train]
batch_events = 64
head_negatives = 60
tail_negatives = 40
[tables]
num_chunks = 8
[run]
threads = 1
"""


def train(folder: Path, events: str, store: str, count: int) -> dict[str, Any]:
    """``embedtrain stream`` in a process of its own, until it has learnt so many events; returns its summary."""
    (folder / "config.toml").write_text(CONFIG)
    command = [sys.executable, "-c", "from trainer.cli import main; main()", "stream", "--events", events]
    command += ["--store", store, "--config", str(folder / "config.toml"), "--state", str(folder / "state")]
    command += ["--group", "shop", "--max-events", str(count), "--summary", str(folder / "summary.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


@pytest.mark.timeout(240)
def test_training_goes_on_where_it_was_after_broker_and_trainer_restarted(kafka: KafkaTopics, tmp_path: Path) -> None:
    topic = kafka.create(partitions=2)
    events = list(events_of(WORLD, SetAside()))
    with ExitStack() as stack:
        shards = [
            stack.enter_context(
                Process("--listen", "127.0.0.1:0", "--shard", f"{k}/2", "--data", str(tmp_path / f"shard{k}"))
            )
            for k in range(2)
        ]
        addresses = ",".join(shard.address for shard in shards)
        store = stack.enter_context(closing(es.connect(addresses)))
        produce(events[:FIRST], kafka.uri(topic))
        first = train(tmp_path, kafka.uri(topic), f"grpc://{addresses}", FIRST)
        assert first["events"] == FIRST
        follower = stack.enter_context(closing(es.follow(addresses)))
        check_levels(kafka, topic, store, FIRST)

        kafka.broker.stop(kill=True)
        kafka.broker.start()
        produce(events[FIRST:], kafka.uri(topic))
        second = train(tmp_path, kafka.uri(topic), f"grpc://{addresses}", SECOND)
        assert (second["events"], second["run_events"], second["replayed_events"]) == (FIRST + SECOND, SECOND, 0)
        check_levels(kafka, topic, store, FIRST + SECOND)
        check_rows(store, follower)


def check_levels(kafka: KafkaTopics, topic: str, store: es.Store, count: int) -> None:
    """The log, the committed offsets and every shard's durable watermarks stand at the same positions."""
    with closing(KafkaSource([kafka.address], topic, group="shop")) as source:
        ends = source.log_ends()
        assert sum(ends.values()) == count
        assert source.committed() == ends
    states = store.watermarks()
    assert {stream: (states[stream].applied, states[stream].durable) for stream in ends} == {
        stream: (end, end) for stream, end in ends.items()
    }


def check_rows(store: es.Store, follower: Any) -> None:
    """Every item of the stream has a row, and the follower the same one."""
    world = World(WorldSpec(seed=9, items=100, users=200))
    items = np.unique(world.events(0, FIRST + SECOND).items).astype(np.uint64)
    rows = store.pull({"items": items}, meta=True)["items"]
    assert rows.found.all()
    streams = {stream: state.applied for stream, state in store.watermarks().items() if stream.startswith("kafka/")}
    follower.wait_for(streams, 30.0)
    assert np.array_equal(follower.pull({"items": items})["items"], rows.embeddings)
