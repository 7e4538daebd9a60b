"""How a table keeps its embeddings: as float32, or packed for serving.

``int8`` and ``int4`` keep groups of 32 numbers with a float16 scale and bias each; native/quantize.h has the formats.
Tables that train keep float32.
"""

from __future__ import annotations

from typing import Literal

from embedstore.errors import InvalidArgumentError

RowFormat = Literal["fp32", "fp16", "int8", "int4"]
NATIVE_ROW_TYPES: dict[RowFormat, int] = {"fp32": 0, "fp16": 1, "int8": 2, "int4": 3}


def as_row_format(rows: str | None, *, embeddings_only: bool = True) -> RowFormat:
    """The format that ``rows`` names, fp32 for None; InvalidArgumentError when there is none or the table trains."""
    if rows is None:
        return "fp32"
    if not isinstance(rows, str) or rows not in NATIVE_ROW_TYPES:
        raise InvalidArgumentError("rows", f"must be fp32, fp16, int8 or int4, not {rows!r}")
    if rows != "fp32" and not embeddings_only:
        raise InvalidArgumentError("rows", f"must be fp32 beside optimizer state, not {rows}")
    return rows
