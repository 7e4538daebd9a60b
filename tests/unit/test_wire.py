"""Pull and Push messages are those of the .proto, whoever writes them, and no bytes can do worse than a typed error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from embedstore import wire, wire_push
from embedstore.errors import InvalidArgumentError, LimitError
from embedstore.interface import Origin, Rows
from embedstore.v1 import store_pb2 as pb

F32: Any = np.dtype("<f4")
F16: Any = np.dtype("<f2")
LETTERS = "abc/_é日😀"
names = st.text(LETTERS, max_size=20)
uint64s = st.integers(0, 2**64 - 1)
positions = st.integers(0, 2**63 - 1)


def ids_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data[: len(data) // 8 * 8], "<u8")


@st.composite
def pulls(draw: st.DrawFn) -> wire.TablePull:
    dtype = draw(st.sampled_from([F32, F16, None]))
    return wire.TablePull(draw(names), ids_of(draw(st.binary(max_size=200))), dtype, draw(st.booleans()))


@st.composite
def parts(draw: st.DrawFn) -> wire.TablePart:
    ids = ids_of(draw(st.binary(max_size=120)))
    dim = draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    grads = rng.standard_normal((len(ids), dim)).astype(draw(st.sampled_from([F32, F16])))
    counts = rng.integers(0, 2**32, len(ids), dtype=np.uint32) if draw(st.booleans()) and len(ids) else None
    times = rng.integers(-5, 2**62, len(ids), dtype=np.int64) if draw(st.booleans()) and len(ids) else None
    lr = draw(st.none() | st.floats(allow_nan=False))
    return wire.TablePart(draw(names), ids, grads, counts, times, lr)


def origins() -> st.SearchStrategy[list[Origin]]:
    def origin(stream: str, a: int, b: int) -> Origin:
        return Origin(stream, min(a, b), max(a, b))

    one = st.builds(origin, st.text(LETTERS, min_size=1, max_size=20), positions, positions)
    return st.lists(one, max_size=3, unique_by=lambda value: value.stream)


def same(ours: Any, theirs: bytes) -> bool:
    return (b"" if ours is None else np.ascontiguousarray(ours).tobytes()) == theirs


@given(epoch=uint64s, tables=st.lists(pulls(), max_size=4))
def test_a_pull_request_reads_the_same_for_a_generated_server_and_for_ours(
    epoch: int, tables: list[wire.TablePull]
) -> None:
    data = wire.encode_pull_request(epoch, tables)
    message = pb.PullRequest.FromString(data)
    assert message.epoch == epoch and len(message.tables) == len(tables)
    for theirs, ours in zip(message.tables, tables, strict=True):
        assert (theirs.table, theirs.meta) == (ours.table, ours.meta)
        assert theirs.dtype == wire.dtype_code(ours.dtype) and same(ours.ids, theirs.ids)
    for encoded in (data, message.SerializeToString()):
        back = wire.decode_pull_request(encoded)
        assert back.epoch == epoch
        for got, sent in zip(back.tables, tables, strict=True):
            assert (got.table, got.dtype, got.meta) == (sent.table, sent.dtype, sent.meta)
            np.testing.assert_array_equal(got.ids, sent.ids)


@given(
    epoch=uint64s,
    tables=st.lists(parts(), max_size=3),
    sent_origins=origins(),
    event_time_ms=st.none() | st.integers(-(2**63), 2**63 - 1),
    generation=positions,
)
def test_a_push_request_reads_the_same_for_a_generated_server_and_for_ours(
    epoch: int,
    tables: list[wire.TablePart],
    sent_origins: list[Origin],
    event_time_ms: int | None,
    generation: int,
) -> None:
    generations = {origin.stream: generation for origin in sent_origins}
    data = wire.encode_push_request(epoch, tables, sent_origins, generations, event_time_ms)
    message = pb.PushRequest.FromString(data)
    assert message.HasField("event_time_ms") == (event_time_ms is not None)
    assert [(o.stream, o.begin, o.end, o.generation) for o in message.origins] == [
        (o.stream, o.begin, o.end, generation) for o in sent_origins
    ]
    for theirs, ours in zip(message.tables, tables, strict=True):
        assert theirs.table == ours.table and theirs.dim == ours.grads.shape[1]
        assert theirs.dtype == wire.dtype_code(ours.grads.dtype)
        assert (theirs.lr if theirs.HasField("lr") else None) == ours.lr
        assert same(ours.ids, theirs.ids) and same(ours.grads, theirs.grads)
        assert same(ours.counts, theirs.counts) and same(ours.event_times_ms, theirs.event_times_ms)
    for encoded in (data, message.SerializeToString()):
        back = wire.decode_push_request(encoded)
        assert (back.epoch, back.origins, back.event_time_ms) == (epoch, sent_origins, event_time_ms)
        assert back.generations == generations
        for got, sent in zip(back.tables, tables, strict=True):
            assert (got.table, got.lr, got.grads.dtype) == (sent.table, sent.lr, sent.grads.dtype)
            for name in ("ids", "grads", "counts", "event_times_ms"):
                np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))


@given(
    num_ids=st.integers(0, 9),
    dim=st.integers(1, 200),
    dtype=st.sampled_from([F32, F16, None]),
    meta=st.booleans(),
    name=names,
    seed=st.integers(0, 9),
)
def test_a_pull_response_reads_the_same_for_a_generated_client_and_for_ours(
    num_ids: int, dim: int, dtype: Any, meta: bool, name: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num_ids, dim)).astype(dtype or F32)
    known = Rows(
        rows if dtype is not None else np.empty((num_ids, 0), F32),
        rng.integers(0, 2, num_ids).astype(bool),
        rng.integers(0, 2**32, num_ids, dtype=np.uint32),
        rng.integers(0, 2**62, num_ids),
        rng.integers(0, 2**62, num_ids),
    )
    writer = wire.PullResponseWriter()
    for _ in range(2):
        writer.table(name, dim, num_ids, dtype, rows.tobytes(), known if meta else None)
    data = writer.join()
    message = pb.PullResponse.FromString(data)
    for encoded in (data, message.SerializeToString()):
        tables = wire.decode_pull_response(encoded)
        assert len(tables) == len(message.tables) == 2
        for got, theirs in zip(tables, message.tables, strict=True):
            assert (got.table, got.dim) == (theirs.table, theirs.dim) == (name, dim)
            assert theirs.dtype == wire.dtype_code(dtype)
            assert (got.rows is None) == (dtype is None)
            if got.rows is not None:
                np.testing.assert_array_equal(got.rows, rows)
                assert theirs.rows == rows.tobytes()
            assert (got.meta is not None) == (meta and num_ids > 0)
            if got.meta is not None:
                for column in ("found", "updates", "first_seen_s", "last_seen_s", "embeddings"):
                    np.testing.assert_array_equal(getattr(got.meta, column), getattr(known, column))


def test_arrays_of_our_own_messages_are_used_where_they_lie() -> None:
    for name in ("t", "items", "a-longer-name"):
        ids = np.arange(777, dtype=np.uint64)
        grads = np.ones((777, 64), np.float32)
        part = wire.TablePart(name, ids, grads, np.ones(777, np.uint32), np.ones(777, np.int64), 0.5)
        data = wire.encode_push_request(1, [part, part], [Origin("s", 0, 1)])
        for got in wire.decode_push_request(data).tables:
            for column in (got.ids, got.grads, got.counts, got.event_times_ms):
                assert column is not None and not column.flags.owndata and column.flags.aligned
        [pull] = wire.decode_pull_request(wire.encode_pull_request(1, [wire.TablePull(name, ids, F32, False)])).tables
        assert not pull.ids.flags.owndata and pull.ids.flags.aligned


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_a_typed_error_or_what_a_generated_parser_reads(data: bytes) -> None:
    check_against_generated(data)


@given(parts_=st.lists(parts(), min_size=1, max_size=2), sent_origins=origins(), data=st.data())
def test_damaged_pushes_are_a_typed_error_or_what_a_generated_parser_reads(
    parts_: list[wire.TablePart], sent_origins: list[Origin], data: st.DataObject
) -> None:
    whole = wire.encode_push_request(1, parts_, sent_origins, None, 7)
    wire.decode_push_request(whole)
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    check_against_generated(bytes(damaged))


def check_against_generated(data: bytes) -> None:
    decoders: list[tuple[Any, Any, Any]] = [
        (wire.decode_pull_request, pb.PullRequest, lambda value: value.tables),
        (wire.decode_push_request, pb.PushRequest, lambda value: value.tables),
        (wire.decode_pull_response, pb.PullResponse, lambda value: value),
    ]
    for decode, kind, tables_of in decoders:
        try:
            ours = decode(data)
        except InvalidArgumentError as error:
            assert error.field and error.problem
            continue
        except LimitError:
            continue
        theirs = kind.FromString(data)
        assert [table.table for table in tables_of(ours)] == [table.table for table in theirs.tables]
        if hasattr(ours, "epoch"):
            assert ours.epoch == theirs.epoch
            assert all(same(a.ids, b.ids) for a, b in zip(ours.tables, theirs.tables, strict=True))
        if isinstance(ours, wire.PushRequest):
            assert all(same(a.grads, b.grads) for a, b in zip(ours.tables, theirs.tables, strict=True))
            assert [(o.stream, o.begin, o.end) for o in ours.origins] == [
                (o.stream, o.begin, o.end) for o in theirs.origins
            ]
            assert ours.generations == {o.stream: o.generation for o in theirs.origins}
            assert ours.event_time_ms == (theirs.event_time_ms if theirs.HasField("event_time_ms") else None)


def push(**changes: Any) -> bytes:
    values: dict[str, Any] = {"table": "items", "ids": b"\1" * 16, "dim": 2, "grads": b"\0" * 16}
    return pb.PushRequest(tables=[pb.TablePush(**(values | changes))]).SerializeToString()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (push(ids=b"\1" * 15), "PushRequest.tables[0].ids"),
        (push(grads=b"\0" * 15), "PushRequest.tables[0].grads"),
        (push(grads=b"\0" * 8), "PushRequest.tables[0].grads"),
        (push(dim=3), "PushRequest.tables[0].grads"),
        (push(dim=0), "PushRequest.tables[0].grads"),
        (push(dtype=pb.DTYPE_NONE), "PushRequest.tables[0].dtype"),
        (push(dtype=17), "PushRequest.tables[0].dtype"),
        (push(counts=b"\0" * 4), "PushRequest.tables[0].counts"),
        (push(counts=b"\0" * 7), "PushRequest.tables[0].counts"),
        (push(event_times_ms=b"\0" * 8), "PushRequest.tables[0].event_times_ms"),
        (pb.PushRequest(origins=[pb.Origin(stream="s", begin=2, end=1)]).SerializeToString(), "origins[0].end"),
        (pb.PushRequest(origins=[pb.Origin(begin=1, end=1)]).SerializeToString(), "origins[0].stream"),
        (pb.PushRequest(origins=[pb.Origin(stream="s")] * 2).SerializeToString(), "origins[1]"),
        (pb.PushRequest(origins=[pb.Origin(stream="s", end=2**63)]).SerializeToString(), "origins[0].end"),
        (b"\x12\x7f", "PushRequest"),
        (b"\x08\xff", "PushRequest"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "PushRequest"),
        (b"\x0b", "PushRequest"),
        (b"\x00\x00", "PushRequest"),
        (b"\x10\x01", "PushRequest.tables[0]"),
        (b"\x12\x03\x0a\x01\xff", "PushRequest.tables[0].table"),
    ],
)
def test_a_refused_push_names_its_field(data: bytes, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        wire.decode_push_request(data)
    assert field in caught.value.field


def test_bounds_are_typed_errors() -> None:
    with pytest.raises(LimitError, match="tables"):
        wire.decode_pull_request(b"\x12\x00" * (wire.TABLES_PER_CALL_MAX + 1))
    with pytest.raises(LimitError, match="fields"):
        wire.decode_pull_request(b"\x08\x01" * (1 << 17))
    ids = np.zeros(wire.MESSAGE_BYTES_MAX // 8, np.uint64)
    with pytest.raises(LimitError, match="PullRequest bytes"):
        wire.encode_pull_request(1, [wire.TablePull("t", ids, F32, False)])


def origin_bytes(**values: Any) -> bytes:
    return pb.PushRequest(origins=[pb.Origin(**values)]).SerializeToString()


TAILS = {
    "other numbers": origin_bytes(stream="abc", begin=1, end=2, generation=3) + b"\x20\x09",
    "no origins": b"\x20\x09",
    "nothing": b"",
    "an origin twice": origin_bytes(stream="abc", begin=1, end=2) * 2,
    "another table": push(),
    "an epoch": b"\x08\x05",
    "two times": b"\x20\x09\x20\x0a",
    "the time first": b"\x20\x09" + origin_bytes(stream="abc", begin=1, end=2),
    "a long number": b"\x20\x89\x00",
    "an unknown field": b"\x48\x01" + origin_bytes(stream="abc", begin=1, end=2),
    "a group": b"\x4b\x4c",
    "a number that ends early": b"\x20\x89",
    "no UTF-8": b"\x1a\x03\x0a\x01\xff",
    "an end before its begin": origin_bytes(stream="abc", begin=2, end=1),
    "no stream": origin_bytes(begin=1, end=2),
    "a generation beyond": origin_bytes(stream="abc", begin=1, end=2, generation=2**63),
    "an origin of another type": b"\x18\x01",
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_a_push_like_an_earlier_one_reads_as_the_first_of_its_kind(tail: bytes) -> None:
    ids, grads = np.arange(5, dtype=np.uint64), np.arange(10, dtype=np.float32).reshape(5, 2)
    start = wire.encode_push_request(4, [wire.TablePart("items", ids, grads, None, None, None)])

    def read(data: bytes) -> Any:
        try:
            request = wire.decode_push_request(data)
        except InvalidArgumentError as error:
            return error.field, error.problem
        columns = [(part.table, part.ids.tolist(), part.grads.tolist()) for part in request.tables]
        return request.epoch, columns, request.origins, request.generations, request.event_time_ms

    wire_push._recent_shapes.clear()
    first = read(start + tail)
    wire_push._recent_shapes.clear()
    # As long as what follows it, so that it is this one's shape that is looked at.
    filler = bytes([0x4A, len(tail) - 2]) + bytes(len(tail) - 2) if len(tail) > 1 else tail
    read(start + filler)
    assert len(wire_push._recent_shapes) == 1 and len(start + tail) in wire_push._recent_shapes
    assert read(start + tail) == first


def test_unknown_fields_are_left_alone() -> None:
    data = wire.encode_pull_request(3, []) + b"\xa2\x06\x03abc" + b"\xa9\x06" + b"\0" * 8
    assert wire.decode_pull_request(data).epoch == 3
    with pytest.raises(DecodeError):
        pb.PullRequest.FromString(data + b"\xa2\x06\x7f")


@given(
    sizes=st.lists(st.tuples(names, st.integers(0, 5), st.integers(1, 40)), max_size=4),
    dtype=st.sampled_from([F32, F16]),
    other=st.integers(0, 3),
)
def test_an_expected_answer_is_recognised_without_parsing_and_no_other(
    sizes: list[tuple[str, int, int]], dtype: Any, other: int
) -> None:
    writer = wire.PullResponseWriter()
    sent = []
    for i, (name, num_ids, dim) in enumerate(sizes):
        sent.append(np.full((num_ids, dim), i + 1, dtype))
        writer.table(name, dim, num_ids, dtype, sent[-1].tobytes(), None)
    data = writer.join()
    matched = wire.match_rows(data, sizes, dtype)
    assert matched is not None
    for got, expected, parsed in zip(matched, sent, wire.decode_pull_response(data), strict=True):
        assert (got.table, got.dim) == (parsed.table, parsed.dim)
        assert got.rows is not None and got.rows.flags.aligned
        np.testing.assert_array_equal(got.rows, expected)
    if len(sizes) == 1 and sizes[0][1]:
        [(name, num_ids, dim)] = sizes
        own = wire.own_rows(data, name, num_ids, dim, wire.dtype_code(dtype), dtype.itemsize)
        assert own is not None
        np.testing.assert_array_equal(own, sent[0])
        for wrong in ((name + "x", num_ids, dim), (name, num_ids + 1, dim), (name, num_ids, dim + 1)):
            assert wire.own_rows(data, *wrong, wire.dtype_code(dtype), dtype.itemsize) is None
    assert wire.match_rows(data + b"\0", sizes, dtype) is None
    assert wire.match_rows(data[:-1], sizes, dtype) is None or not data
    if sizes:
        name, num_ids, dim = sizes[other % len(sizes)]
        changed = [*sizes]
        changed[other % len(sizes)] = (name + "x", num_ids, dim)
        assert wire.match_rows(data, changed, dtype) is None


def test_requests_of_one_length_are_told_apart() -> None:
    ids = np.arange(3, dtype=np.uint64)
    cases = [wire.TablePull(table, ids + i, dtype, False) for i, (table, dtype) in enumerate([("a", F32), ("b", F16)])]
    for epoch in (1, 2):
        for pull in cases * 2:
            got = wire.decode_pull_request(wire.encode_pull_request(epoch, [pull]))
            assert (got.epoch, got.tables[0].table, got.tables[0].dtype) == (epoch, pull.table, pull.dtype)
            np.testing.assert_array_equal(got.tables[0].ids, pull.ids)


def test_a_known_request_is_known_by_everything_but_its_ids() -> None:
    ids = np.arange(5, dtype=np.uint64)
    data = wire.encode_pull_request(7, [wire.TablePull("known", ids, F16, False)])
    wire.decode_pull_request(data)
    shape = wire.known_pull_request(wire.encode_pull_request(7, [wire.TablePull("known", ids + 9, F16, False)]))
    assert shape is not None and (shape.epoch, shape.table, shape.width, shape.num_ids) == (7, "known", 2, 5)
    for other in (
        wire.encode_pull_request(8, [wire.TablePull("known", ids, F16, False)]),
        wire.encode_pull_request(7, [wire.TablePull("knowm", ids, F16, False)]),
        wire.encode_pull_request(7, [wire.TablePull("known", ids, F32, False)]),
        wire.encode_pull_request(7, [wire.TablePull("known", ids[:4], F16, False)]),
    ):
        assert wire.known_pull_request(other) is None
    meta = wire.encode_pull_request(7, [wire.TablePull("known", ids, F16, True)])
    wire.decode_pull_request(meta)
    known = wire.known_pull_request(meta)
    assert known is not None and not known.width
