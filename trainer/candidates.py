"""Which items a step compares: the batch's own, the most met ones, and a sample of the rest, each item once.

Shape suffixes: B events, L places, C candidates, U items used by the step, P pairs, N all known items.
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
    ``distinct_BL`` bool: the latest of equal items of its row. ``known``: how many items were known before the batch;
    ``first_seen_B1`` int64 [N - known]: for each later one, the event of the batch that brought it (-1: none did).
    """

    targets_B: np.ndarray
    history_BL: np.ndarray
    latest_BL: np.ndarray
    distinct_BL: np.ndarray
    known: int
    first_seen: np.ndarray

    def target_known(self) -> np.ndarray:
        """bool [B]: an earlier event was of the target, be it in the same batch."""
        first = np.concatenate([np.full(self.known, -1, np.int64), self.first_seen])
        answer: np.ndarray = first[self.targets_B] < np.arange(len(self.targets_B))
        return answer


def locate(catalog: Catalog, batch: EventBatch, window: Window) -> Located:
    """Find the batch's items in the catalog, and take in those that are new."""
    valid_BL = window.valid()
    catalog.make_room(len(batch) + int(valid_BL.sum()))
    known = len(catalog)
    targets_B = catalog.locate(batch.item_ids)
    history_BL = np.full(valid_BL.shape, -1, np.int64)
    history_BL[valid_BL] = catalog.locate(window.items[valid_BL])
    first_seen = np.full(len(catalog) - known, len(batch), np.int64)
    new_B = targets_B >= known
    np.minimum.at(first_seen, targets_B[new_B] - known, np.flatnonzero(new_B))
    first_seen[first_seen == len(batch)] = -1
    place_L = np.arange(valid_BL.shape[1])
    latest_BL = place_L[None, :] == window.lengths[:, None] - 1
    later_LL = place_L[None, :] > place_L[:, None]
    repeated_BL = ((history_BL[:, :, None] == history_BL[:, None, :]) & later_LL).any(axis=2)
    return Located(targets_B, history_BL, latest_BL, valid_BL & ~repeated_BL, known, first_seen)


@dataclass(frozen=True)
class Candidates:
    """``numbers_C``: the items; ``drawn_C`` float32: chance of being drawn as a negative; ``column_N``: where an item
    stands among them, -1 if it does not."""

    numbers_C: np.ndarray
    drawn_C: np.ndarray
    column_N: np.ndarray


def draw(located: Located, weight_N: np.ndarray, head: int, tail: int, rng: np.random.Generator) -> Candidates:
    """The batch's targets, the ``head`` items of highest weight, and ``tail`` drawn from the rest without repeats.

    Only items that were known before the batch are drawn.
    """
    known, size = located.known, len(weight_N)
    drawn_N = np.zeros(size, np.float32)
    picked_N = np.zeros(size, bool)
    picked_N[located.targets_B] = True
    head = min(head, known)
    if head:
        best = np.argpartition(-weight_N[:known], head - 1)[:head]
        drawn_N[best] = 1.0
        picked_N[best] = True
    rest = np.flatnonzero(drawn_N[:known] == 0.0)
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
