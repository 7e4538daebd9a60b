"""A client's part of a push: what no shard may see is refused before any shard sees anything."""

from __future__ import annotations

import numpy as np
import pytest

from embedstore.batches import push_part
from embedstore.errors import InvalidArgumentError
from embedstore.interface import TablePush
from embedstore.spec import TableSpec

SPEC = TableSpec("t", dim=1, num_chunks=2)


def test_gradients_whose_sum_is_not_finite_reach_no_shard() -> None:
    huge = np.array([[1.0], [3e38], [3e38]], np.float32)
    with pytest.raises(InvalidArgumentError) as caught:
        push_part(SPEC, ([1, 2, 2], huge), 2)
    assert caught.value.field == "t.grads"
    assert len(push_part(SPEC, ([1, 2, 3], huge), 2).ids) == 3


def test_occurrences_that_are_folded_stop_at_the_largest_count() -> None:
    part = push_part(SPEC, TablePush([5, 5], np.ones((2, 1), np.float32), counts=[2**32 - 1, 7]), 2)
    assert part.counts is not None
    assert part.counts.tolist() == [2**32 - 1]
