"""What will happen in a run of the demo: its events, known beforehand because the synthetic world is a pure function.

From it follow the things that the trainer cannot know: when each item has its first event, how well popularity alone
would predict, and how well anybody could who knew the world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.sources.world import World, WorldSpec

K = 10
HALF_LIFE_EVENTS = 10_000
BLOCK_EVENTS = 64


@dataclass(frozen=True, eq=False)
class Script:
    """The events of one run. Everything is read-only and may be used from any thread.

    ``tested``, ``popularity_hits`` and ``ideal_hits`` are bool [events]: whether an event is scored at all (it is not
    its session's first), and whether each reference has it among its best ten.
    """

    world: World
    first_ids: np.ndarray
    first_positions: np.ndarray
    tested: np.ndarray
    popularity_hits: np.ndarray
    ideal_hits: np.ndarray

    @property
    def events(self) -> int:
        """How many events there are."""
        return int(self.tested.size)

    def hit_rate(self, hits: np.ndarray, begin: int, end: int) -> float | None:
        """Share of the scored events in [begin, end) that are hits; None without any."""
        tested = self.tested[begin:end]
        return float(np.mean(hits[begin:end][tested])) if tested.any() else None


def make_script(spec: WorldSpec) -> Script:
    """Play a world with an end once, without waiting. Deterministic."""
    world = World(spec)
    block = world.events(0, spec.events or 0)
    first_ids, first_positions = np.unique(block.items, return_index=True)
    tested = block.steps > 0
    return Script(
        world=world,
        first_ids=first_ids.astype(np.uint64),
        first_positions=first_positions,
        tested=tested,
        popularity_hits=popularity_hits(block.items),
        ideal_hits=(block.ideal_ranks >= 0) & (block.ideal_ranks < K),
    )


def popularity_hits(items: np.ndarray, k: int = K) -> np.ndarray:
    """bool [n]: whether each item was among the ``k`` most frequent ones before it.

    Counts halve every ``HALF_LIFE_EVENTS`` events and are brought up to date every ``BLOCK_EVENTS``.
    """
    hits = np.zeros(items.size, bool)
    counts = np.zeros(int(items.max(initial=0)) + 1)
    fade = 0.5 ** (BLOCK_EVENTS / HALF_LIFE_EVENTS)
    for begin in range(0, items.size, BLOCK_EVENTS):
        block = items[begin : begin + BLOCK_EVENTS]
        best = np.argpartition(-counts, k - 1)[:k] if counts.size > k else np.arange(counts.size)
        hits[begin : begin + BLOCK_EVENTS] = np.isin(block, best[counts[best] > 0])
        counts *= fade
        np.add.at(counts, block, 1.0)
    return hits
