"""An answer that is not of the question is refused by the client, whatever shard it came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedstore import wire
from embedstore.batches import Lookup, Piece, read_pull
from embedstore.errors import InvalidArgumentError
from embedstore.interface import Rows
from embedstore.spec import TableSpec

IDS = np.arange(3, dtype=np.uint64)
LOOKUP = Lookup(0, TableSpec("t", dim=2, num_chunks=2), IDS)
PIECE = Piece(0, 0, IDS, None)


def answer(*, table: str = "t", num_ids: int = 3, dim: int = 2, dtype: Any = np.float16, known: Any = None) -> bytes:
    writer = wire.PullResponseWriter()
    rows = np.ones((num_ids, dim), dtype)
    meta = None
    if known is not None:
        columns = [np.ones(known, kind) for kind in (bool, np.uint32, np.int64, np.int64)]
        meta = Rows(rows, *columns)
    writer.table(table, dim, num_ids, np.dtype(dtype), rows.tobytes(), meta)
    return writer.join()


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"table": "u"}, "table"),
        ({"num_ids": 2}, "rows"),
        ({"dim": 3}, "rows"),
        ({"dtype": np.float32}, "dtype"),
        ({"known": 2, "num_ids": 2}, "rows"),
    ],
)
def test_what_was_not_asked_for_is_refused_by_name(wrong: dict[str, Any], field: str, meta: bool) -> None:
    right: dict[str, Any] = {"known": 3} if meta else {}
    kind = np.dtype(np.float16)
    [(_, found)] = read_pull([LOOKUP], [PIECE], answer(**right), dtype=kind, meta=meta)
    assert found.rows is not None
    assert found.rows.dtype == kind
    shown = {**right, **wrong}
    if meta and "num_ids" in wrong:
        shown["known"] = wrong["num_ids"]
    with pytest.raises(InvalidArgumentError) as refused:
        read_pull([LOOKUP], [PIECE], answer(**shown), dtype=kind, meta=meta)
    assert refused.value.field == f"PullResponse.tables[0].{field}"
