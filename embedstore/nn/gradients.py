"""Gradients on their way from backward to a push.

The leaf of a forward belongs to its autograd graph alone, so a forward without a backward leaves nothing behind. When
backward reaches the leaf, a hook files it with its module. The optimizer collects what its modules filed and keeps one
tensor a table: rows of the distinct ids since the last step, with their summed gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from embedstore import _native


class Pulled:
    """Rows read from a table: ``ids`` uint64 [u], ``counts`` int64 [u] (occurrences in the forwards that read them) and
    the leaf ``rows`` [u or u + 1, dim] that collects their gradient; an extra last row is the zero row of masked ids.

    ``shared`` rows serve several forwards, which add to ``counts``.
    """

    def __init__(self, ids: np.ndarray, counts: np.ndarray, rows: torch.Tensor, shared: bool) -> None:
        self.ids = ids
        self.counts = counts
        self.rows = rows
        self.shared = shared

    @property
    def grad(self) -> torch.Tensor:
        """The gradient of the rows, [u, dim]: a view, without the zero row."""
        return cast(torch.Tensor, self.rows.grad)[: len(self.ids)]

    def forget(self) -> None:
        """Drop the gradient, and the occurrences that are not implied by one."""
        self.rows.grad = None
        if self.shared:
            self.counts[:] = 0


class Filed:
    """What backward has reached since the optimizer last collected. A copy of a module starts with none."""

    def __init__(self) -> None:
        self._pulled: dict[int, Pulled] = {}

    def add(self, pulled: Pulled) -> None:
        """File rows that got a gradient; again is harmless."""
        self._pulled.setdefault(id(pulled.rows), pulled)

    def take(self) -> list[Pulled]:
        """Everything filed, which is then no longer here."""
        pulled = list(self._pulled.values())
        self._pulled.clear()
        return pulled

    def num_ids(self) -> int:
        """Rows filed, equal ids of different forwards counted apart."""
        return sum(len(pulled.ids) for pulled in self._pulled.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Filed:
        return Filed()


def merged(pulled: Sequence[Pulled]) -> Pulled:
    """One tensor of the distinct ids, their summed gradients and occurrences; a single one stays what it is."""
    distinct = list({id(one.rows): one for one in pulled}.values())
    if len(distinct) == 1:
        return distinct[0]
    device = distinct[0].rows.device
    ids, where, _ = _native.unique(np.concatenate([one.ids for one in distinct]))
    counts = np.bincount(where, np.concatenate([one.counts for one in distinct]), len(ids)).astype(np.int64)
    index = torch.from_numpy(where.astype(np.int64, copy=False)).to(device)
    with torch.no_grad():
        shape = (len(ids), distinct[0].rows.shape[1])
        grad = torch.zeros(shape, device=device, dtype=torch.float32)
        grad.index_add_(0, index, torch.cat([d.grad.to(device) for d in distinct]))
        values = torch.cat([one.rows[: len(one.ids)].to(device) for one in distinct])
        rows = torch.empty(shape, device=device, dtype=torch.float32).index_copy_(0, index, values)
    for one in distinct:
        one.forget()
    rows.requires_grad_(True)
    rows.grad = grad
    return Pulled(ids, counts, rows, shared=False)
