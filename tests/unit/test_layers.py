"""The layers import downward only, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = (
    {
        *("_native", "changes", "deltas", "dense", "errors", "freshness", "ids", "interface"),
        *("placement", "protowire", "row_formats", "rules", "spec", "v1"),
    },
    {"table", "table_arguments"},
    {"checkpoint", "export", "group_commit", "manifest", "records", "recovery", "segments", "snapshot"},
    {"durable", "membership", "origins", "store", "table_set", "writing"},
    {"messages", "status", "wire", "wire_columns", "wire_pull", "wire_push"},
    {
        "batches",
        "certificates",
        "client",
        "client_streams",
        "cluster",
        "routes",
        "credentials",
        "degraded",
        "discovery",
        "nn",
        "parity",
        "peers",
        "reads",
        "row_cache",
        "session",
        "silences",
        "updates",
    },
    {"server"},
    {"cli"},
)
"""From the bottom up: a unit imports its own layer (without cycles) and those below."""

RANKS = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
CONFINED = {"torch": {"nn"}, "pydantic": {"cli"}, "pydantic_settings": {"cli"}, "rich": {"cli"}, "typer": {"cli"}}


def imports_of(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever the statement stands, as (line, full name)."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else node.module or ""
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute | ast.Name)
            and (node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id) == "import_module"
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if not path.stem.endswith(("_pb2", "_pb2_grpc")))


def unit_of(path: Path) -> str:
    """The layer that a file of embedstore belongs to: its module or sub-package."""
    return path.relative_to(ROOT / "embedstore").parts[0].removesuffix(".py")


def units_used(path: Path) -> Iterator[tuple[int, str]]:
    """The other layers' modules that a file of embedstore imports, with the line."""
    for line, name in imports_of(path, package_of(path)):
        top, _, rest = name.partition(".")
        if top == "embedstore" and rest.split(".")[0] in RANKS:
            yield line, rest.split(".")[0]


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


@pytest.mark.parametrize("path", modules("embedstore"), ids=lambda path: str(path.relative_to(ROOT)))
def test_layers_import_downward_only(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return
    assert unit in RANKS, f"{unit} has no place among the layers"
    for line, other in units_used(path):
        assert RANKS[other] <= RANKS[unit], f"{path}:{line}: {unit} may not import {other}"


def test_no_two_units_need_each_other() -> None:
    uses: dict[str, set[str]] = {}
    for path in modules("embedstore"):
        uses.setdefault(unit_of(path), set()).update(other for _, other in units_used(path))
    del uses["__init__"]
    while leaves := [unit for unit, others in uses.items() if not others & uses.keys() - {unit}]:
        for unit in leaves:
            del uses[unit]
    assert not uses, f"a cycle among {sorted(uses)}"


@pytest.mark.parametrize("path", modules("embedstore"), ids=lambda path: str(path.relative_to(ROOT)))
def test_embedstore_stays_light_and_never_imports_the_trainer(path: Path) -> None:
    unit = unit_of(path)
    for line, name in imports_of(path, package_of(path)):
        top = name.split(".")[0]
        assert top not in ("trainer", "benchmarks", "tests"), f"{path}:{line}: imports {name}"
        if top in CONFINED:
            config = path.stem == "config" and top != "torch"
            assert unit in CONFINED[top] or config, f"{path}:{line}: {top} belongs in {CONFINED[top]}"


@pytest.mark.parametrize("path", modules("trainer"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_trainer_uses_only_the_public_faces_of_embedstore(path: Path) -> None:
    for line, name in imports_of(path, package_of(path)):
        assert not name.startswith(("embedstore._native", "embedstore.cli", "tests", "benchmarks")), f"{path}:{line}"


def test_importing_embedstore_brings_neither_torch_nor_grpc() -> None:
    code = "import sys, embedstore; print(sorted({'torch', 'grpc', 'rich', 'typer', 'kafka'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert out.strip() == "[]"


def test_the_native_core_includes_no_python() -> None:
    for path in sorted((ROOT / "embedstore" / "native").rglob("*")):
        if path.suffix in (".h", ".cc") and not path.name.startswith("bind"):
            assert not any(word in path.read_text() for word in ("Python.h", "nanobind")), path


def test_generated_protobuf_code_is_not_stale() -> None:
    done = subprocess.run([ROOT / "scripts" / "protos", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
