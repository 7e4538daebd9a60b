"""What the native table takes: arguments checked and in the form that it wants. Pure functions, usable from any thread.

Every one raises :class:`InvalidArgumentError` naming its label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedstore.errors import InvalidArgumentError
from embedstore.interface import Origin, as_array, check_position, check_stream_name
from embedstore.rules import is_finite
from embedstore.spec import Admission, MinCount, Probability, TableSpec


def to_lr(label: str, lr: Any) -> float:
    """A learning rate; -1 for None, which is the table's own."""
    if lr is None:
        return -1.0
    number = is_finite(lr) or isinstance(lr, np.floating | np.integer)
    if not number or not 0 <= lr < float(np.finfo(np.float32).max):
        raise InvalidArgumentError(label, f"must be a finite number >= 0, not {lr!r}")
    return float(lr)


def to_counts(label: str, values: Any, num_ids: int) -> np.ndarray | None:
    """Occurrences as uint32 [n], or None."""
    if values is None:
        return None
    counts = as_array(values, label)
    if counts.shape != (num_ids,) or (counts.size and counts.dtype.kind not in "iu"):
        raise InvalidArgumentError(label, f"must be integers [{num_ids}]")
    if counts.size and not (counts.min() >= 0 and counts.max() < 2**32):
        raise InvalidArgumentError(label, "must be in [0, 2**32)")
    return np.ascontiguousarray(counts, dtype=np.uint32)


def to_event_time(label: str, time_ms: Any) -> int:
    """One event time for all; -1 for None."""
    if time_ms is None:
        return -1
    check_position(label, time_ms)
    return int(time_ms)


def to_event_times(table: str, times: Any, num_ids: int) -> tuple[np.ndarray | None, int]:
    """Event times as (int64 [n] or None, one for all or -1)."""
    if times is None or isinstance(times, int | np.integer):
        return None, to_event_time(f"{table}.event_time_ms", times)
    label = f"{table}.event_times_ms"
    each = as_array(times, label)
    if each.shape != (num_ids,) or (each.size and each.dtype.kind not in "iu"):
        raise InvalidArgumentError(label, f"must be an integer or integers [{num_ids}]")
    if each.size and not (each.min() >= 0 and each.max() < 2**63):
        raise InvalidArgumentError(label, "must be in [0, 2**63)")
    return np.ascontiguousarray(each, dtype=np.int64), -1


def to_tuples(origins: Sequence[Origin]) -> list[tuple[str, int, int]]:
    """Origins as plain tuples."""
    return [(origin.stream, int(origin.begin), int(origin.end)) for origin in origins]


def to_positions(watermarks: Mapping[str, int]) -> dict[str, int]:
    """Positions by stream, each checked."""
    for stream, position in watermarks.items():
        check_stream_name("watermarks", stream)
        check_position(f"watermarks[{stream!r}]", position)
    return {stream: int(position) for stream, position in watermarks.items()}


def admission_arguments(rule: Admission | None) -> dict[str, Any]:
    """The rule of admission as the native table's arguments."""
    arguments = {"admission": 0, "admission_count": 1, "admission_p": 1.0, "admission_seed": 0, "admission_bytes": 0}
    match rule:
        case MinCount(count, memory_bytes):
            return arguments | {"admission": 1, "admission_count": count, "admission_bytes": memory_bytes}
        case Probability(p, seed, memory_bytes):
            extra = {"admission_p": p, "admission_seed": seed, "admission_bytes": memory_bytes}
            return arguments | {"admission": 2} | extra
    return arguments


def limit_arguments(spec: TableSpec) -> dict[str, int]:
    """Time to live and capacity as the native table's arguments."""
    return {
        "ttl_ms": -1 if spec.ttl_s is None else round(min(float(spec.ttl_s), 2.0**53) * 1000),
        "rows_max": spec.rows_max or 0,
        "bytes_max": spec.bytes_max or 0,
    }
