"""The examples of docs/tables.md do what the document says."""

from __future__ import annotations

import contextlib
import io
import re
import tomllib
from pathlib import Path

from embedstore.cli.tables import parse_tables

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "tables.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_every_print_prints_what_stands_behind_it() -> None:
    [code] = blocks("python")
    promised = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert len(promised) == code.count("print(") >= 4
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "docs/tables.md", "exec"), {})
    assert output.getvalue().splitlines() == promised


def test_the_file_of_tables_is_one() -> None:
    [text] = blocks("toml")
    [items] = parse_tables(tomllib.loads(text)["tables"])
    assert (items.rows_max, items.ttl_s) == (1_000_000, 30 * 86_400)
