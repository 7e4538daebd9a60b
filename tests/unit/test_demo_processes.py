"""The demo never leaves a process behind and says clearly what went wrong."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.demo.processes import DemoError, Fleet, free_ports, is_listening

READY = r"^ready (\d+)$"
SERVE = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('ready 7', flush=True); {then}"
)


def python(code: str) -> Sequence[str]:
    return [sys.executable, "-c", code]


def serving(then: str = "signal.pause()") -> Sequence[str]:
    return python(SERVE.format(then=then))


def test_ready_line_is_found_and_stop_is_clean(tmp_path: Path) -> None:
    with Fleet(tmp_path / "logs") as fleet:
        fleet.start("one", serving())
        assert fleet.wait_ready("one", READY)[1] == "7"
        assert fleet.returncode("one") is None
        fleet.stop(["one"])
        assert fleet.returncode("one") == 0


def test_leaving_the_block_ends_every_child_also_after_an_error(tmp_path: Path) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    with pytest.raises(KeyboardInterrupt), Fleet(tmp_path) as fleet:
        for name in ("one", "two"):
            processes.append(fleet.start(name, serving()).process)
            fleet.wait_ready(name, READY)
        raise KeyboardInterrupt
    assert [process.returncode for process in processes] == [0, 0]


def test_a_child_that_dies_before_it_is_ready_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        fleet.start("one", python("import sys; print('no such disk'); sys.exit(3)"))
        with pytest.raises(DemoError, match=r"one ended with exit code 3[\s\S]*no such disk"):
            fleet.wait_ready("one", READY)


def test_a_killed_child_starts_again_and_its_old_ready_line_does_not_count(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        first = fleet.start("one", serving())
        fleet.wait_ready("one", READY)
        fleet.kill("one")
        first.process.wait()
        assert fleet.returncode("one") == -signal.SIGKILL
        assert "SIGKILL" in fleet.death("one")
        again = fleet.restart("one")
        fleet.wait_ready("one", READY)
        assert again.process.pid != first.process.pid
        assert again.log.read_text().splitlines().count("ready 7") == 2
        assert again.output().splitlines() == ["ready 7"]


def test_a_child_that_fails_on_its_way_out_is_an_error(tmp_path: Path) -> None:
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(4)); print('ready 1', flush=True)"
    with Fleet(tmp_path) as fleet:
        fleet.start("one", python(code + "; signal.pause()"))
        fleet.wait_ready("one", READY)
        with pytest.raises(DemoError, match="exit code 4"):
            fleet.stop(["one"])


def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet, pytest.raises(DemoError, match="cannot start"):
        fleet.start("one", [str(tmp_path / "nothing")])


def test_free_ports_differ_and_nobody_listens() -> None:
    ports = free_ports(8)
    assert len(set(ports)) == 8
    assert not any(is_listening(port) for port in ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        assert is_listening(ports[0])
