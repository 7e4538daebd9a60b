"""Where events come from: a file, a Kafka topic, a synthetic world. One protocol, :class:`Source`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from embedstore.errors import InvalidArgumentError, StreamPositionError
from trainer.events import EventBatch

NO_STOPS: Mapping[str, int] = MappingProxyType({})


@runtime_checkable
class Source(Protocol):
    """Ordered streams of events with integer positions.

    Whatever is polled and wherever is seeked, the origins of consecutive batches tile each stream: every batch
    begins where the one before it (or the seek) left that stream. The same positions always give the same events.
    A source is used by one thread at a time.
    """

    def streams(self) -> dict[str, int]:
        """Every stream and the first position that can still be read."""
        ...

    def ends(self) -> dict[str, int | None]:
        """Where each stream ends; None for a live one."""
        ...

    def log_ends(self) -> dict[str, int]:
        """Where each stream's log ends at this moment: no position beyond it has ever been given out."""
        ...

    def check_known(self, known: Mapping[str, int]) -> None:
        """Raise :class:`StreamPositionError` when one of the streams ``known``, with the position that a store has it
        at, was this source's log before that was replaced by another of the same name."""
        ...

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read the named streams from these positions; the others stay.

        :class:`StreamPositionError` when a position is outside its log, :class:`InvalidArgumentError` when a stream is
        none of this source's; in both cases nothing moved.
        """
        ...

    def poll(
        self, max_events: int, timeout_s: float, *, only: str | None = None, stop_at: Mapping[str, int] = NO_STOPS
    ) -> EventBatch | None:
        """The next events, at most ``max_events``; waits at most ``timeout_s`` for the first.

        None: everything (of ``only``) has been read and no more will come. A batch without origins: nothing new yet.
        ``only``: read this stream alone. ``stop_at``: no range crosses these positions; a stream that stands at or
        past its stop goes on.
        """
        ...

    def commit(self, positions: Mapping[str, int]) -> None:
        """Tell the log that everything below these positions is done with, where it wants to know."""
        ...

    def lag_records(self) -> dict[str, int]:
        """How many positions of each stream exist and have not been polled, as of the last look."""
        ...

    def close(self) -> None:
        """Release everything. Twice is harmless."""


def check_poll(streams: Mapping[str, int], max_events: int, only: str | None) -> None:
    """Raise :class:`InvalidArgumentError` for arguments of ``poll`` that make no sense."""
    if max_events < 1:
        raise InvalidArgumentError("max_events", f"must be at least 1, not {max_events}")
    if only is not None and only not in streams:
        raise InvalidArgumentError("only", f"{only!r} is none of {sorted(streams)}")


def check_seek(begins: Mapping[str, int], ends: Mapping[str, int | None], positions: Mapping[str, int]) -> None:
    """Raise unless every position is one that its stream can be read from (the end included)."""
    for stream, position in positions.items():
        if stream not in begins:
            raise InvalidArgumentError("positions", f"{stream!r} is none of {sorted(begins)}")
        begin, end = begins[stream], ends[stream]
        if position < begin:
            raise StreamPositionError(stream, position, f"the log begins at {begin}: [{position}, {begin}) is gone")
        if end is not None and position > end:
            raise StreamPositionError(stream, position, f"the log ends at {end}")


def range_end(position: int, available_end: int, max_events: int, stop: int | None) -> int:
    """Where a range that begins at ``position`` may end."""
    end = min(available_end, position + max_events)
    return min(end, stop) if stop is not None and position < stop else end


def open_source(
    uri: str, *, passes: int = 1, group: str | None = None, clock_ms: Callable[[], int] | None = None
) -> Source:
    """The source that ``uri`` names.

    ``PATH`` (.jsonl, .csv or .parquet, read ``passes`` times over), ``kafka://HOST:PORT[,HOST:PORT]/TOPIC`` (offsets
    are committed when ``group`` is given) or ``synthetic://?seed=1&events=200000...`` (see
    :class:`trainer.sources.synthetic.World`). ``clock_ms`` (default wall time) tells which events lie in the future.
    """
    scheme, separator, _ = uri.partition("://")
    options = {} if clock_ms is None else {"clock_ms": clock_ms}
    if separator and scheme == "kafka":
        from trainer.sources.kafka import open_kafka

        return open_kafka(uri, group=group, **options)
    if separator and scheme == "synthetic":
        from trainer.sources.synthetic import open_synthetic

        return open_synthetic(uri, **options)
    if separator:
        raise InvalidArgumentError("events", f"unknown scheme {scheme!r}; known: a path, kafka://, synthetic://")
    from trainer.sources.files import FileSource

    return FileSource(uri, passes=passes, **options)
