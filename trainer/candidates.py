"""Which items a step compares: the batch's own, the most met ones, and a sample of the rest, each item once.

Shape suffixes: B events, L places, C candidates, M new items, N all items of the catalog.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trainer.catalog import Catalog
    from trainer.events import EventBatch
    from trainer.history import Window


@dataclass(frozen=True)
class Located:
    """A batch and its window in the catalog's numbers.

    ``targets_B`` int64; ``history_BL`` int64, -1 where there is no event; ``latest_BL`` bool: the latest event;
    ``distinct_BL`` bool: the latest of equal items of its row. ``new_M`` int64: items that no event was of
    before the batch; ``first_M`` int64: the event of the batch that is the first of each.
    """

    targets_B: np.ndarray
    history_BL: np.ndarray
    latest_BL: np.ndarray
    distinct_BL: np.ndarray
    new_M: np.ndarray
    first_M: np.ndarray

    def target_known(self) -> np.ndarray:
        """bool [B]: an earlier event was of the target, be it in the same batch."""
        first = dict(zip(self.new_M.tolist(), self.first_M.tolist(), strict=True))
        return np.array([first.get(item, -1) < event for event, item in enumerate(self.targets_B.tolist())], bool)


def locate(catalog: Catalog, batch: EventBatch, window: Window) -> Located:
    """Find the batch's items in the catalog, and give numbers to those that have none.

    Doing it again changes nothing: an item is new until an event of it has been noted.
    """
    valid_BL = window.valid()
    catalog.make_room(len(batch) + int(valid_BL.sum()))
    targets_B = catalog.locate(batch.item_ids)
    history_BL = np.full(valid_BL.shape, -1, np.int64)
    history_BL[valid_BL] = catalog.locate(window.items[valid_BL])
    catalog.mark_met(np.setdiff1d(history_BL[valid_BL], targets_B))
    new_M = np.flatnonzero(~catalog.met)
    first_N = np.full(len(catalog), len(batch), np.int64)
    np.minimum.at(first_N, targets_B, np.arange(len(batch)))
    place_L = np.arange(valid_BL.shape[1])
    latest_BL = place_L[None, :] == window.lengths[:, None] - 1
    later_LL = place_L[None, :] > place_L[:, None]
    repeated_BL = ((history_BL[:, :, None] == history_BL[:, None, :]) & later_LL).any(axis=2)
    return Located(targets_B, history_BL, latest_BL, valid_BL & ~repeated_BL, new_M, first_N[new_M])


@dataclass(frozen=True)
class Candidates:
    """``numbers_C``: the items; ``drawn_C`` float32: chance of being drawn as a negative; ``column_N``: where an item
    stands among them, -1 if it does not."""

    numbers_C: np.ndarray
    drawn_C: np.ndarray
    column_N: np.ndarray


def draw(located: Located, weight_N: np.ndarray, head: int, tail: int, rng: np.random.Generator) -> Candidates:
    """The batch's targets, the ``head`` items of highest weight, and ``tail`` drawn from the rest without repeats.

    Only items that were met before the batch are drawn.
    """
    size = len(weight_N)
    drawn_N = np.zeros(size, np.float32)
    picked_N = np.zeros(size, bool)
    picked_N[located.targets_B] = True
    open_N = np.ones(size, bool)
    open_N[located.new_M] = False
    head = min(head, size - len(located.new_M))
    if head:
        best = np.argpartition(np.where(open_N, -weight_N, np.inf), head - 1)[:head]
        drawn_N[best] = 1.0
        picked_N[best] = True
        open_N[best] = False
    rest = np.flatnonzero(open_N)
    tail = min(tail, len(rest))
    if tail:
        drawn_N[rest] = tail / len(rest)
        picked_N[rest[rng.choice(len(rest), tail, replace=False)]] = True
    numbers_C = np.flatnonzero(picked_N)
    column_N = np.full(size, -1, np.int64)
    column_N[numbers_C] = np.arange(len(numbers_C))
    return Candidates(numbers_C, drawn_N[numbers_C], column_N)


def same_user_pairs(user_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j), i != j, of events of one user."""
    equal = user_ids[:, None] == user_ids[None, :]
    np.fill_diagonal(equal, False)
    first, second = np.nonzero(equal)
    return first, second
