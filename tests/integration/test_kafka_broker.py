"""The development broker: starts where it was, says whether it runs, stops, and reports what keeps it from starting."""

from __future__ import annotations

from pathlib import Path

import pytest
from kafka_broker import KafkaTopics, broker_script


def test_a_running_broker_is_started_once(kafka: KafkaTopics) -> None:
    pid = kafka.broker.pid()
    assert kafka.broker.start() == kafka.address
    assert kafka.broker.pid() == pid
    with pytest.raises(broker_script.BrokerError, match="already runs on port"):
        kafka.broker.start(port=1)


def test_status_tells_the_address(kafka: KafkaTopics, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker_script.main(["status", "--data", str(kafka.broker.data)]) == 0
    assert capsys.readouterr().out == f"{kafka.address} pid {kafka.broker.pid()}\n"


def test_a_broker_that_does_not_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker_script.main(["status", "--data", str(tmp_path)]) == 1
    assert broker_script.main(["stop", "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "not running\nnot running\n"


def test_a_stale_pid_file_is_not_a_running_broker(tmp_path: Path) -> None:
    broker = broker_script.Broker(tmp_path)
    broker.pid_file.write_text("1\n")
    assert broker.pid() is None


def test_a_broker_that_cannot_start_says_why(kafka: KafkaTopics, tmp_path: Path) -> None:
    broker = broker_script.Broker(tmp_path / "second")
    with pytest.raises(broker_script.BrokerError, match="cannot be used: Address already in use"):
        broker.start(port=kafka.broker.port())
    assert broker.pid() is None
    assert not broker.pid_file.exists()
