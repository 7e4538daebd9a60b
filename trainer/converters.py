"""Reading foreign data sets as events. Each function gives a table with columns of event names, and counts, by reason,
the records that it had to leave out."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from embedstore.errors import InvalidArgumentError
from embedstore.ids import hash_ids
from trainer.decoding import SetAside
from trainer.events import ID_MAX
from trainer.sources.files import cell_id

LIKE_RATING_MIN = 3.5
SEQUENCE_BEGIN_MS = 946_684_800_000
SEQUENCE_STEP_MS = 86_400_000
TIME_UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
MAPPABLE = ("user_id", "item_id", "event_time", "action", "surface", "session_id", "request_id")

Converted = tuple[pa.Table, Counter[str]]


def read_movielens(paths: Sequence[Path]) -> Converted:
    """MovieLens ``ratings.csv``: a rating of 3.5 or more is a ``like``, any other a ``rate``."""
    mapping = {"user_id": "userId", "item_id": "movieId", "event_time": "timestamp", "action": "rating"}
    events, skipped = read_columns(paths, mapping, time_unit="s")
    ratings = events.column("action").cast(pa.string())
    sound = pc.match_substring_regex(ratings, r"^[0-9]+(\.[0-9]+)?$").fill_null(False)
    values = pc.if_else(sound, ratings, "0").cast(pa.float64())
    actions = pc.if_else(sound, pc.if_else(pc.greater_equal(values, LIKE_RATING_MIN), "like", "rate"), None)
    return events.set_column(events.column_names.index("action"), "action", actions), skipped


def read_s3rec(paths: Sequence[Path]) -> Converted:
    """S3-Rec sequence files: ``user item item ...`` on each line, in the user's order, without times.

    Times are made up so that nothing but the order is claimed: step k of every user falls on day k after 2000-01-01,
    users within a day in the order of the file, a millisecond apart. The action is ``interact``.
    """
    users: list[str] = []
    items: list[str] = []
    times_ms: list[int] = []
    skipped: Counter[str] = Counter()
    num_lines = 0
    for path in paths:
        for line in _read_text(path).splitlines():
            user, *sequence = line.split() or [""]
            if not sequence:
                skipped["line"] += bool(user)
                continue
            users.extend([user] * len(sequence))
            items.extend(sequence)
            times_ms.extend(range(num_lines, num_lines + len(sequence) * SEQUENCE_STEP_MS, SEQUENCE_STEP_MS))
            num_lines += 1
    if num_lines >= SEQUENCE_STEP_MS:
        raise InvalidArgumentError("in", f"{num_lines} users, at most {SEQUENCE_STEP_MS - 1}")
    events = {
        "user_id": as_ids(pa.chunked_array([pa.array(users, pa.string())])),
        "item_id": as_ids(pa.chunked_array([pa.array(items, pa.string())])),
        "action": pa.array(["interact"]).take(pa.array(np.zeros(len(users), dtype=np.int64))),
        "event_time_ms": pa.array(np.array(times_ms, dtype=np.int64) + SEQUENCE_BEGIN_MS),
    }
    return pa.table(events), skipped


def read_globo(paths: Sequence[Path]) -> Converted:
    """Globo.com clicks in Parquet; environment and device make the surface, as in ``environment-4/device-1``."""
    mapping = {"user_id": "user_id", "item_id": "click_article_id", "event_time": "click_timestamp"}
    mapping |= {"session_id": "session_id", "surface": "click_environment", "request_id": "click_deviceGroup"}
    events, skipped = read_columns(paths, mapping, time_unit="ms", action_value="click")
    environment, device = (events.column(name).cast(pa.string()) for name in ("surface", "request_id"))
    surfaces = pc.binary_join_element_wise("environment-", environment, "/device-", device, "")
    events = events.drop_columns(["surface", "request_id"])
    return events.append_column("surface", surfaces), skipped


def read_columns(
    paths: Sequence[Path],
    mapping: Mapping[str, str],
    *,
    time_unit: str = "ms",
    action_value: str | None = None,
    delimiter: str | None = None,
    header: Sequence[str] | None = None,
) -> Converted:
    """Any CSV, TSV (also .gz), JSON-lines or Parquet files, by a mapping from event names to their column names.

    ``mapping`` names ``user_id``, ``item_id``, ``event_time`` and optionally ``action`` (or ``action_value`` for all),
    ``surface``, ``session_id`` and ``request_id``. ``time_unit``: s, ms, us, ns or iso. ``header`` names the columns
    of a CSV that has no header line. Ids are numbers where they are whole numbers, texts otherwise.
    """
    _check_mapping(mapping, time_unit, action_value)
    skipped: Counter[str] = Counter()
    wanted = sorted(set(mapping.values()))
    tables = [_read_table(path, wanted, delimiter, header, skipped) for path in paths]
    if not tables:
        raise InvalidArgumentError("in", "at least one file")
    table = pa.concat_tables(tables, promote_options="permissive")
    events = {
        name: as_ids(table.column(column)) if name.endswith("_id") else table.column(column)
        for name, column in mapping.items()
        if name != "event_time"
    }
    if action_value is not None:
        indices = pa.array(np.zeros(table.num_rows, dtype=np.int64))
        events["action"] = pa.array([action_value]).take(indices)
    events["event_time_ms"] = as_times_ms(table.column(mapping["event_time"]), time_unit)
    return pa.table({name: _plain(column) for name, column in events.items()}), skipped


def _check_mapping(mapping: Mapping[str, str], time_unit: str, action_value: str | None) -> None:
    for name in mapping:
        if name not in MAPPABLE:
            raise InvalidArgumentError("map", f"{name!r} is none of {', '.join(MAPPABLE)}")
    for name in ("user_id", "item_id", "event_time"):
        if name not in mapping:
            raise InvalidArgumentError("map", f"{name} is missing")
    if ("action" in mapping) == (action_value is not None):
        raise InvalidArgumentError("map", "needs either a column for action or --action-value")
    if time_unit not in (*TIME_UNITS_PER_S, "iso"):
        raise InvalidArgumentError("time-unit", f"{time_unit!r} is none of {', '.join(TIME_UNITS_PER_S)}, iso")


def _plain(column: Any) -> Any:
    if pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    return column


def _read_table(
    path: Path, wanted: list[str], delimiter: str | None, header: Sequence[str] | None, skipped: Counter[str]
) -> pa.Table:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    try:
        if suffix == ".parquet":
            table = pq.read_table(path, columns=None)
        elif suffix in (".jsonl", ".json"):
            table = pa_json.read_json(path)
        else:
            table = _read_csv(path, wanted, delimiter or ("\t" if suffix == ".tsv" else ","), header, skipped)
    except (pa.ArrowException, OSError) as error:
        raise InvalidArgumentError("in", f"cannot read {path}: {error}") from error
    for name in wanted:
        if name not in table.column_names:
            raise InvalidArgumentError("map", f"{path} has no column {name!r}, only {', '.join(table.column_names)}")
    return table.select(wanted)


def _read_csv(
    path: Path, wanted: list[str], delimiter: str, header: Sequence[str] | None, skipped: Counter[str]
) -> pa.Table:
    set_aside = SetAside()
    header_lines = 0 if header else 1

    def skip(row: pa_csv.InvalidRow) -> str:
        problem = f"{row.actual_columns} cells, expected {row.expected_columns}"
        set_aside.report(str(path), row.number - 1 - header_lines, InvalidArgumentError("csv", problem))
        return "skip"

    table = pa_csv.read_csv(
        path,
        read_options=pa_csv.ReadOptions(column_names=header, use_threads=False),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=skip),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )
    set_aside.flush()
    skipped.update(set_aside.by_field)
    return table


def _read_text(path: Path) -> str:
    try:
        opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            return str(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError("in", f"cannot read {path}: {error}") from error


def as_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """An id column as it is, except that a text which is a whole number becomes that number.

    Where that leaves both numbers and texts, the texts become numbers too, by their hash, as readers would have it.
    """
    if pa.types.is_integer(column.type):
        return column
    texts = column.cast(pa.string())
    is_number = pc.match_substring_regex(texts, r"^-?(0|[1-9][0-9]*)$")
    if not pc.any(is_number).as_py():
        return texts
    if pc.all(is_number).as_py():
        for kind in (pa.int64(), pa.uint64()):
            try:
                return texts.cast(kind)
            except pa.ArrowInvalid:
                continue
    encoded = texts.combine_chunks().dictionary_encode()
    values = pa.array([_id_number(text) for text in encoded.dictionary.to_pylist()], pa.uint64())
    return pa.chunked_array([values.take(encoded.indices)])


def _id_number(text: str) -> int | None:
    value = cell_id(text)
    if isinstance(value, str):
        return int(hash_ids([value])[0])
    return value if value is not None and 0 <= value <= ID_MAX else None


def as_times_ms(column: pa.ChunkedArray, time_unit: str) -> pa.ChunkedArray:
    """int64 milliseconds; null where the value is no time. :class:`InvalidArgumentError` where none of them is one."""
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False).cast(pa.int64())
    encoded = column.combine_chunks().dictionary_encode()
    parse = _parse_iso if time_unit == "iso" else _number_parser(TIME_UNITS_PER_S[time_unit])
    texts = encoded.dictionary.to_pylist()
    values = [None if value is None else parse(value) for value in texts]
    if texts and all(value is None for value in values):
        raise InvalidArgumentError("event_time", f"{texts[0]!r:.40} is no time in {time_unit}, nor is any other")
    return pa.chunked_array([pa.array(values, pa.int64()).take(encoded.indices)])


def _number_parser(units_per_s: int) -> Callable[[Any], int | None]:
    def parse(value: Any) -> int | None:
        try:
            whole = int(value) if not isinstance(value, float) else None
        except ValueError:
            whole = None
        try:
            time_ms = whole * 1000 // units_per_s if whole is not None else round(float(value) * 1000 / units_per_s)
        except (ValueError, OverflowError):
            return None
        return time_ms if -(2**63) <= time_ms < 2**63 else None

    return parse


def _parse_iso(value: Any) -> int | None:
    try:
        moment = datetime.fromisoformat(str(value).replace(" UTC", "+00:00"))
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
