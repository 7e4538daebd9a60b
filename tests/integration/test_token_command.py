"""The command that makes tokens leaves the servers' file whole, whatever it finds there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import typer

from embedstore.cli.token import token
from embedstore.server.security import read_tokens

VALID = f'[ tokens."a" ]\nrole = "read"\nsha256 = "{"0" * 64}"\n'


def made(name: str, tokens: Path, out: Path) -> None:
    token(name, role="read", tokens=tokens, out=out)


@pytest.mark.parametrize("content", [VALID, "x = 1", "[tokens", b"\xff\xfe", None])
def test_what_cannot_be_added_to_stays_as_it_was(tmp_path: Path, content: Any, capsys: Any) -> None:
    tokens, out = tmp_path / "tokens.toml", tmp_path / "out"
    if content is None:
        tokens.mkdir()
    else:
        tokens.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = None if content is None else tokens.read_bytes()
    with pytest.raises(typer.Exit):
        made("a", tokens, out)
    assert capsys.readouterr().err.startswith("embedstore: ")
    assert before is None or tokens.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"tokens.toml"}


def test_mode_and_other_sections_are_kept(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(VALID)
    tokens.chmod(0o640)
    made("b", tokens, tmp_path / "out")
    assert tokens.stat().st_mode & 0o777 == 0o640
    assert tokens.read_text().startswith(VALID)
    assert len(read_tokens(tokens)) == 2


def test_commands_at_once_all_count(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    threads = [threading.Thread(target=made, args=(f"t{i}", tokens, tmp_path / f"{i}.token")) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_tokens(tokens).values()) == ["read"] * 12
