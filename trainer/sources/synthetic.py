"""The synthetic world as a source: ``synthetic://?seed=1&events=200000&rate=2000``."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from embedstore.errors import InvalidArgumentError
from embedstore.ids import hash_ids
from embedstore.interface import POSITION_MAX, Origin
from trainer.events import EventBatch, merge_batches
from trainer.sources import NO_STOPS, check_poll, check_seek, range_end
from trainer.sources.files import wall_clock_ms
from trainer.sources.world import ACTIONS, SURFACES, World, WorldSpec


class SyntheticSource:
    """The events of a :class:`World` as one stream. See :class:`trainer.sources.Source`.

    The stream is named by everything that decides its events (not by how many there are). ``live``: an event can be
    read only when ``clock_ms`` has reached its time, as if it came in just then; so ``rate`` paces the reader.
    """

    def __init__(
        self,
        spec: WorldSpec,
        *,
        live: bool = False,
        clock_ms: Callable[[], int] = wall_clock_ms,
        sleep_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self.world = World(spec)
        self._live = live
        self._clock_ms = clock_ms
        self._sleep_s = sleep_s
        self._stream = f"synthetic/{_digest(spec)}/0"
        self._position = 0
        self._action_ids = hash_ids(ACTIONS)
        self._surface_ids = hash_ids(SURFACES)

    def streams(self) -> dict[str, int]:
        """The one stream, which begins at 0."""
        return {self._stream: 0}

    def ends(self) -> dict[str, int | None]:
        """The number of events; None when endless."""
        return {self._stream: self.world.spec.events}

    def log_ends(self) -> dict[str, int]:
        """The number of events (2**63 - 1 when endless); of a live world, those that have happened."""
        return {self._stream: self._available()}

    def check_known(self, known: Mapping[str, int]) -> None:
        """Nothing: other content has another name."""

    def seek(self, positions: Mapping[str, int]) -> None:
        """See :meth:`Source.seek`."""
        check_seek(self.streams(), self.ends(), positions)
        self._position = positions.get(self._stream, self._position)

    def poll(
        self, max_events: int, timeout_s: float, *, only: str | None = None, stop_at: Mapping[str, int] = NO_STOPS
    ) -> EventBatch | None:
        """See :meth:`Source.poll`; waits only when live."""
        check_poll(self.streams(), max_events, only)
        if self._position == self._last():
            return None
        available = self._available()
        if available <= self._position:
            next_ms = int(self.world.event_time_ms(np.array([self._position]))[0])
            self._sleep_s(min(timeout_s, max(next_ms - self._clock_ms(), 1) / 1000))
            available = self._available()
            if available <= self._position:
                return merge_batches([])
        begin = self._position
        end = range_end(begin, available, max_events, stop_at.get(self._stream))
        self._position = end
        return self._batch(begin, end)

    def _last(self) -> int:
        return POSITION_MAX if self.world.spec.events is None else self.world.spec.events

    def _available(self) -> int:
        if not self._live:
            return self._last()
        begun_ms = self._clock_ms() - self.world.spec.start_ms + 1
        return min(self._last(), max(0, math.ceil(begun_ms * self.world.spec.rate / 1000)))

    def _batch(self, begin: int, end: int) -> EventBatch:
        block = self.world.events(begin, end)
        positions = np.arange(begin, end, dtype=np.int64)
        return EventBatch(
            user_ids=block.users.astype(np.uint64),
            item_ids=block.items.astype(np.uint64),
            actions=self._action_ids[block.actions],
            surfaces=self._surface_ids[block.surfaces],
            event_time_ms=self.world.event_time_ms(positions),
            session_ids=block.sessions.astype(np.uint64),
            request_ids=np.zeros(end - begin, dtype=np.uint64),
            stream_index=np.zeros(end - begin, dtype=np.int32),
            positions=positions,
            origins=(Origin(self._stream, begin, end),),
        )

    def commit(self, positions: Mapping[str, int]) -> None:
        """Nothing: any position can be made again."""

    def lag_records(self) -> dict[str, int]:
        """Events that have happened (live) or will (with an end) and have not been polled; 0 for an endless one."""
        endless = not self._live and self.world.spec.events is None
        return {self._stream: 0 if endless else max(0, self._available() - self._position)}

    def close(self) -> None:
        """Nothing to release."""


def _digest(spec: WorldSpec) -> str:
    parts = json.dumps(asdict(replace(spec, events=None)), sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def open_synthetic(uri: str, *, clock_ms: Callable[[], int] = wall_clock_ms) -> SyntheticSource:
    """The source of ``synthetic://?NAME=VALUE&...``: the fields of :class:`WorldSpec`, and ``live=1``.

    ``start_ms=now`` begins at ``clock_ms``; anything unknown or malformed raises :class:`InvalidArgumentError`.
    """
    parts = urlsplit(uri)
    if parts.netloc or parts.path.strip("/"):
        raise InvalidArgumentError("events", f"{uri!r}: expected synthetic://?NAME=VALUE&...")
    kinds = {field.name: float if field.name in ("rate", "session_events") else int for field in fields(WorldSpec)}
    values: dict[str, float] = {}
    live = False
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name == "live" and text in ("0", "1"):
            live = text == "1"
        elif name == "start_ms" and text == "now":
            values[name] = clock_ms()
        elif name not in kinds:
            raise InvalidArgumentError(
                "events", f"synthetic world has no {name}={text}; known: live, {', '.join(kinds)}"
            )
        else:
            try:
                values[name] = kinds[name](text)
            except ValueError as error:
                raise InvalidArgumentError(name, f"must be a number, not {text!r}") from error
    return SyntheticSource(WorldSpec(**values), live=live, clock_ms=clock_ms)  # type: ignore[arg-type]
