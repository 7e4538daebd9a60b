"""All items that the trainer knows: their ids, how often each was met lately, and a matrix of their rows for ranking.

An item's number is its place in these arrays; numbers are stable until :meth:`Catalog.make_room` drops items. Counts
decay with event time, one column for each half-life. They are kept as ``sum(2 ** ((t - reference) / half_life))`` and
read as ``sum * 2 ** ((reference - clock) / half_life)``, so that an event touches one row; the reference moves up
before the numbers grow large.

``rows`` mirrors the store: an item whose row may have changed there is *stale* until it has been pulled again. One
trainer knows what it pushed itself; what others push is picked up by pulling a few rows in turn all the time.

Shape suffixes: N items, K half-lives, D dim. Not safe for concurrent use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from embedstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REFERENCE_DRIFT_MAX = 64.0
_FIRST_CAPACITY = 1024
_FLOOR = 0.1


class Catalog:
    """See the module. At ``items_max`` the least met items are forgotten (they come back with their next event)."""

    def __init__(
        self, dim: int, half_lives_s: Sequence[float], *, items_max: int = 1 << 20, device: str | torch.device = "cpu"
    ) -> None:
        if not half_lives_s or min(half_lives_s) <= 0:
            raise InvalidArgumentError("Catalog.half_lives_s", f"must be positive and at least one, not {half_lives_s}")
        if items_max < _FIRST_CAPACITY:
            raise InvalidArgumentError("Catalog.items_max", f"must be >= {_FIRST_CAPACITY}, not {items_max}")
        self.items_max = items_max
        self._half_lives_ms = np.array(half_lives_s, np.float64) * 1000.0
        self._size = 0
        self._number_of: dict[int, int] = {}
        self._ids = np.zeros(_FIRST_CAPACITY, np.uint64)
        self._sums = np.zeros((_FIRST_CAPACITY, len(half_lives_s)), np.float64)
        self._last_event_ms = np.zeros(_FIRST_CAPACITY, np.int64)
        self._stale = np.zeros(_FIRST_CAPACITY, bool)
        self._met = np.zeros(_FIRST_CAPACITY, bool)
        self._rows = torch.zeros(_FIRST_CAPACITY, dim, device=device)
        self._clock_ms = 0
        self._reference_ms = 0
        self._turn = 0

    def __len__(self) -> int:
        return self._size

    @property
    def ids(self) -> np.ndarray:
        """uint64 [N]."""
        return self._ids[: self._size]

    @property
    def rows(self) -> torch.Tensor:
        """float32 [N, D] on the device, as last pulled."""
        return self._rows[: self._size]

    @property
    def last_event_ms(self) -> np.ndarray:
        """int64 [N]: event time of each item's latest event, 0 for one that is known without any."""
        return self._last_event_ms[: self._size]

    @property
    def met(self) -> np.ndarray:
        """bool [N]: an event of the item has been noted, or it is known to have been met."""
        return self._met[: self._size]

    def mark_met(self, numbers: np.ndarray) -> None:
        """These items were met before, though no event of theirs was noted here."""
        self._met[numbers] = True

    def make_room(self, count: int) -> None:
        """Forget the least met items unless ``count`` more fit. Numbers change."""
        if self._size + count <= self.items_max:
            return
        keep = max(0, self.items_max - max(count, self.items_max // 8))
        met = self._sums[: self._size, -1]
        kept = np.sort(np.argsort(-met, kind="stable")[:keep])
        for array in (self._ids, self._sums, self._last_event_ms, self._stale, self._met):
            array[: len(kept)] = array[kept]
        self._rows[: len(kept)] = self._rows[torch.from_numpy(kept).to(self._rows.device)]
        self._size = len(kept)
        self._number_of = {item: number for number, item in enumerate(self.ids.tolist())}

    def locate(self, item_ids: np.ndarray) -> np.ndarray:
        """The numbers of ``item_ids`` (uint64 [n]) as int64 [n]; unknown ones are taken in, in order of appearance."""
        unique, first, inverse = np.unique(item_ids, return_index=True, return_inverse=True)
        numbers = np.array([self._number_of.get(item, -1) for item in unique.tolist()], np.int64)
        new = np.flatnonzero(numbers < 0)
        if len(new):
            new = new[np.argsort(first[new])]
            if self._size + len(new) > self.items_max:
                raise InvalidArgumentError("Catalog.items_max", f"{self.items_max} cannot hold one batch more")
            numbers[new] = np.arange(self._size, self._size + len(new))
            self._take_in(unique[new])
        located: np.ndarray = numbers[inverse]
        return located

    def note(self, numbers: np.ndarray, event_time_ms: np.ndarray) -> None:
        """Count one event for each entry of ``numbers``, at its event time."""
        if not len(numbers):
            return
        if not self._reference_ms:
            self._reference_ms = int(event_time_ms.min())
        self._clock_ms = max(self._clock_ms, int(event_time_ms.max()))
        if ((self._clock_ms - self._reference_ms) / self._half_lives_ms).max() > _REFERENCE_DRIFT_MAX:
            self._sums[: self._size] *= self._decay()
            self._reference_ms = self._clock_ms
        age_nK = (np.minimum(event_time_ms, self._clock_ms) - self._reference_ms)[:, None] / self._half_lives_ms
        np.add.at(self._sums, numbers, np.exp2(age_nK))
        np.maximum.at(self._last_event_ms, numbers, event_time_ms)
        self._met[numbers] = True

    def counts(self) -> np.ndarray:
        """Decayed counts at the latest event time, float64 [N, K]."""
        decayed: np.ndarray = self._sums[: self._size] * self._decay()
        return decayed

    def popularity(self, counts_NK: np.ndarray | None = None) -> torch.Tensor:
        """Logs of the decayed counts, float32 [N, K] on the device: what the scorer takes."""
        counts_NK = self.counts() if counts_NK is None else counts_NK
        logs_NK = np.log(counts_NK.astype(np.float32) + np.float32(_FLOOR))
        return torch.from_numpy(logs_NK).to(self._rows.device)

    # -- the mirror of the store's rows ------------------------------------------------------------------------------

    def mark_stale(self, numbers: np.ndarray | slice = slice(None)) -> None:
        """These items (default all) must be pulled again before they are used."""
        self._stale[: self._size][numbers] = True

    def to_pull(self, refresh_rows: int) -> np.ndarray:
        """Numbers of all stale items, and of the next ``refresh_rows`` others in turn."""
        picked = self._stale[: self._size].copy()
        if refresh_rows and self._size:
            turn = (self._turn + np.arange(min(refresh_rows, self._size))) % self._size
            self._turn = int(turn[-1] + 1)
            picked[turn] = True
        return np.flatnonzero(picked)

    def store_rows(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        """Take pulled rows, float32 [n, D], of the items ``numbers``."""
        self._rows[torch.from_numpy(numbers).to(self._rows.device)] = torch.from_numpy(rows).to(self._rows.device)
        self._stale[numbers] = False

    # -- state -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Everything but the rows, as arrays for a cut."""
        return {
            "ids": self.ids.copy(),
            "sums": self._sums[: self._size].copy(),
            "last_event_ms": self.last_event_ms.copy(),
            "met": self.met.copy(),
            "clock": np.array([self._clock_ms, self._reference_ms], np.int64),
            "half_lives_ms": self._half_lives_ms.copy(),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take the place of :meth:`state`'s catalog; all rows are stale. The half-lives must be the same."""
        if not np.array_equal(state["half_lives_ms"], self._half_lives_ms):
            raise InvalidArgumentError("half_lives_s", "the saved counts were kept with other half-lives")
        self._size = 0
        self._number_of = {}
        self._take_in(np.asarray(state["ids"], np.uint64))
        self._sums[: self._size] = state["sums"]
        self._last_event_ms[: self._size] = state["last_event_ms"]
        self._met[: self._size] = state["met"]
        self._clock_ms, self._reference_ms = (int(value) for value in state["clock"])

    def _decay(self) -> np.ndarray:
        decay: np.ndarray = np.exp2((self._reference_ms - self._clock_ms) / self._half_lives_ms)
        return decay

    def _take_in(self, ids: np.ndarray) -> None:
        begin, end = self._size, self._size + len(ids)
        self._reserve(end)
        self._ids[begin:end] = ids
        self._sums[begin:end] = 0.0
        self._last_event_ms[begin:end] = 0
        self._stale[begin:end] = True
        self._met[begin:end] = False
        self._rows[begin:end] = 0.0
        self._number_of.update(zip(ids.tolist(), range(begin, end), strict=True))
        self._size = end

    def _reserve(self, size: int) -> None:
        capacity = len(self._ids)
        if size <= capacity:
            return
        capacity = max(size, 2 * capacity)
        for name in ("_ids", "_sums", "_last_event_ms", "_stale", "_met"):
            old = getattr(self, name)
            grown = np.zeros((capacity, *old.shape[1:]), old.dtype)
            grown[: len(old)] = old
            setattr(self, name, grown)
        rows = torch.zeros(capacity, self._rows.shape[1], device=self._rows.device)
        rows[: len(self._rows)] = self._rows
        self._rows = rows
