"""EmbeddingService: rows and dense sets of one process. Every method may run in any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from embedstore import _native, dense, messages, wire
from embedstore.errors import InvalidArgumentError, LimitError, UnsupportedError
from embedstore.freshness import SERVED_ROW_AGE
from embedstore.interface import IDS_PER_CALL_MAX, Origin, TablePush
from embedstore.placement import chunks_of_ids
from embedstore.server.interceptors import Guard
from embedstore.server.sampling import Sampler
from embedstore.server.serving import Serving
from embedstore.v1 import store_pb2

SERVICE = "embedstore.v1.EmbeddingService"
SCAN_PART_BYTES = 4 << 20
_META_BYTES = 21
_FLOAT32 = np.dtype("<f4")


class EmbeddingService:
    """The methods of the service; see ``store.proto``."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._sampler = Sampler()

    def handler(self, guard: Guard) -> grpc.GenericRpcHandler[Any, Any]:
        """All methods, ready to be registered."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Pull": guard.raw(self.pull),
                "Push": guard.raw(self.push),
                "Assign": guard.unary(store_pb2.AssignRequest, self.assign),
                "Delete": guard.unary(store_pb2.DeleteRequest, self.delete),
                "Scan": guard.stream(store_pb2.ScanRequest, self.scan),
                "PutDense": guard.unary(store_pb2.PutDenseRequest, self.put_dense),
                "GetDense": guard.unary(store_pb2.GetDenseRequest, self.get_dense),
                "OpenStream": guard.unary(store_pb2.OpenStreamRequest, self.open_stream),
                "Watermarks": guard.unary(store_pb2.WatermarksRequest, self.watermarks),
            },
        )

    def pull(self, data: bytes) -> bytes:
        """Pull: the native core writes rows straight into the answer."""
        known = wire.known_pull_request(data)
        if known is not None and known.width:
            return self._pull_known(data, known)
        request = wire.decode_pull_request(data)
        self._serving.check_epoch(request.epoch)
        store = self._serving.store()
        found = [(store.table(pull.table), pull) for pull in request.tables]
        num_bytes = sum(
            len(pull.ids) * ((table.spec.dim * pull.dtype.itemsize if pull.dtype else 0) + pull.meta * _META_BYTES)
            for table, pull in found
        )
        wire.check_message("PullResponse", num_bytes)
        writer = wire.PullResponseWriter()
        for table, pull in found:
            dim, dtype = table.spec.dim, pull.dtype
            if pull.meta or dtype is None:
                rows = table.pull_rows(pull.ids, dtype=dtype or np.float32)
                piece = rows.embeddings.tobytes() if dtype else b""
                writer.table(pull.table, dim, len(pull.ids), dtype, piece, rows)
            else:
                writer.table(pull.table, dim, len(pull.ids), dtype, (table.native, pull.ids, dtype), None)
        message = _native.gather_message(writer.pieces())
        for table, pull in found:
            store.sample_served(table, pull.ids)
        return message

    def _pull_known(self, data: bytes, asked: wire.PullShape) -> bytes:
        """The same for rows of one table, when only the ids are new: no more than what that needs, because at thousands
        of small pulls a second every step shows."""
        self._serving.check_epoch(asked.epoch)
        store = self._serving.store()
        table = store.table(asked.table)
        dim, width, num_ids = table.spec.dim, asked.width, asked.num_ids
        wire.check_message("PullResponse", num_ids * dim * width)
        head = wire.rows_head(asked.table, dim, asked.code, num_ids * dim * width, 0)
        message = _native.answer_pull(table.native, data, len(asked.head), num_ids, head, width)
        if store.freshness.is_due(SERVED_ROW_AGE, asked.table):
            store.observe_served(table, asked.ids(data))
        return message

    def push(self, data: bytes) -> bytes:
        """Push: the columns are used where they lie in the message."""
        request = wire.decode_push_request(data)
        self._serving.check_epoch(request.epoch)
        store = self._serving.writable()
        tables: dict[str, TablePush] = {}
        for i, part in enumerate(request.tables):
            if part.table in tables:
                raise InvalidArgumentError(f"PushRequest.tables[{i}].table", f"{part.table!r} comes twice")
            dim = store.table(part.table).spec.dim
            if len(part.ids) and part.grads.shape[1] != dim:
                raise InvalidArgumentError(
                    f"PushRequest.tables[{i}].dim", f"must be {dim} for {part.table!r}, not {part.grads.shape[1]}"
                )
            tables[part.table] = TablePush(*part[1:])
        missing = self._sampler.missing(store, tables)
        result = store.push(
            tables,
            origins=request.origins,
            event_time_ms=request.event_time_ms,
            generations=request.generations,
        )
        if not result.repeated:
            self._sampler.trained(store, tables, request.event_time_ms, missing)
        return store_pb2.PushResponse(
            streams=messages.stream_states_to_proto(result.streams),
            repeated_push=result.repeated,
            lost_updates=result.lost_updates,
        ).SerializeToString()

    def assign(self, request: store_pb2.AssignRequest) -> store_pb2.AssignResponse:
        """Assign."""
        self._serving.check_epoch(request.epoch)
        store = self._serving.writable()
        dim = store.table(request.table).spec.dim
        if request.dim != dim:
            raise InvalidArgumentError("AssignRequest.dim", f"must be {dim} for {request.table!r}, not {request.dim}")
        ids = _ids("AssignRequest.ids", request.ids)
        result = store.assign_from(
            _origin("AssignRequest.origin", request),
            request.table,
            ids,
            _rows("AssignRequest", request, len(ids)),
            event_time_ms=request.event_time_ms if request.HasField("event_time_ms") else None,
        )
        return store_pb2.AssignResponse(repeated_push=result.repeated, lost_updates=result.lost_updates)

    def delete(self, request: store_pb2.DeleteRequest) -> store_pb2.DeleteResponse:
        """Delete."""
        self._serving.check_epoch(request.epoch)
        deleted, result = self._serving.writable().delete_from(
            _origin("DeleteRequest.origin", request), request.table, _ids("DeleteRequest.ids", request.ids)
        )
        return store_pb2.DeleteResponse(
            deleted=deleted, repeated_push=result.repeated, lost_updates=result.lost_updates
        )

    def scan(self, request: store_pb2.ScanRequest) -> Iterator[store_pb2.ScanResponse]:
        """Scan: chunk by chunk, in bounded parts."""
        self._serving.check_epoch(request.epoch)
        if request.dtype not in (store_pb2.DTYPE_UNSPECIFIED, store_pb2.DTYPE_FLOAT32):
            raise UnsupportedError("ScanRequest.dtype", "only float32 is supported yet")
        store = self._serving.store()
        spec = store.table(request.table).spec
        part_rows = max(1, SCAN_PART_BYTES // (4 * spec.dim + _META_BYTES + 8))
        random = np.random.default_rng()
        for all_ids, all_rows in store.scan(request.table):
            ids, rows = all_ids, all_rows
            if 0 < request.sample_rows < len(ids):
                chosen = random.choice(len(ids), request.sample_rows, replace=False)
                ids, rows = ids[chosen], rows.take(chosen)
            chunk = int(chunks_of_ids(ids[:1], spec.num_chunks)[0])
            for begin in range(0, len(ids), part_rows):
                part = slice(begin, begin + part_rows)
                yield messages.scan_part_to_proto(chunk, request.table, spec.dim, ids, rows, part)

    def put_dense(self, request: store_pb2.PutDenseRequest) -> store_pb2.PutDenseResponse:
        """PutDense."""
        self._serving.check_epoch(request.epoch)
        store = self._serving.writable()
        message = request.dense_set
        name, value = dense.from_proto(message)
        self._serving.check_dense_owner(name)
        if len(message.generations) not in (0, len(message.position)):
            raise InvalidArgumentError("DenseSet.generations", f"must have {len(message.position)} entries, or none")
        given = list(message.generations) or [0] * len(message.position)
        generations = {entry.stream: generation for entry, generation in zip(message.position, given, strict=True)}
        return store_pb2.PutDenseResponse(
            version=store.put_dense(name, value.tensors, value.position, generations=generations)
        )

    def get_dense(self, request: store_pb2.GetDenseRequest) -> store_pb2.GetDenseResponse:
        """GetDense."""
        self._serving.check_epoch(request.epoch)
        store = self._serving.store()
        dense.check_dense_name("GetDenseRequest.name", request.name)
        self._serving.check_dense_owner(request.name)
        return store_pb2.GetDenseResponse(dense_set=dense.to_proto(request.name, store.get_dense(request.name)))

    def open_stream(self, request: store_pb2.OpenStreamRequest) -> store_pb2.OpenStreamResponse:
        """OpenStream."""
        self._serving.check_epoch(request.epoch)
        state = self._serving.writable().open_stream(request.stream, request.position, request.generation)
        return store_pb2.OpenStreamResponse(state=messages.stream_states_to_proto({request.stream: state})[0])

    def watermarks(self, request: store_pb2.WatermarksRequest) -> store_pb2.WatermarksResponse:
        """Watermarks."""
        self._serving.check_epoch(request.epoch)
        states = self._serving.store().stream_states()
        return store_pb2.WatermarksResponse(streams=messages.stream_states_to_proto(states))


def _ids(label: str, data: bytes) -> np.ndarray:
    if len(data) % 8:
        raise InvalidArgumentError(label, f"must be a multiple of 8 bytes, not {len(data)}")
    if len(data) // 8 > IDS_PER_CALL_MAX:
        raise LimitError(label, len(data) // 8, IDS_PER_CALL_MAX)
    return np.frombuffer(data, "<u8")


def _rows(label: str, request: Any, num_ids: int) -> np.ndarray:
    if request.dtype not in (store_pb2.DTYPE_UNSPECIFIED, store_pb2.DTYPE_FLOAT32, store_pb2.DTYPE_FLOAT16):
        raise InvalidArgumentError(f"{label}.dtype", "must be float32 or float16")
    dtype = np.dtype("<f2") if request.dtype == store_pb2.DTYPE_FLOAT16 else _FLOAT32
    length = num_ids * request.dim * dtype.itemsize
    if len(request.rows) != length:
        raise InvalidArgumentError(f"{label}.rows", f"must be {length} bytes, not {len(request.rows)}")
    return np.frombuffer(request.rows, dtype).reshape(num_ids, request.dim)


def _origin(label: str, request: Any) -> Origin | None:
    if not request.HasField("origin"):
        return None
    try:
        return Origin(request.origin.stream, request.origin.begin, request.origin.end)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{label}.{error.field.removeprefix('Origin.')}", error.problem) from None
