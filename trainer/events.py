"""ActivityEvent: what one user did with one item. Its schema, its validation, its two encodings.

An event has one meaning and two forms, protobuf (``protos/activity/v1/events.proto``) and JSON; :func:`decode_fields`
tells them apart by the first byte. Whatever cannot become a valid event raises :class:`InvalidArgumentError` that
names the field; readers of a stream turn that into a record set aside (:mod:`trainer.decoding`), never into a crash.

Everything here is a plain value or a pure function and may be used from any thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError

from embedstore.errors import InvalidArgumentError
from embedstore.interface import Origin
from trainer.activity.v1 import events_pb2

ID_MAX = 2**64 - 1
EVENT_TIME_MS_MAX = 2**63 - 1
KEY_BYTES_MAX = 1024
NAME_BYTES_MAX = 256
FEATURES_MAX = 256
RECORD_BYTES_MAX = 64 * 1024
FUTURE_TOLERANCE_MS = 10 * 60 * 1000

Id: TypeAlias = int | str
"""An id as it is written in an event: a number in [0, 2**64), or a non-empty text that readers hash."""

FeatureValue: TypeAlias = float | str


class Fields(NamedTuple):
    """The parts of an event as decoded and not yet checked; None where missing."""

    user_id: Any
    item_id: Any
    action: Any
    event_time_ms: Any
    surface: Any = ""
    session_id: Any = None
    request_id: Any = None
    features: Any = None


FIELD_NAMES = Fields._fields


@dataclass(frozen=True)
class ActivityEvent:
    """One user did ``action`` with one item, at ``event_time_ms`` (milliseconds since 1970-01-01 UTC).

    ``user_id``, ``item_id``, ``session_id`` and ``request_id`` are numbers in [0, 2**64) or texts of 1 to 1024 bytes
    (hashed by readers; the text "7" is not the number 7); a session or request of 0 or None means none. ``action``
    has 1 to 256 bytes, ``surface`` at most 256. ``features`` maps at most 256 names to finite numbers or texts.
    Anything else raises :class:`InvalidArgumentError` naming the field.
    """

    user_id: Id
    item_id: Id
    action: str
    event_time_ms: int
    surface: str = ""
    session_id: Id | None = None
    request_id: Id | None = None
    features: Mapping[str, FeatureValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self._fields())

    def _fields(self) -> Fields:
        return Fields(*(getattr(self, name) for name in FIELD_NAMES))

    def to_json(self) -> bytes:
        """The JSON form, UTF-8, on one line without its end; optional parts that are absent are left out."""
        parts = {name: value for name in FIELD_NAMES if (value := getattr(self, name)) not in (None, "", {})}
        if self.features:
            parts["features"] = dict(self.features)
        return json.dumps(parts, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    def to_protobuf(self) -> bytes:
        """The protobuf form; equal events give equal bytes."""
        message = events_pb2.ActivityEvent(action=self.action, surface=self.surface, event_time_ms=self.event_time_ms)
        for name in ("user", "item", "session", "request"):
            value = getattr(self, f"{name}_id")
            if isinstance(value, str):
                setattr(message, f"{name}_key", value)
            elif value is not None:
                setattr(message, f"{name}_id", value)
        for name, value in self.features.items():
            if isinstance(value, str):
                message.features[name].text = value
            else:
                message.features[name].number = value
        return message.SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes) -> ActivityEvent:
        """Read either form back; raises :class:`InvalidArgumentError`."""
        return cls.from_fields(decode_fields(data))

    @classmethod
    def from_fields(cls, fields: Fields) -> ActivityEvent:
        """The event of these parts; raises :class:`InvalidArgumentError`."""
        check_fields(fields)
        return cls(**{**fields._asdict(), "features": dict(fields.features or {})})


@dataclass(frozen=True, eq=False)
class EventBatch:
    """n events in stream order, as columns, with the ranges of the streams that they were read from.

    ``user_ids``, ``item_ids``, ``actions``, ``surfaces``, ``session_ids``, ``request_ids`` uint64 [n] (texts hashed by
    :func:`embedstore.hash_ids`; session and request 0: none); ``event_time_ms`` int64 [n]; ``positions`` int64 [n],
    where each event stands in its stream; ``stream_index`` int32 [n], which of ``origins`` that is. ``origins`` has at
    most one range a stream; consecutive batches tile each stream, so a range also covers holes and the
    ``set_aside`` records that could not be used, and may cover no event at all. So a batch of length 0 still counts
    when it has origins: compare polls with None, never by truth.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    actions: np.ndarray
    surfaces: np.ndarray
    event_time_ms: np.ndarray
    session_ids: np.ndarray
    request_ids: np.ndarray
    stream_index: np.ndarray
    positions: np.ndarray
    origins: tuple[Origin, ...]
    set_aside: int = 0

    def __post_init__(self) -> None:
        assert {getattr(self, name).shape for name in BATCH_DTYPES} == {self.user_ids.shape}

    def __len__(self) -> int:
        return int(self.user_ids.shape[0])


BATCH_DTYPES: Mapping[str, Any] = {
    "user_ids": np.uint64,
    "item_ids": np.uint64,
    "actions": np.uint64,
    "surfaces": np.uint64,
    "event_time_ms": np.int64,
    "session_ids": np.uint64,
    "request_ids": np.uint64,
    "stream_index": np.int32,
    "positions": np.int64,
}
"""The columns of a batch and their types."""


def merge_batches(batches: list[EventBatch]) -> EventBatch:
    """One batch of several streams from batches that each have their own streams, in the given order."""
    if len(batches) == 1:
        return batches[0]
    if not batches:
        nothing: dict[str, Any] = {name: np.empty(0, dtype) for name, dtype in BATCH_DTYPES.items()}
        return EventBatch(**nothing, origins=())
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(batch, name) for batch in batches]) for name in BATCH_DTYPES
    }
    first_origins = np.cumsum([0, *(len(batch.origins) for batch in batches)])
    shifted = [batch.stream_index + np.int32(first) for batch, first in zip(batches, first_origins, strict=False)]
    return EventBatch(
        **{**columns, "stream_index": np.concatenate(shifted)},
        origins=tuple(origin for batch in batches for origin in batch.origins),
        set_aside=sum(batch.set_aside for batch in batches),
    )


def nothing_of(origin: Origin) -> EventBatch:
    """A batch that covers a range in which there are no events."""
    return replace(merge_batches([]), origins=(origin,))


def check_fields(fields: Fields, latest_ms: int = EVENT_TIME_MS_MAX) -> None:
    """Raise :class:`InvalidArgumentError` unless these parts make a valid event, not later than ``latest_ms``."""
    user_id, item_id, action, event_time_ms, surface, session_id, request_id, features = fields
    _check_id("user_id", user_id)
    _check_id("item_id", item_id)
    if action is None or action == "":
        _refuse("action", "missing")
    _check_text("action", action, NAME_BYTES_MAX)
    if type(event_time_ms) is not int:
        _refuse("event_time_ms", "missing" if event_time_ms is None else f"not a whole number: {event_time_ms!r:.40}")
    if not 0 <= event_time_ms <= latest_ms:
        _refuse("event_time_ms", f"{event_time_ms} is {'negative' if event_time_ms < 0 else 'in the future'}")
    if surface != "":
        _check_text("surface", surface, NAME_BYTES_MAX)
    if session_id is not None:
        _check_id("session_id", session_id)
    if request_id is not None:
        _check_id("request_id", request_id)
    if features:
        _check_features(features)
    elif features is not None and not isinstance(features, Mapping):
        _refuse("features", f"not an object: {features!r:.40}")


def _check_id(name: str, value: Any) -> None:
    if type(value) is int:
        if not 0 <= value <= ID_MAX:
            _refuse(name, "negative" if value < 0 else "over 64 bits")
    elif value is None or value == "":
        _refuse(name, "missing")
    elif type(value) is str:
        _check_text(name, value, KEY_BYTES_MAX)
    else:
        _refuse(name, f"neither a whole number nor a text: {value!r:.40}")


def _check_text(name: str, value: Any, bytes_max: int) -> None:
    if type(value) is not str:
        _refuse(name, f"not a text: {value!r:.40}")
    try:
        num_bytes = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        _refuse(name, "not valid Unicode")
    if num_bytes > bytes_max:
        _refuse(name, f"{num_bytes} bytes, over the limit of {bytes_max}")


def _check_features(features: Any) -> None:
    if not isinstance(features, Mapping):
        _refuse("features", f"not an object: {features!r:.40}")
    if len(features) > FEATURES_MAX:
        _refuse("features", f"{len(features)} entries, over the limit of {FEATURES_MAX}")
    for name, value in features.items():
        _check_text("features", name, NAME_BYTES_MAX)
        if type(value) is str:
            _check_text("features", value, RECORD_BYTES_MAX)
        elif type(value) not in (int, float) or not _is_finite(value):
            _refuse("features", f"{name!r:.40} is neither a finite number nor a text: {value!r:.40}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _refuse(name: str, problem: str) -> NoReturn:
    raise InvalidArgumentError(name, problem)


def decode_fields(data: bytes) -> Fields:
    """The parts of an event in either form, unchecked; :class:`InvalidArgumentError` when it is neither."""
    if len(data) > RECORD_BYTES_MAX:
        _refuse("record", f"{len(data)} bytes, over the limit of {RECORD_BYTES_MAX}")
    return _decode_json(data) if data[:1] == b"{" else _decode_protobuf(data)


def _decode_json(data: bytes) -> Fields:
    try:
        parts = _JSON.decode(data.decode())
    except (ValueError, RecursionError) as error:
        _refuse("json", str(error)[:200])
    get = parts.get
    surface = get("surface")
    return Fields(
        get("user_id"),
        get("item_id"),
        get("action"),
        get("event_time_ms"),
        "" if surface is None else surface,
        get("session_id"),
        get("request_id"),
        get("features"),
    )


def _decode_protobuf(data: bytes) -> Fields:
    try:
        message = events_pb2.ActivityEvent.FromString(data)
    except DecodeError as error:
        _refuse("protobuf", str(error)[:200])
    has = message.HasField
    return Fields(
        message.user_id if has("user_id") else message.user_key,
        message.item_id if has("item_id") else message.item_key,
        message.action,
        message.event_time_ms if has("event_time_ms") else None,
        message.surface,
        message.session_id if has("session_id") else message.session_key or None,
        message.request_id if has("request_id") else message.request_key or None,
        _decode_features(message) if message.features else None,
    )


def _decode_features(message: events_pb2.ActivityEvent) -> dict[str, FeatureValue | None]:
    return {
        name: getattr(feature, kind) if (kind := feature.WhichOneof("value")) else None
        for name, feature in message.features.items()
    }


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
