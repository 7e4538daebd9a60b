"""Streams of one store: where they stand, whose they are, and what a push with origins may do.

What must always hold:

- a push decides and applies under the locks of its streams, taken in the order of their names, so that two pushes that
  share a stream go through one after another, and pushes that share none run side by side;
- whatever changes which tables or streams exist, or to whom a stream belongs, holds the gate exclusively; pushes hold
  it shared. So the tables that a push decided over are the tables that it is applied to;
- ``position`` of a stream is the highest watermark any chunk has reached: where the chunks of a new table begin.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from embedstore.errors import (
    GapError,
    InvalidArgumentError,
    LimitError,
    StaleGenerationError,
    UnknownStreamError,
)
from embedstore.interface import Origin, StreamState, check_position
from embedstore.v1 import manifest_pb2

CLIENT_PREFIX = "client/"
ORIGINS_PER_PUSH_MAX = 4096
STREAMS_MAX = 1 << 16
CLIENT_STREAMS_MAX = 1024
GENERATION_MAX = 2**63 - 1
STANDBY_SILENCE_S = 10.0
LOOK_S = 0.1
_log = logging.getLogger(__name__)

Watermarks = Mapping[str, int]


def is_client(stream: str) -> bool:
    """Whether the stream is a client's own: it opens by itself, has no generation, and a gap in it is accepted."""
    return stream.startswith(CLIENT_PREFIX)


class Gate:
    """A lock that many may share or one may hold alone; who wants it alone goes first. Not reentrant."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._waiting = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold it beside others."""
        with self._changed:
            while self._alone or self._waiting:
                self._changed.wait()
            self._shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._shared -= 1
                if not self._shared:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it with nobody beside."""
        with self._changed:
            self._waiting += 1
            while self._alone or self._shared:
                self._changed.wait()
            self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


@dataclass
class Stream:
    """One known stream; ``begin`` and ``generation`` are what the manifest holds. Fields change under ``lock``
    (position) or with the gate held alone (the others)."""

    name: str
    begin: int
    position: int
    generation: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def to_proto(self, begin: int) -> manifest_pb2.StreamManifest:
        """The manifest entry, with ``begin`` for the stream's."""
        return manifest_pb2.StreamManifest(stream=self.name, begin=begin, generation=self.generation)


@dataclass(frozen=True)
class _Standby:
    applied: Watermarks
    seen_tick: int
    heard_s: float


class Streams:
    """The registry of streams, and the durable watermarks of the tables. Callers keep the rules of the module."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.gate = Gate()
        self._mutex = threading.Lock()
        self._known: dict[str, Stream] = {}
        self._clients: OrderedDict[str, None] = OrderedDict()  # least recently used first
        self._durable: Mapping[str, Watermarks] = {}
        self._standbys: dict[str, _Standby] = {}
        self._heard = threading.Condition(self._mutex)
        self._told_tick = 0
        self._monotonic_s = monotonic_s

    def get(self, name: str) -> Stream:
        """The stream, or :class:`UnknownStreamError`."""
        stream = self._known.get(name)
        if stream is None:
            raise UnknownStreamError(name)
        return stream

    def knows(self, name: str) -> bool:
        """Whether the stream is known."""
        return name in self._known

    def opened(self) -> list[Stream]:
        """Every stream that was opened by name (client streams are not)."""
        with self._mutex:
            return [stream for stream in self._known.values() if not is_client(stream.name)]

    def positions(self) -> dict[str, int]:
        """The highest watermark of every stream, clients' own included."""
        with self._mutex:
            return {stream.name: stream.position for stream in self._known.values()}

    def add(self, name: str, begin: int, generation: int = 0, position: int | None = None) -> Stream:
        """Make a stream known; one that is known already stays as it is. :class:`LimitError` past 65536 streams."""
        with self._mutex:
            if name not in self._known:
                if len(self._known) >= STREAMS_MAX:
                    raise LimitError("streams", len(self._known) + 1, STREAMS_MAX)
                self._known[name] = Stream(name, begin, begin if position is None else position, generation)
                if is_client(name):
                    self._clients[name] = None
            return self._known[name]

    def used(self, name: str) -> bool:
        """Whether a client's own stream is known; if so, it is the one used last."""
        with self._mutex:
            if name in self._clients:
                self._clients.move_to_end(name)
            return name in self._known

    def add_client(self, name: str) -> list[str]:
        """Make a client's own stream known; returns those that aged out for it, least recently used first."""
        with self._mutex:
            self._known.setdefault(name, Stream(name, 0, 0))
            self._clients[name] = None
            idle = []
            while len(self._clients) > CLIENT_STREAMS_MAX:
                idle.append(self._clients.popitem(last=False)[0])
                del self._known[idle[-1]]
            return idle

    def next_generation(self, name: str, generation: int) -> int:
        """The generation that a new writer takes: ``generation``, or the one after the present when that is 0."""
        stream = self._known.get(name)
        current = stream.generation if stream else 0
        if isinstance(generation, bool) or not isinstance(generation, int) or not 0 <= generation <= GENERATION_MAX:
            raise InvalidArgumentError("generation", f"must be an integer in [0, 2**63), not {generation!r}")
        if stream is None and len(self._known) >= STREAMS_MAX:
            raise LimitError("streams", len(self._known) + 1, STREAMS_MAX)
        if generation and generation <= current:
            raise StaleGenerationError(name, generation, current)
        return generation or current + 1

    def check_generation(self, name: str, generations: Mapping[str, int] | None) -> None:
        """Raise unless the writer with ``generations`` (None: the owner of this store) may write to the stream."""
        stream = self.get(name)
        if generations is None or is_client(name):
            return
        generation = generations.get(name, 0)
        if generation < stream.generation:
            raise StaleGenerationError(name, generation, stream.generation)
        if generation > stream.generation:
            raise InvalidArgumentError(
                f"generations[{name!r}]", f"{generation} was never opened, the stream is at {stream.generation}"
            )

    @contextmanager
    def writing(self, origins: Sequence[Origin], generations: Mapping[str, int] | None) -> Iterator[list[Stream]]:
        """Hold the streams of ``origins``, for a writer who may write to them. The gate is held shared already."""
        streams = []
        for name in sorted(origin.stream for origin in origins):
            self.check_generation(name, generations)
            streams.append(self.get(name))
        with ExitStack() as held:
            for stream in streams:
                held.enter_context(stream.lock)
            yield streams

    def state(self, name: str, watermarks: Iterable[int]) -> StreamState:
        """Where the stream stands, given every watermark its chunks have (none: the store has no tables)."""
        stream = self.get(name)
        distinct = sorted(set(watermarks)) or [stream.position]
        return StreamState(distinct[0], self._durable_of(stream), tuple(distinct), stream.generation)

    def _durable_of(self, stream: Stream) -> int:
        held = [*self._durable.values(), *self._listed().values()]
        return min((known.get(stream.name, stream.begin) for known in held), default=stream.begin)

    def standbys(self) -> tuple[str, ...]:
        """The addresses of the listed standbys."""
        return tuple(self._listed())

    def _listed(self) -> dict[str, Watermarks]:
        """What the listed standbys have, by address."""
        with self._mutex:
            self._drop_silent()
            return {address: standby.applied for address, standby in self._standbys.items()}

    def _drop_silent(self) -> None:
        """A standby that has been silent for too long leaves the list. The mutex is held."""
        now_s = self._monotonic_s()
        for address, standby in list(self._standbys.items()):
            if now_s - standby.heard_s > STANDBY_SILENCE_S:
                del self._standbys[address]
                _log.warning("standby %s is silent: what is durable does not wait for it any more", address)

    def standby_applied(self, address: str, watermarks: Watermarks, seen_tick: int) -> None:
        """A standby has everything up to these watermarks, and knows the tables and streams of ``seen_tick``. From the
        moment that it has what is durable, and knows what others have been told, it is listed: nothing is durable then,
        and no change of a table or stream is acknowledged, before it has that too."""
        with self._mutex:
            listed, knows = address in self._standbys, seen_tick >= self._told_tick
        if not listed and (not knows or any(watermarks.get(s.name, -1) < self._durable_of(s) for s in self.opened())):
            return
        with self._heard:
            if not listed and seen_tick < self._told_tick:
                return
            self._standbys[address] = _Standby(watermarks, seen_tick, self._monotonic_s())
            self._heard.notify_all()
        if not listed:
            _log.info("standby %s is listed: what is durable waits for it", address)

    def tell_standbys(self, tick: int) -> None:
        """A table or a stream came, changed or went at ``tick``."""
        with self._mutex:
            self._told_tick = tick

    def await_standbys(self, given_up: Callable[[], bool]) -> None:
        """Wait until the listed standbys know the tables and streams as they are now, or have left the list, or
        ``given_up`` says so. One that hears of other things, and never of these, leaves the list, too."""
        with self._mutex:
            told_tick = self._told_tick
        self._await(lambda standby: standby.seen_tick >= told_tick, given_up)

    def await_applied(self, origins: Sequence[Origin], given_up: Callable[[], bool]) -> None:
        """The same until they have these in every chunk."""
        self._await(lambda standby: all(standby.applied.get(o.stream, -1) >= o.end for o in origins), given_up)

    def _await(self, has: Callable[[_Standby], bool], given_up: Callable[[], bool]) -> None:
        with self._heard:
            deadline_s = self._monotonic_s() + STANDBY_SILENCE_S
            while not given_up():
                self._drop_silent()
                behind = [address for address, standby in self._standbys.items() if not has(standby)]
                if not behind:
                    return
                if self._monotonic_s() > deadline_s:
                    for address in behind:
                        del self._standbys[address]
                        _log.warning("standby %s is behind: what is durable does not wait for it any more", address)
                    return
                self._heard.wait(LOOK_S)

    def set_durable(self, durable: Mapping[str, Watermarks]) -> None:
        """Per table the lowest watermarks that a restart would find. The gate is held alone, here and below."""
        self._durable = dict(durable)

    def add_durable(self, table: str, watermarks: Watermarks) -> None:
        """A new table, whose beginnings are durable."""
        self._durable = {**self._durable, table: watermarks}

    def drop_durable(self, table: str) -> None:
        """A table that is no more."""
        self._durable = {name: known for name, known in self._durable.items() if name != table}


def check_origins(origins: Sequence[Origin]) -> None:
    """Raise unless these can be the origins of one push: distinct streams, and a client stream only by itself."""
    if len(origins) > ORIGINS_PER_PUSH_MAX:
        raise LimitError("origins", len(origins), ORIGINS_PER_PUSH_MAX)
    for origin in origins:
        if not isinstance(origin, Origin):
            raise InvalidArgumentError("origins", f"must be Origin values, not {origin!r}")
        if is_client(origin.stream) and len(origins) > 1:
            raise InvalidArgumentError("origins", f"client stream {origin.stream!r} must be the only one")
    if len({origin.stream for origin in origins}) != len(origins):
        raise InvalidArgumentError("origins", "each stream may come once")


def is_new(origins: Sequence[Origin], watermarks: Sequence[Watermarks]) -> bool:
    """Whether any chunk lacks the push, given every distinct watermark set; False: all have it, it is a repeat.

    :class:`GapError`, with every distinct watermark, when some chunk would see a gap or a straddle.
    """
    new = False
    for known in watermarks:
        if all(origin.end <= known[origin.stream] for origin in origins):
            continue
        if any(origin.begin != known[origin.stream] for origin in origins):
            raise GapError({o.stream: sorted({w[o.stream] for w in watermarks}) for o in origins})
        new = True
    return new


def after(origins: Sequence[Origin], watermarks: Sequence[Watermarks]) -> list[Watermarks]:
    """The watermark sets of a push's streams once every chunk has the push."""
    return [{o.stream: max(o.end, known[o.stream]) for o in origins} for known in watermarks]


def check_event_time(label: str, event_time_ms: int | None) -> None:
    """Raise :class:`InvalidArgumentError` unless it is None or milliseconds since 1970."""
    if event_time_ms is not None:
        check_position(label, event_time_ms)
