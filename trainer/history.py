"""Each user's latest events: what the sequence model reads, kept so that a replay sees what the first reading saw.

An entry carries the stream and position that it came from. An event sees the entries of its user that came before it:
those of its own stream at lower positions, and those of other streams that had arrived, or, when it is read again, that
lie before it in event time. So a replayed event never sees itself or its own future.

Memory holds up to ``users_max`` users in one array ``[users_max, depth, COLUMNS]``, each user's entries oldest first
and right-aligned; the least recently used move to RocksDB. An entry leaves the array for ``_spill`` instead of
being dropped while a replay from the committed positions could still need it: until it and the ``length`` entries after
it all lie below the committed positions. A user who is already past a position is never appended to at or below it, so
reading events twice is harmless, and RocksDB may be ahead of the trainer's cut.

Not safe for concurrent use: one trainer owns one history.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rocksdict import Options, Rdict, WriteBatch, WriteOptions

from embedstore.errors import CorruptCheckpointError, InvalidArgumentError, StoreLockedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trainer.events import EventBatch

ITEM, ACTION, SURFACE, SESSION, TIME, STREAM, POSITION = range(7)
COLUMNS: Final = 7
FORMAT: Final = 1
DEPTH_MIN: Final = 32
_META = b"meta"
_USER = b"u"


@dataclass(frozen=True)
class Window:
    """What ``n`` events see of their users: left-aligned, oldest first, zero behind ``lengths``.

    ``items``, ``actions``, ``surfaces`` uint64 [n, length]; ``times_ms`` int64 [n, length]; ``lengths`` int64 [n];
    ``session_seen`` bool [n]: an earlier event of the same session is among the user's latest entries.
    """

    items: np.ndarray
    actions: np.ndarray
    surfaces: np.ndarray
    times_ms: np.ndarray
    lengths: np.ndarray
    session_seen: np.ndarray

    def valid(self) -> np.ndarray:
        """bool [n, length]: which places hold an event."""
        mask: np.ndarray = np.arange(self.items.shape[1])[None, :] < self.lengths[:, None]
        return mask


class HistoryStore:
    """See the module. ``path`` None: memory only, and the least recently used users are forgotten at ``users_max``.

    ``length``: entries that an event sees; ``depth``: entries kept, among which sessions are recognised (default: twice
    the length and at least ``DEPTH_MIN``).
    """

    def __init__(self, path: Path | None, *, length: int, users_max: int = 1 << 17, depth: int | None = None) -> None:
        if length < 1:
            raise InvalidArgumentError("HistoryStore.length", f"must be >= 1, not {length}")
        if users_max < 16:
            raise InvalidArgumentError("HistoryStore.users_max", f"must be >= 16, not {users_max}")
        self.length = length
        self.users_max = users_max
        self._depth = max(2 * length, DEPTH_MIN) if depth is None else depth
        if self._depth < length:
            raise InvalidArgumentError("HistoryStore.depth", f"must be >= length {length}, not {self._depth}")
        self._ring = np.zeros((users_max, self._depth, COLUMNS), np.int64)
        self._slot_of: dict[int, int] = {}
        self._user_of = np.zeros(users_max, np.uint64)
        self._used = np.zeros(users_max, np.int64)
        self._dirty = np.zeros(users_max, bool)
        self._free = list(range(users_max - 1, -1, -1))
        self._spill: dict[int, list[np.ndarray]] = {}
        self._tick = 0
        self._streams: list[str] = []
        self._heads = np.zeros(1, np.int64)
        self._committed = np.zeros(1, np.int64)
        self._stored_users = False
        self._db: Any = None
        if path is not None:
            self._open(path)

    def __len__(self) -> int:
        """Users in memory."""
        return len(self._slot_of)

    @property
    def spilled_entries(self) -> int:
        """Entries kept beyond the array because a replay could need them."""
        return sum(len(entries) for entries in self._spill.values())

    def committed(self, stream: str) -> int:
        """Position of ``stream`` below which a replay may not find all it needs."""
        return int(self._committed[self._streams.index(stream) + 1]) if stream in self._streams else 0

    def commit(self, positions: Mapping[str, int]) -> None:
        """No replay will begin below ``positions`` any more: let go of what only such a replay would need."""
        for stream, position in positions.items():
            number = self._number(stream)
            self._committed[number] = max(self._committed[number], position)
        for slot in list(self._spill):
            entries = np.array([*self._spill[slot], *self._ring[slot]])
            keep = _needed(entries, self._committed, self.length)[: len(self._spill[slot])]
            first = int(np.argmax(keep)) if keep.any() else len(keep)
            if first:
                self._dirty[slot] = True
                self._spill[slot] = self._spill[slot][first:]
            if not self._spill[slot]:
                del self._spill[slot]

    def extend(self, batch: EventBatch, floors: Mapping[str, int] | None = None) -> Window:
        """What each event of ``batch`` sees, and take the events in; those below ``floors`` are only looked up."""
        self._tick += 1
        n = len(batch.positions)
        numbers = np.array([self._number(origin.stream) for origin in batch.origins], np.int64)
        entries_n7 = _entries(batch, numbers)
        slots_n = self._slots(batch.user_ids)
        old_n = self._old(slots_n, entries_n7, floors or {})
        seen_nL7 = np.zeros((n, self.length, COLUMNS), np.int64)
        lengths_n = np.zeros(n, np.int64)
        session_n = np.zeros(n, bool)
        if not old_n.all():
            new = np.flatnonzero(~old_n)
            seen_nL7[new], lengths_n[new], session_n[new] = self._append(slots_n[new], entries_n7[new])
        for i in np.flatnonzero(old_n):
            rows = self._look_back(int(slots_n[i]), entries_n7[i])
            latest = rows[-self.length :]
            seen_nL7[i, : len(latest)], lengths_n[i] = latest, len(latest)
            session_n[i] = _same_session(rows, entries_n7[i])
        np.maximum.at(self._heads, entries_n7[:, STREAM], entries_n7[:, POSITION] + 1)
        return Window(
            items=seen_nL7[:, :, ITEM].view(np.uint64),
            actions=seen_nL7[:, :, ACTION].view(np.uint64),
            surfaces=seen_nL7[:, :, SURFACE].view(np.uint64),
            times_ms=seen_nL7[:, :, TIME],
            lengths=lengths_n,
            session_seen=session_n,
        )

    def flush(self) -> None:
        """Write every changed user and wait until the disk has it (for a cut)."""
        if self._db is not None:
            self._write(np.flatnonzero(self._dirty), sync=True)

    def close(self) -> None:
        """Flush and release the directory."""
        if self._db is not None:
            self.flush()
            self._db.close()
            self._db = None

    # -- memory ------------------------------------------------------------------------------------------------------

    def _append(self, slots_n: np.ndarray, entries_n7: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take in new events. Lays out, for each user, its array row and then its events of this batch, one user
        after the other, so that each event's past is what stands directly before it."""
        n, depth, length = len(slots_n), self._depth, self.length
        users_u, user_n, count_u = np.unique(slots_n, return_inverse=True, return_counts=True)
        before_u = np.cumsum(count_u) - count_u
        order_n = np.argsort(user_n, kind="stable")
        rank_n = np.empty(n, np.int64)
        rank_n[order_n] = np.arange(n) - np.repeat(before_u, count_u)
        start_u = depth * np.arange(len(users_u)) + before_u
        flat = np.empty((depth * len(users_u) + n, COLUMNS), np.int64)
        flat[start_u[:, None] + np.arange(depth)] = self._ring[users_u]
        place_n = start_u[user_n] + depth + rank_n
        flat[place_n] = entries_n7

        fill_u = (self._ring[users_u, :, STREAM] > 0).sum(axis=1)
        lengths_n = np.minimum(length, fill_u[user_n] + rank_n)
        seen_nL7 = flat[np.minimum(place_n[:, None] - lengths_n[:, None] + np.arange(length), len(flat) - 1)]
        seen_nL7[np.arange(length)[None, :] >= lengths_n[:, None]] = 0
        past_nK = place_n[:, None] + np.arange(-depth, 0)
        session_n = ((flat[past_nK, SESSION] == entries_n7[:, None, SESSION]) & (flat[past_nK, STREAM] > 0)).any(axis=1)
        session_n &= entries_n7[:, SESSION] != 0

        self._keep_fallen(flat, users_u, start_u, count_u)
        self._ring[users_u] = flat[(start_u + count_u)[:, None] + np.arange(depth)]
        self._dirty[users_u] = True
        return seen_nL7, lengths_n, session_n

    def _keep_fallen(self, flat: np.ndarray, users_u: np.ndarray, start_u: np.ndarray, count_u: np.ndarray) -> None:
        pending = np.concatenate([[0], np.cumsum(self._pending(flat))])
        fallen = (
            np.repeat(start_u, count_u) + np.arange(count_u.sum()) - np.repeat(np.cumsum(count_u) - count_u, count_u)
        )
        needed = (flat[fallen, STREAM] > 0) & (pending[fallen + self.length + 1] > pending[fallen])
        if needed.any():
            slots = np.repeat(users_u, count_u)
            for slot, place in zip(slots[needed].tolist(), fallen[needed].tolist(), strict=True):
                self._spill.setdefault(slot, []).append(flat[place].copy())

    def _pending(self, entries: np.ndarray) -> np.ndarray:
        pending: np.ndarray = entries[..., POSITION] >= self._committed[entries[..., STREAM]]
        return pending & (entries[..., STREAM] > 0)

    def _old(self, slots_n: np.ndarray, entries_n7: np.ndarray, floors: Mapping[str, int]) -> np.ndarray:
        """Which events are not to be taken in: below the floor, or their user is already past them."""
        stream_n, position_n = entries_n7[:, STREAM], entries_n7[:, POSITION]
        floor_s = np.zeros(len(self._heads), np.int64)
        for stream, floor in floors.items():
            floor_s[self._number(stream)] = floor
        old_n: np.ndarray = position_n < floor_s[stream_n]
        if (position_n >= self._heads[stream_n]).all():
            return old_n
        ring_nK7 = self._ring[slots_n]
        same_nK = ring_nK7[:, :, STREAM] == stream_n[:, None]
        old_n |= np.where(same_nK, ring_nK7[:, :, POSITION], -1).max(axis=1) >= position_n
        if self._spill:
            for i in np.flatnonzero(~old_n):
                kept = self._spill.get(int(slots_n[i]), ())
                old_n[i] = any(e[STREAM] == stream_n[i] and e[POSITION] >= position_n[i] for e in kept)
        return old_n

    def _look_back(self, slot: int, entry: np.ndarray) -> np.ndarray:
        ring = self._ring[slot]
        rows = np.array([*self._spill[slot], *ring]) if slot in self._spill else ring
        same = rows[:, STREAM] == entry[STREAM]
        before = np.where(same, rows[:, POSITION] < entry[POSITION], rows[:, TIME] < entry[TIME])
        seen: np.ndarray = rows[before & (rows[:, STREAM] > 0)]
        return seen

    def _number(self, stream: str) -> int:
        if stream not in self._streams:
            self._streams.append(stream)
            self._heads = np.append(self._heads, 0)
            self._committed = np.append(self._committed, 0)
        return self._streams.index(stream) + 1

    # -- users in and out --------------------------------------------------------------------------------------------

    def _slots(self, user_ids: np.ndarray) -> np.ndarray:
        users = user_ids.tolist()
        slots = [self._slot_of.get(user, -1) for user in users]
        missing = sorted({user for user, slot in zip(users, slots, strict=True) if slot < 0})
        present = np.array([slot for slot in slots if slot >= 0], np.int64)
        self._used[present] = self._tick
        if missing:
            self._admit(missing)
            slots = [self._slot_of[user] for user in users]
        return np.array(slots, np.int64)

    def _admit(self, users: list[int]) -> None:
        if len(users) > len(self._free):
            self._evict(max(len(users), self.users_max // 16))
        stored: list[bytes | None] = [None] * len(users)
        if self._stored_users:
            stored = self._db.get([_USER + user.to_bytes(8, "big") for user in users])
        for user, value in zip(users, stored, strict=True):
            slot = self._free.pop()
            self._slot_of[user] = slot
            self._user_of[slot] = user
            self._used[slot] = self._tick
            self._ring[slot] = 0
            self._dirty[slot] = False
            if value is not None:
                rows = np.frombuffer(value, "<i8").reshape(-1, COLUMNS).astype(np.int64)
                inner = rows[-self._depth :]
                self._ring[slot, self._depth - len(inner) :] = inner
                if len(rows) > self._depth:
                    self._spill[slot] = list(rows[: -self._depth])

    def _evict(self, count: int) -> None:
        taken = np.fromiter(self._slot_of.values(), np.int64, len(self._slot_of))
        idle = taken[self._used[taken] < self._tick]
        if len(idle) + len(self._free) < count:
            raise InvalidArgumentError("HistoryStore.users_max", f"{self.users_max} cannot hold the users of one batch")
        oldest = idle[np.argsort(self._used[idle], kind="stable")[:count]]
        if self._db is not None:
            self._write(oldest[self._dirty[oldest]], sync=False)
        for slot in oldest.tolist():
            del self._slot_of[int(self._user_of[slot])]
            self._spill.pop(slot, None)
            self._free.append(slot)

    # -- disk --------------------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> None:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise InvalidArgumentError("state", str(problem)) from problem
        try:
            self._db = Rdict(str(path), options)
            meta = self._db.get(_META)
        except Exception as problem:
            text = str(problem)
            if "IO error" in text and "lock" in text.lower():
                raise StoreLockedError(str(path)) from problem
            raise CorruptCheckpointError(str(path), text) from problem
        if meta is None:
            return
        known = json.loads(meta)
        if known.get("format") != FORMAT:
            raise CorruptCheckpointError(
                str(path), f"history format {known.get('format')}, this release reads {FORMAT}"
            )
        self._streams = list(known["streams"])
        self._heads = np.array([0, *known["heads"]], np.int64)
        self._committed = np.array([0, *known["committed"]], np.int64)
        self._stored_users = True

    def _write(self, slots: np.ndarray, *, sync: bool) -> None:
        """Users and heads in one write batch: the heads are never behind any stored user."""
        batch = WriteBatch(raw_mode=True)
        for slot in slots.tolist():
            row = self._ring[slot]
            rows = row[row[:, STREAM] > 0]
            if slot in self._spill:
                rows = np.concatenate([np.array(self._spill[slot]), rows])
            batch.put(_USER + int(self._user_of[slot]).to_bytes(8, "big"), rows.astype("<i8").tobytes())
        meta = {
            "format": FORMAT,
            "streams": self._streams,
            "heads": self._heads[1:].tolist(),
            "committed": self._committed[1:].tolist(),
        }
        batch.put(_META, json.dumps(meta).encode())
        options = WriteOptions()
        options.sync = sync
        self._db.write(batch, options)
        self._dirty[slots] = False
        self._stored_users = True


def _entries(batch: EventBatch, numbers: np.ndarray) -> np.ndarray:
    entries = np.empty((len(batch.positions), COLUMNS), np.int64)
    entries[:, ITEM] = batch.item_ids.view(np.int64)
    entries[:, ACTION] = batch.actions.view(np.int64)
    entries[:, SURFACE] = batch.surfaces.view(np.int64)
    entries[:, SESSION] = batch.session_ids.view(np.int64)
    entries[:, TIME] = batch.event_time_ms
    entries[:, STREAM] = numbers[batch.stream_index] if len(numbers) else 0
    entries[:, POSITION] = batch.positions
    return entries


def _needed(entries: np.ndarray, committed: np.ndarray, length: int) -> np.ndarray:
    """Which of one user's entries (oldest first, empty ones last or first) a replay from ``committed`` could need."""
    filled = entries[:, STREAM] > 0
    pending = filled & (entries[:, POSITION] >= committed[entries[:, STREAM]])
    total = np.concatenate([[0], np.cumsum(pending)])
    last = np.minimum(np.arange(len(entries)) + length + 1, len(entries))
    needed: np.ndarray = filled & (total[last] > total[:-1])
    return needed


def _same_session(rows: np.ndarray, entry: np.ndarray) -> bool:
    return bool(entry[SESSION] != 0 and (rows[:, SESSION] == entry[SESSION]).any())
