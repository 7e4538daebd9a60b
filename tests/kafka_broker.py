"""A real Kafka broker for tests: started once a session, with a topic of its own for each test."""

from __future__ import annotations

import importlib.util
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

SCRIPT = Path(__file__).resolve().parents[1] / "deploy" / "kafka" / "broker.py"
TIMEOUT_MS = 20_000
RECONNECT_BACKOFF_MS_MAX = 500


def load_script(name: str, path: Path) -> Any:
    """A module from a file outside of every package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


broker_script = load_script("embedstore_deploy_kafka_broker", SCRIPT)


class KafkaTopics:
    """The session's broker and what tests do with it. ``broker`` may be stopped and started; it keeps its address."""

    def __init__(self, data: Path) -> None:
        self.broker: Any = broker_script.Broker(data)
        self.address: str = self.broker.start()

    def uri(self, topic: str) -> str:
        return f"kafka://{self.address}/{topic}"

    def admin(self) -> Any:
        return KafkaAdminClient(bootstrap_servers=self.address, bootstrap_timeout_ms=TIMEOUT_MS)

    def create(self, partitions: int = 1, **configs: str) -> str:
        """A new topic; returns its name."""
        topic = f"test-{uuid.uuid4().hex[:12]}"
        admin = self.admin()
        try:
            options = {"num_partitions": partitions, "replication_factor": 1, "configs": configs}
            admin.create_topics({topic: options}, wait_for_metadata=True)
        finally:
            admin.close()
        return topic

    def producer(self, **options: Any) -> Any:
        return KafkaProducer(
            bootstrap_servers=self.address,
            bootstrap_timeout_ms=TIMEOUT_MS,
            reconnect_backoff_max_ms=RECONNECT_BACKOFF_MS_MAX,
            **options,
        )

    def send(
        self, topic: str, values: Sequence[bytes | None], partition: int = 0, timestamp_ms: int | None = None
    ) -> None:
        """Write records to one partition and wait until the broker has them all."""
        producer = self.producer(linger_ms=5)
        try:
            futures = [
                producer.send(topic, value, key=b"k", partition=partition, timestamp_ms=timestamp_ms)
                for value in values
            ]
            for future in futures:
                future.get(timeout=TIMEOUT_MS / 1000)
        finally:
            producer.close()

    def trim(self, topic: str, offset: int, partition: int = 0) -> None:
        """Delete the records below ``offset``, as retention would."""
        admin = self.admin()
        try:
            admin.delete_records({TopicPartition(topic, partition): offset})
        finally:
            admin.close()

    def delete(self, topic: str) -> None:
        """Delete a topic."""
        admin = self.admin()
        try:
            admin.delete_topics([topic])
        finally:
            admin.close()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaTopics]:
    """A real broker on loopback, for the whole session."""
    topics = KafkaTopics(tmp_path_factory.mktemp("kafka"))
    yield topics
    topics.broker.stop()
