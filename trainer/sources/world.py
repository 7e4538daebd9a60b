"""A synthetic world of users and items whose truth is known.

Every item has one topic and a popularity (Zipf within its topic); items are born at a steady pace and die after a
while. Every user has a main and a second topic, which change now and then. A session has one topic, mostly one of its
user's; its events are items of that topic, some of them the natural successor of the item before, now and then
anything. All of it is a pure function of the seed and the position: events come in blocks of 4096 positions, each
drawn from a counter-based generator keyed by (seed, block), and everything that changes over time is computed from the
position, never carried along. So any position can be reached at once and always gives the same event.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from embedstore.errors import InvalidArgumentError

BLOCK_EVENTS = 4096
SESSION_EVENTS_MAX = 50
SESSION_GAP_EVENTS = 100.0
ZIPF_ITEMS = 0.8
ZIPF_USERS = 0.8
P_MAIN, P_SECOND = 0.6, 0.25
P_FOLLOW, P_STAY = 0.3, 0.9
LIFETIME_MIN, LIFETIME_MAX = 0.5, 1.5
ACTIONS = ("click", "like", "share")
ACTION_SHARES = (0.85, 0.10, 0.05)
SURFACES = ("home", "search", "related")
START_MS = 1_735_689_600_000
_SALTS = {name: np.uint64(k + 1) for k, name in enumerate(("topic", "popularity", "life", "phase", "main", "second"))}


@dataclass(frozen=True)
class WorldSpec:
    """What a world is. ``events`` None: endless. ``rate`` events per second of event time, beginning at ``start_ms``.

    ``items`` are alive on average, each for about ``lifetime_events`` events of the whole stream; a user's topics
    change every ``drift_events`` events of the stream; ``session_events`` is the mean length of a session.
    """

    seed: int = 1
    events: int | None = None
    rate: float = 1000.0
    start_ms: int = START_MS
    users: int = 5000
    items: int = 1000
    topics: int = 20
    session_events: float = 8.0
    lifetime_events: int = 100_000
    drift_events: int = 100_000

    def __post_init__(self) -> None:
        whole = {"users": 2**32, "items": 2**20, "topics": 2**12, "lifetime_events": 2**40, "drift_events": 2**40}
        for name, most in whole.items():
            least = 2 if name == "items" else 1
            if not least <= getattr(self, name) <= most:
                raise InvalidArgumentError(name, f"must be {least} to {most}, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**64:
            raise InvalidArgumentError("seed", f"must be an integer in [0, 2**64), not {self.seed}")
        if self.events is not None and not 0 <= self.events < 2**53:
            raise InvalidArgumentError("events", f"must be an integer in [0, 2**53), not {self.events}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise InvalidArgumentError("rate", f"must be above 0, not {self.rate}")
        if not 0 <= self.start_ms < 2**53:
            raise InvalidArgumentError("start_ms", f"must be an integer in [0, 2**53), not {self.start_ms}")
        if not 2 < self.session_events <= SESSION_EVENTS_MAX / 2:
            raise InvalidArgumentError("session_events", f"must be above 2 and at most {SESSION_EVENTS_MAX // 2}")


class Block(NamedTuple):
    """The events of 4096 consecutive positions: int64 [4096] each.

    ``actions`` and ``surfaces`` index the names; ``steps`` counts within the session from 0; ``topics`` is the topic
    of the session; ``ideal_ranks`` says which place the item has, from 0, for a reader who knows the world, the
    session's topic and the item before (-1 for a session's first event).
    """

    users: np.ndarray
    items: np.ndarray
    actions: np.ndarray
    surfaces: np.ndarray
    sessions: np.ndarray
    steps: np.ndarray
    topics: np.ndarray
    ideal_ranks: np.ndarray


class Catalogue(NamedTuple):
    """The items alive at one moment, by topic: their numbers, cumulative popularity, and where each topic begins."""

    numbers: np.ndarray
    cumulative: np.ndarray
    begins: np.ndarray
    rank_in_topic: np.ndarray


class World:
    """See the top of this file. Any number of threads may use one world."""

    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec
        user_weights = (1.0 + np.arange(spec.users)) ** -ZIPF_USERS
        self._user_cumulative = np.cumsum(user_weights)
        self._spacing = spec.lifetime_events / spec.items
        self._first_birth = -LIFETIME_MAX * spec.lifetime_events
        self.block = lru_cache(maxsize=4)(self._make_block)

    def item_topics(self, items: np.ndarray) -> np.ndarray:
        """int64 [n]: the true topic of each item."""
        return (self._uniform("topic", items) * self.spec.topics).astype(np.int64)

    def item_births(self, items: np.ndarray) -> np.ndarray:
        """float64 [n]: the position at which each item is born."""
        births: np.ndarray = self._first_birth + np.asarray(items) * self._spacing
        return births

    def user_topics(self, users: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] twice: each user's main and second topic at ``position``."""
        phases = self._uniform("phase", users)
        epochs = np.floor(position / self.spec.drift_events + phases).astype(np.uint64)
        keyed = np.asarray(users, dtype=np.uint64) * np.uint64(1 << 20) + epochs
        main, second = (self._uniform(name, keyed) for name in ("main", "second"))
        return (main * self.spec.topics).astype(np.int64), (second * self.spec.topics).astype(np.int64)

    def event_time_ms(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n]: when the event at each position happens."""
        elapsed_ms: np.ndarray = np.floor(np.asarray(positions, dtype=np.float64) * (1000.0 / self.spec.rate))
        return elapsed_ms.astype(np.int64) + self.spec.start_ms

    def ideal_hit_rate(self, begin: int, end: int, k: int = 10) -> float:
        """The share of the events in [begin, end) that are not their session's first and lie among the ``k`` likeliest
        for a reader who knows the world, the session's topic and the item before: no model can do better on average."""
        ranks = np.concatenate([self._part(number, begin, end).ideal_ranks for number in _blocks(begin, end)])
        tested = ranks >= 0
        return float(np.mean(ranks[tested] < k)) if tested.any() else math.nan

    def events(self, begin: int, end: int) -> Block:
        """The events of the positions [begin, end)."""
        parts = [self._part(number, begin, end) for number in _blocks(begin, end)]
        return Block(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def table(self, begin: int, end: int) -> pa.Table:
        """The events of the positions [begin, end) in the columns of an event file."""
        block = self.events(begin, end)
        return pa.table(
            {
                "user_id": block.users.astype(np.uint64),
                "item_id": block.items.astype(np.uint64),
                "action": pa.array(ACTIONS).take(pa.array(block.actions)),
                "event_time_ms": self.event_time_ms(np.arange(begin, end)),
                "surface": pa.array(SURFACES).take(pa.array(block.surfaces)),
                "session_id": block.sessions.astype(np.uint64),
            }
        )

    def _part(self, number: int, begin: int, end: int) -> Block:
        first = number * BLOCK_EVENTS
        wanted = slice(max(begin - first, 0), min(end - first, BLOCK_EVENTS))
        return Block(*(column[wanted] for column in self.block(number)))

    def _make_block(self, number: int) -> Block:
        generator = np.random.Generator(np.random.Philox(key=[self.spec.seed, number]))
        position = number * BLOCK_EVENTS
        lengths = self._session_lengths(generator)
        num_sessions = lengths.size
        draws = generator.random((num_sessions, 3))
        users = np.searchsorted(self._user_cumulative[:-1], draws[:, 0] * self._user_cumulative[-1], side="right")
        topics = self._session_topics(users, position, draws[:, 1], draws[:, 2])
        items, ranks = self._session_items(self._catalogue(position), topics, lengths, generator)
        rows, steps = np.nonzero(np.arange(SESSION_EVENTS_MAX) < lengths[:, None])
        gaps = generator.random((num_sessions, SESSION_EVENTS_MAX)) * (2 * SESSION_GAP_EVENTS)
        gaps[:, 0] = generator.random(num_sessions) * BLOCK_EVENTS
        order = np.argsort(np.cumsum(gaps, axis=1)[rows, steps], kind="stable")
        rows, steps = rows[order], steps[order]
        draws = generator.random((BLOCK_EVENTS, 2))
        surfaces = np.where(steps == 0, 0, 1 + (draws[:, 1] < 0.7))
        return Block(
            users=users[rows].astype(np.int64),
            items=items[rows, steps],
            actions=np.searchsorted(np.cumsum(ACTION_SHARES[:-1]), draws[:, 0], side="right").astype(np.int64),
            surfaces=surfaces.astype(np.int64),
            sessions=position + rows + 1,
            steps=steps,
            topics=topics[rows],
            ideal_ranks=ranks[rows, steps],
        )

    def _session_lengths(self, generator: np.random.Generator) -> np.ndarray:
        p_end = 1.0 / (self.spec.session_events - 1.0)
        more = np.log1p(-generator.random(BLOCK_EVENTS // 2)) / math.log1p(-p_end)
        lengths = np.minimum(2 + more.astype(np.int64), SESSION_EVENTS_MAX)
        ends = np.cumsum(lengths)
        num_sessions = int(np.searchsorted(ends, BLOCK_EVENTS)) + 1
        lengths = lengths[:num_sessions]
        lengths[-1] -= ends[num_sessions - 1] - BLOCK_EVENTS
        return lengths

    def _session_topics(self, users: np.ndarray, position: int, which: np.ndarray, anything: np.ndarray) -> np.ndarray:
        main, second = self.user_topics(users, position)
        other = (anything * self.spec.topics).astype(np.int64)
        return np.select([which < P_MAIN, which < P_MAIN + P_SECOND], [main, second], other)

    def _catalogue(self, position: int) -> Catalogue:
        newest = math.floor((position - self._first_birth) / self._spacing)
        oldest = max(
            0, math.floor((position - LIFETIME_MAX * self.spec.lifetime_events - self._first_birth) / self._spacing)
        )
        numbers = np.arange(oldest, newest + 1)
        lifetimes = LIFETIME_MIN + (LIFETIME_MAX - LIFETIME_MIN) * self._uniform("life", numbers)
        numbers = numbers[position < self.item_births(numbers) + lifetimes * self.spec.lifetime_events]
        topics = self.item_topics(numbers)
        ranks = self._uniform("popularity", numbers) * (self.spec.items / self.spec.topics)
        weights = (1.0 + ranks) ** -ZIPF_ITEMS
        order = np.lexsort((-weights, topics))
        begins = np.searchsorted(topics[order], np.arange(self.spec.topics + 1))
        shuffled = np.lexsort((self._uniform("phase", numbers), topics))
        place = np.empty(numbers.size, dtype=np.int64)
        place[order] = np.arange(numbers.size) - begins[topics[order]]
        return Catalogue(numbers[shuffled], np.cumsum(weights[shuffled]), begins, place[shuffled])

    def _session_items(
        self, alive: Catalogue, topics: np.ndarray, lengths: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        begins, ends = alive.begins[topics], alive.begins[topics + 1]
        weight_before = np.concatenate([[0.0], alive.cumulative])
        chosen = np.zeros((topics.size, SESSION_EVENTS_MAX), dtype=np.int64)
        ranks = np.full_like(chosen, -1)
        at = np.zeros(topics.size, dtype=np.int64)
        for step in range(int(lengths.max())):
            how, where, which = generator.random((3, topics.size))
            stays = (where < P_STAY) & (ends > begins)
            low = np.where(stays, weight_before[begins], 0.0)
            high = np.where(stays, weight_before[ends], alive.cumulative[-1])
            drawn = np.searchsorted(alive.cumulative, low + which * (high - low), side="right")
            drawn = np.minimum(drawn, np.where(stays, ends, alive.numbers.size) - 1)
            follows = (at >= begins) & (at < ends) & (step > 0)
            successor = np.where(at + 1 < ends, at + 1, begins)
            now = np.where(follows & (how < P_FOLLOW), successor, drawn)
            if step:
                ranks[:, step] = _ideal_ranks(alive, now, successor, follows, begins, ends)
            chosen[:, step] = alive.numbers[now]
            at = now
        return chosen, ranks

    def _uniform(self, salt: str, keys: np.ndarray) -> np.ndarray:
        """float64 [n] in [0, 1), a pure function of (seed, salt, key): the splitmix64 finalizer over their mix."""
        step = np.uint64(0x9E3779B97F4A7C15)
        with np.errstate(over="ignore"):
            mixed = _mix(np.array([self.spec.seed], dtype=np.uint64) + _SALTS[salt] * step)
            mixed = _mix(np.asarray(keys).astype(np.uint64) * step + mixed)
        return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def _ideal_ranks(
    alive: Catalogue, now: np.ndarray, successor: np.ndarray, follows: np.ndarray, begins: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """The successor comes first, then the session's topic by popularity, then everything else (ranked last)."""
    place, place_of_successor = alive.rank_in_topic[now], alive.rank_in_topic[successor % alive.numbers.size]
    shifted = place + (follows & (place < place_of_successor))
    in_topic = (now >= begins) & (now < ends)
    ranks = np.where(in_topic, shifted, alive.numbers.size)
    return np.where(follows & (now == successor), 0, ranks)


def _blocks(begin: int, end: int) -> range:
    return range(begin // BLOCK_EVENTS, max(-(-end // BLOCK_EVENTS), begin // BLOCK_EVENTS + 1))
