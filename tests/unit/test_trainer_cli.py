"""``embedtrain``: light commands stay light, and failures are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer import cli


def test_converting_does_not_wait_for_torch() -> None:
    code = "import sys, trainer.cli, trainer.convert, trainer.produce; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_command_is_in_the_overview(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["embedtrain", "--help"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    overview = capsys.readouterr().out
    assert all(command in overview for command in cli.COMMANDS)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["embedtrain", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.startswith("embedtrain 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "globo", "none.parquet", "--out", "x.parquet"], "embedtrain: in: cannot read none.parquet"),
        (["convert", "globo", "none.parquet", "--out", "x.doc"], "embedtrain: out: x.doc must end in one of"),
        (["produce", "none.jsonl", "--to", "localhost:1"], "embedtrain: events: 'localhost:1' is not kafka://"),
    ],
)
def test_a_failure_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["embedtrain", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    text = str(caught.value.code)
    assert text.startswith(message)
    assert "\n" not in text
