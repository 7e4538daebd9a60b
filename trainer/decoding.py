"""From raw records to columns: decode, check, hash, and set aside what cannot be used.

A bad record is never fatal and never silent: it is counted, reported with its stream, position and reason, and left
where it is (the log still has it at that position). The log lines are limited in rate; the counts are exact.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias, cast

import numpy as np

from embedstore.errors import InvalidArgumentError
from embedstore.ids import hash_ids
from embedstore.interface import Origin
from trainer.events import EventBatch, Fields, Id, check_fields, decode_fields

logger = logging.getLogger(__name__)

LINES_PER_WINDOW_MAX = 10
WINDOW_S = 10.0
RECENT_MAX = 100
NAMES_CACHED_MAX = 65536


class BadRecord(NamedTuple):
    """A record that was set aside: where it stands, which field is wrong and how."""

    stream: str
    position: int
    field: str
    problem: str


class SetAside:
    """The account of bad records of one source. May be used from any thread.

    ``total`` and ``by_field`` are exact; ``recent`` keeps the last 100 records; the log gets at most 10 lines in 10
    seconds (``clock_s``, monotonic seconds), and the number held back with the next line or at :meth:`flush`.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._window_began_s = -WINDOW_S
        self._lines_in_window = 0
        self._held_back = 0
        self.total = 0
        self.by_field: Counter[str] = Counter()
        self.recent: deque[BadRecord] = deque(maxlen=RECENT_MAX)

    def report(self, stream: str, position: int, error: InvalidArgumentError) -> None:
        """Count one bad record and, within the rate, log it."""
        with self._lock:
            self.total += 1
            self.by_field[error.field] += 1
            self.recent.append(BadRecord(stream, position, error.field, error.problem))
            now_s = self._clock_s()
            if now_s - self._window_began_s >= WINDOW_S:
                self._log_held_back()
                self._window_began_s, self._lines_in_window = now_s, 0
            if self._lines_in_window >= LINES_PER_WINDOW_MAX:
                self._held_back += 1
                return
            self._lines_in_window += 1
        logger.warning("bad record set aside: %s at %d: %s", stream, position, error)

    def flush(self) -> None:
        """Log how many lines were held back, if any."""
        with self._lock:
            self._log_held_back()

    def _log_held_back(self) -> None:
        if self._held_back:
            logger.warning("%d more bad records set aside, %d in all", self._held_back, self.total)
            self._held_back = 0


class NameHashes:
    """Hashes of names that repeat (actions, surfaces), remembered up to a bound. For one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        """The 64-bit id of ``name``."""
        known = self._known.get(name)
        if known is None:
            known = int(hash_ids([name])[0])
            if len(self._known) < NAMES_CACHED_MAX:
                self._known[name] = known
        return known


def resolve_ids(ids: Sequence[Id | None]) -> np.ndarray:
    """uint64 [n] of checked ids: numbers as they are, texts hashed, None as 0."""
    kinds = set(map(type, ids))
    if kinds <= {int}:
        return np.array(ids, dtype=np.uint64)
    if kinds == {str}:
        return hash_ids(cast("Sequence[str]", ids))
    resolved = np.zeros(len(ids), dtype=np.uint64)
    texts = [(k, value) for k, value in enumerate(ids) if isinstance(value, str)]
    numbers = [(k, value) for k, value in enumerate(ids) if isinstance(value, int)]
    if texts:
        resolved[[k for k, _ in texts]] = hash_ids([value for _, value in texts])
    if numbers:
        resolved[[k for k, _ in numbers]] = np.array([value for _, value in numbers], dtype=np.uint64)
    return resolved


RawRecord: TypeAlias = bytes | Fields | InvalidArgumentError | None
"""What a source hands over for one position: an encoded event, an event taken apart, the reason why it could not be
taken apart, or None for a record without content."""


class Decoder:
    """Raw records of one source -> :class:`EventBatch`. For one thread at a time."""

    def __init__(self, set_aside: SetAside | None = None) -> None:
        self.set_aside = set_aside or SetAside()
        self._name_hash = NameHashes()

    def decode(self, origin: Origin, records: Iterable[tuple[int, RawRecord]], latest_ms: Iterable[int]) -> EventBatch:
        """The events among ``records``, each with its position inside ``origin``.

        Those later than their ``latest_ms``, and everything else that is not a valid event, are set aside.
        """
        kept: list[Fields] = []
        kept_positions: list[int] = []
        set_aside = 0
        for (position, record), latest in zip(records, latest_ms, strict=False):
            try:
                fields = fields_of(record)
                check_fields(fields, latest)
            except InvalidArgumentError as error:
                set_aside += 1
                self.set_aside.report(origin.stream, position, error)
            else:
                kept.append(fields)
                kept_positions.append(position)
        return self._batch(origin, kept, kept_positions, set_aside)

    def _batch(self, origin: Origin, kept: list[Fields], positions: list[int], set_aside: int) -> EventBatch:
        users, items, actions, times_ms, surfaces, sessions, requests, _ = zip(*kept, strict=True) if kept else [()] * 8
        return EventBatch(
            user_ids=resolve_ids(users),
            item_ids=resolve_ids(items),
            actions=np.array([self._name_hash(name) for name in actions], dtype=np.uint64),
            surfaces=np.array([self._name_hash(name) for name in surfaces], dtype=np.uint64),
            event_time_ms=np.array(times_ms, dtype=np.int64),
            session_ids=resolve_ids(sessions),
            request_ids=resolve_ids(requests),
            stream_index=np.zeros(len(kept), dtype=np.int32),
            positions=np.array(positions, dtype=np.int64),
            origins=(origin,),
            set_aside=set_aside,
        )


def fields_of(record: RawRecord) -> Fields:
    """The parts of an event, unchecked; :class:`InvalidArgumentError` when there are none."""
    if isinstance(record, bytes):
        return decode_fields(record)
    if isinstance(record, Fields):
        return record
    raise InvalidArgumentError("record", "missing") if record is None else record
