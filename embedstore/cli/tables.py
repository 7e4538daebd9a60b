"""Tables as TOML: one section a table.

::

    [tables.items]
    dim = 64
    optimizer = { kind = "adagrad", lr = 0.05 }
    init = { kind = "uniform", scale = 0.05, seed = 1 }

Every field of :class:`~embedstore.spec.TableSpec` has its name; optimizer, init and admission name their kind and give
its fields. What is left out has the default of the class. Anything unknown is refused by name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from embedstore import spec
from embedstore.errors import InvalidArgumentError
from embedstore.spec import TableSpec

KINDS: dict[str, dict[str, type]] = {
    "optimizer": {
        "sgd": spec.SGD,
        "momentum": spec.Momentum,
        "adagrad": spec.Adagrad,
        "rowwise_adagrad": spec.RowwiseAdagrad,
        "adam": spec.Adam,
        "rmsprop": spec.RMSProp,
        "ftrl": spec.FTRL,
    },
    "init": {
        "zeros": spec.Zeros,
        "constant": spec.Constant,
        "uniform": spec.Uniform,
        "normal": spec.Normal,
        "truncated_normal": spec.TruncatedNormal,
    },
    "admission": {"min_count": spec.MinCount, "probability": spec.Probability},
}


def read_tables(file: Path) -> list[TableSpec]:
    """The tables of a TOML file; :class:`InvalidArgumentError` names the file or the field."""
    content = read_toml(file)
    unknown = set(content) - {"tables"}
    if unknown:
        raise InvalidArgumentError(f"{file}", f"unknown section {sorted(unknown)[0]!r}; write [tables.NAME]")
    return parse_tables(content.get("tables", {}))


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file as a dict; :class:`InvalidArgumentError` names the file."""
    try:
        with file.open("rb") as opened:
            return tomllib.load(opened)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InvalidArgumentError(str(file), f"cannot be read: {problem}") from problem


def parse_tables(tables: Any) -> list[TableSpec]:
    """Specs from ``{name: {field: value}}``."""
    if not isinstance(tables, Mapping):
        raise InvalidArgumentError("tables", "must be sections [tables.NAME]")
    return [_table(name, entry) for name, entry in tables.items()]


def _table(name: str, entry: Any) -> TableSpec:
    label = f"tables.{name}"
    if not isinstance(entry, Mapping):
        raise InvalidArgumentError(label, "must be a section of its own")
    values = {
        key: _kind(f"{label}.{key}", KINDS[key], value) if key in KINDS else value for key, value in entry.items()
    }
    built: TableSpec = _build(label, TableSpec, {"name": name, **values})
    return built


def _kind(label: str, kinds: Mapping[str, type], value: Any) -> Any:
    given = dict(value) if isinstance(value, Mapping) else {"kind": value}
    kind = given.pop("kind", None)
    if kind not in kinds:
        raise InvalidArgumentError(f"{label}.kind", f"must be one of {', '.join(kinds)}, not {kind!r}")
    return _build(label, kinds[kind], given)


def _build(label: str, cls: Any, values: Mapping[str, Any]) -> Any:
    known = {field.name: field for field in fields(cls)}
    for name in values:
        if name not in known:
            raise InvalidArgumentError(f"{label}.{name}", f"is no field of {cls.__name__}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InvalidArgumentError(f"{label}.{name}", "is missing")
    return cls(**values)
