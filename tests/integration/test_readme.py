"""The README's tour works as it is written, and what the documents name exists."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from trainer.demo.processes import free_ports

ROOT = Path(__file__).resolve().parents[2]
PORTS = ("7600", "7601", "7602", "7700", "7702")
TIMEOUT_S = 200.0
DUMP_S = 5.0
SHELL = """set -euo pipefail
trap '' USR1
trap 'jobs -p | xargs --no-run-if-empty kill; wait' EXIT
"""


def tour() -> list[tuple[str, str]]:
    """(language, text) of every fenced block of the tour, in order."""
    text = (ROOT / "README.md").read_text()
    begin = text.index("## A tour")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text[begin:], re.MULTILINE | re.DOTALL)


def as_script(blocks: list[tuple[str, str]]) -> str:
    parts = [SHELL]
    for language, text in blocks:
        assert language in ("sh", "python"), language
        parts.append(text if language == "sh" else f"python - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON\n")
    script = "".join(parts)
    for port, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        script = script.replace(f":{port}", f":{free}")
    return script


def expected_outputs(blocks: list[tuple[str, str]]) -> list[str]:
    """What the comments behind ``print`` promise, where they promise a value."""
    text = "".join(text for language, text in blocks if language == "python")
    return re.findall(r"^ *print\(.*\) +# ([\[(].*[\])])$", text, re.MULTILINE)


def left_in_session(session: int) -> str:
    """The processes of a session, a line each."""
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == session:
                lines.append(f"{folder.name} {(folder / 'cmdline').read_text().replace(chr(0), ' ')}")
    return "\n".join(lines)


def output_of(process: subprocess.Popen[str]) -> str:
    """Everything that it and its children write; when they do not end, that fails with what they are doing."""
    try:
        return process.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        left = left_in_session(process.pid)
        os.killpg(process.pid, signal.SIGUSR1)  # servers write their stacks, all others ignore it
        try:
            output, _ = process.communicate(timeout=DUMP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        pytest.fail(f"did not end within {TIMEOUT_S:g} s; left:\n{left}\n{output}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_the_tour_works_as_it_is_written(tmp_path: Path) -> None:
    blocks = tour()
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-c", as_script(blocks)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = output_of(process)
    finally:
        data = str(tmp_path / "build/tour/kafka")
        stop = [sys.executable, str(ROOT / "deploy/kafka/broker.py"), "stop", "--data", data]
        subprocess.run(stop, check=True, capture_output=True)
    assert process.returncode == 0, output
    promised = expected_outputs(blocks)
    assert len(promised) >= 4
    for value in promised:
        assert value in output, f"{value} is not in:\n{output}"


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "ARCHITECTURE.md"):
        named = set(re.findall(r"\bmake ([a-z]+)\b(?= |`|$)", (ROOT / name).read_text(), re.MULTILINE))
        assert named - {"it"} <= targets, name


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"])
def test_every_file_that_a_document_names_exists(name: str) -> None:
    words = re.findall(r"`([\w./*-]+)`", (ROOT / name).read_text())
    folders = [
        ROOT,
        ROOT / "embedstore",
        ROOT / "embedstore" / "native",
        ROOT / "embedstore" / "server",
        ROOT / "trainer",
    ]
    for word in words:
        looks_like_a_file = word.endswith((".py", ".h", ".cc", ".md", ".proto", "/")) or word.startswith("deploy/")
        if looks_like_a_file:
            assert any((folder / word).exists() for folder in folders), f"{name} names {word}"
