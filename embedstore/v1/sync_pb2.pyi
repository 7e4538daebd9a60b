from embedstore.v1 import spec_pb2 as _spec_pb2
from embedstore.v1 import store_pb2 as _store_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Cursor(_message.Message):
    __slots__ = ("chunk", "incarnation", "version")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    chunk: int
    incarnation: int
    version: int
    def __init__(self, chunk: _Optional[int] = ..., incarnation: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class TableCursors(_message.Message):
    __slots__ = ("table", "cursors")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    table: str
    cursors: _containers.RepeatedCompositeFieldContainer[Cursor]
    def __init__(self, table: _Optional[str] = ..., cursors: _Optional[_Iterable[_Union[Cursor, _Mapping]]] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("epoch", "wants", "ack")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    wants: FollowWants
    ack: FollowAck
    def __init__(self, epoch: _Optional[int] = ..., wants: _Optional[_Union[FollowWants, _Mapping]] = ..., ack: _Optional[_Union[FollowAck, _Mapping]] = ...) -> None: ...

class FollowWants(_message.Message):
    __slots__ = ("tables", "only_tables", "embeddings_only", "dense_versions", "sync_interval_ms")
    class DenseVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TABLES_FIELD_NUMBER: _ClassVar[int]
    ONLY_TABLES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_ONLY_FIELD_NUMBER: _ClassVar[int]
    DENSE_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SYNC_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[TableCursors]
    only_tables: _containers.RepeatedScalarFieldContainer[str]
    embeddings_only: bool
    dense_versions: _containers.ScalarMap[str, int]
    sync_interval_ms: int
    def __init__(self, tables: _Optional[_Iterable[_Union[TableCursors, _Mapping]]] = ..., only_tables: _Optional[_Iterable[str]] = ..., embeddings_only: _Optional[bool] = ..., dense_versions: _Optional[_Mapping[str, int]] = ..., sync_interval_ms: _Optional[int] = ...) -> None: ...

class FollowAck(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("sequence", "table", "dropped", "part", "heartbeat", "dense_set")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DENSE_SET_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    table: TableAnnouncement
    dropped: TableDropped
    part: DeltaPart
    heartbeat: Heartbeat
    dense_set: _store_pb2.DenseSet
    def __init__(self, sequence: _Optional[int] = ..., table: _Optional[_Union[TableAnnouncement, _Mapping]] = ..., dropped: _Optional[_Union[TableDropped, _Mapping]] = ..., part: _Optional[_Union[DeltaPart, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., dense_set: _Optional[_Union[_store_pb2.DenseSet, _Mapping]] = ...) -> None: ...

class TableAnnouncement(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: _spec_pb2.TableSpec
    def __init__(self, spec: _Optional[_Union[_spec_pb2.TableSpec, _Mapping]] = ...) -> None: ...

class TableDropped(_message.Message):
    __slots__ = ("table",)
    TABLE_FIELD_NUMBER: _ClassVar[int]
    table: str
    def __init__(self, table: _Optional[str] = ...) -> None: ...

class DeltaPart(_message.Message):
    __slots__ = ("table", "chunk", "offset", "length", "data")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    table: str
    chunk: int
    offset: int
    length: int
    data: bytes
    def __init__(self, table: _Optional[str] = ..., chunk: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("leader_time_ms", "tables")
    LEADER_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    leader_time_ms: int
    tables: _containers.RepeatedCompositeFieldContainer[TableHeartbeat]
    def __init__(self, leader_time_ms: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TableHeartbeat, _Mapping]]] = ...) -> None: ...

class TableHeartbeat(_message.Message):
    __slots__ = ("table", "chunks", "watermark_sets")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_SETS_FIELD_NUMBER: _ClassVar[int]
    table: str
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkState]
    watermark_sets: _containers.RepeatedCompositeFieldContainer[WatermarkSet]
    def __init__(self, table: _Optional[str] = ..., chunks: _Optional[_Iterable[_Union[ChunkState, _Mapping]]] = ..., watermark_sets: _Optional[_Iterable[_Union[WatermarkSet, _Mapping]]] = ...) -> None: ...

class ChunkState(_message.Message):
    __slots__ = ("cursor", "clock_ms", "watermark_set")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_SET_FIELD_NUMBER: _ClassVar[int]
    cursor: Cursor
    clock_ms: int
    watermark_set: int
    def __init__(self, cursor: _Optional[_Union[Cursor, _Mapping]] = ..., clock_ms: _Optional[int] = ..., watermark_set: _Optional[int] = ...) -> None: ...

class WatermarkSet(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedCompositeFieldContainer[_store_pb2.StreamPosition]
    def __init__(self, positions: _Optional[_Iterable[_Union[_store_pb2.StreamPosition, _Mapping]]] = ...) -> None: ...
