"""Every error that embedstore raises on purpose, and the gRPC code it travels as.

Two roots: the caller's own mistake is a :class:`ValueError` (``InvalidArgumentError``); everything else is an
:class:`EmbedstoreError`. ``code`` is the name of the gRPC status code, so that a remote store raises exactly what an
embedded one would. All of them are plain values: safe to create, raise and read from any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class InvalidArgumentError(ValueError):
    """The caller passed something that can never work; ``field`` names it."""

    code: ClassVar[str] = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class UnsupportedError(InvalidArgumentError):
    """A value that the format can express but this release does not implement yet; ``field`` names it."""

    code: ClassVar[str] = "UNIMPLEMENTED"


class EmbedstoreError(Exception):
    """Root of all failures that are not the caller's mistake."""

    code: ClassVar[str] = "INTERNAL"


class TableNotFoundError(EmbedstoreError, LookupError):
    """No table of this name."""

    code: ClassVar[str] = "NOT_FOUND"

    def __init__(self, table: str) -> None:
        super().__init__(f"table {table!r} does not exist")
        self.table = table


class TableExistsError(EmbedstoreError):
    """A table of this name exists with another spec; ``field`` names the first difference, ``values`` says it: what
    there is, and what was wanted."""

    code: ClassVar[str] = "ALREADY_EXISTS"

    def __init__(self, table: str, field: str, values: str = "") -> None:
        super().__init__(f"table {table!r} exists with {f'{field} {values}' if values else f'another {field}'}")
        self.table = table
        self.field = field
        self.values = values


class DenseSetNotFoundError(EmbedstoreError, LookupError):
    """No dense set of this name has been published."""

    code: ClassVar[str] = "NOT_FOUND"

    def __init__(self, dense_set: str) -> None:
        super().__init__(f"dense set {dense_set!r} has not been published")
        self.dense_set = dense_set


class UnknownStreamError(EmbedstoreError):
    """A push named a stream that was never opened here."""

    code: ClassVar[str] = "FAILED_PRECONDITION"

    def __init__(self, stream: str) -> None:
        super().__init__(f"stream {stream!r} is not open; call open_stream first")
        self.stream = stream


class GapError(EmbedstoreError):
    """A push neither continued the watermarks nor repeated them: a gap or a straddle. Nothing was applied.

    ``watermarks`` maps each stream of the push to every distinct watermark of the chunks, ascending. The writer
    replays from the lowest, cut at all of them.
    """

    code: ClassVar[str] = "FAILED_PRECONDITION"

    def __init__(self, watermarks: Mapping[str, Sequence[int]]) -> None:
        self.watermarks = {stream: sorted(positions) for stream, positions in watermarks.items()}
        super().__init__(f"push refused, chunks stand at {self.watermarks}")


class StaleGenerationError(EmbedstoreError):
    """A newer writer has opened the stream: this one has been replaced and must stop."""

    code: ClassVar[str] = "FAILED_PRECONDITION"

    def __init__(self, stream: str, generation: int, current: int) -> None:
        super().__init__(f"stream {stream!r} belongs to generation {current}, this writer is {generation}")
        self.stream = stream
        self.generation = generation
        self.current = current


class StaleDenseSetError(EmbedstoreError):
    """A dense set was refused because the published one is further along in ``stream``."""

    code: ClassVar[str] = "FAILED_PRECONDITION"

    def __init__(self, dense_set: str, stream: str, position: int, published: int) -> None:
        super().__init__(f"dense set {dense_set!r} stands at {published} of stream {stream!r}, offered {position}")
        self.dense_set = dense_set
        self.stream = stream
        self.position = position
        self.published = published


class StreamPositionError(EmbedstoreError):
    """A watermark lies outside its log: the topic was recreated, the file changed, or the log was trimmed."""

    code: ClassVar[str] = "FAILED_PRECONDITION"

    def __init__(self, stream: str, position: int, problem: str) -> None:
        super().__init__(f"stream {stream!r} at {position}: {problem}")
        self.stream = stream
        self.position = position
        self.problem = problem


class WrongShardError(EmbedstoreError):
    """The request reached a shard that does not own these chunks; ``topology`` is its record."""

    code: ClassVar[str] = "FAILED_PRECONDITION"

    def __init__(self, problem: str, topology: Any = None) -> None:
        super().__init__(problem)
        self.topology = topology


class StaleEpochError(EmbedstoreError):
    """The request carries an epoch the shard does not serve; ``topology`` is its record."""

    code: ClassVar[str] = "FAILED_PRECONDITION"

    def __init__(self, epoch: int, current: int, topology: Any = None) -> None:
        super().__init__(f"request has epoch {epoch}, the shard is at {current}")
        self.epoch = epoch
        self.current = current
        self.topology = topology


class UnavailableError(EmbedstoreError):
    """A peer did not answer within the deadline, after all retries. Repeating the same call is safe."""

    code: ClassVar[str] = "UNAVAILABLE"

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(f"{address}: {problem}")
        self.address = address
        self.problem = problem


class LimitError(EmbedstoreError):
    """A bound was passed; ``field`` names it. Nothing was done."""

    code: ClassVar[str] = "RESOURCE_EXHAUSTED"

    def __init__(self, field: str, value: int, limit: int) -> None:
        super().__init__(f"{field}: {value} is over the limit of {limit}")
        self.field = field
        self.value = value
        self.limit = limit


class UnauthenticatedError(EmbedstoreError):
    """The server asks for a bearer token, and none came, or one that it does not know."""

    code: ClassVar[str] = "UNAUTHENTICATED"


class PermissionDeniedError(EmbedstoreError):
    """The token's role does not allow this call."""

    code: ClassVar[str] = "PERMISSION_DENIED"


class ReadOnlyError(EmbedstoreError):
    """A follower was asked to change something."""

    code: ClassVar[str] = "FAILED_PRECONDITION"


class ClosedError(EmbedstoreError):
    """The store was closed."""

    code: ClassVar[str] = "FAILED_PRECONDITION"


class CorruptDeltaError(EmbedstoreError):
    """Bytes that are not a sound ``ChunkDelta`` of this table; the chunk is unchanged."""

    code: ClassVar[str] = "DATA_LOSS"


class DeltaGapError(EmbedstoreError):
    """A sound delta that does not continue the chunk's cursor; the chunk is unchanged."""

    code: ClassVar[str] = "FAILED_PRECONDITION"


class CorruptCheckpointError(EmbedstoreError):
    """The checkpoint cannot be read; ``path`` names the file."""

    code: ClassVar[str] = "DATA_LOSS"

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class CheckpointFailedError(EmbedstoreError):
    """Something could not be written (disk full, directory not writable); ``path`` names it.

    What was durable before still is, nothing in memory is lost, and the same call can be repeated.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class StoreLockedError(EmbedstoreError):
    """Another process (or another store of this one) has the directory ``path`` open."""

    code: ClassVar[str] = "FAILED_PRECONDITION"

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is open already, in this process or another")
        self.path = path


class LostUpdatesWarning(UserWarning):
    """Updates without an origin were accepted and then lost with their shard before a checkpoint; ``count`` of them."""

    def __init__(self, address: str, count: int) -> None:
        super().__init__(f"{address} came back without {count} updates of this client since its last checkpoint")
        self.address = address
        self.count = count
