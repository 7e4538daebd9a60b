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
    __slots__ = ("table", "chunks", "incarnations", "versions")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    table: str
    chunks: bytes
    incarnations: bytes
    versions: bytes
    def __init__(self, table: _Optional[str] = ..., chunks: _Optional[bytes] = ..., incarnations: _Optional[bytes] = ..., versions: _Optional[bytes] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("epoch", "wants", "ack", "rewind")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    REWIND_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    wants: FollowWants
    ack: FollowAck
    rewind: FollowRewind
    def __init__(self, epoch: _Optional[int] = ..., wants: _Optional[_Union[FollowWants, _Mapping]] = ..., ack: _Optional[_Union[FollowAck, _Mapping]] = ..., rewind: _Optional[_Union[FollowRewind, _Mapping]] = ...) -> None: ...

class FollowWants(_message.Message):
    __slots__ = ("tables", "only_tables", "embeddings_only", "dense_checksums", "sync_interval_ms", "standby", "complete_until_ms", "name")
    class DenseChecksumsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TABLES_FIELD_NUMBER: _ClassVar[int]
    ONLY_TABLES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_ONLY_FIELD_NUMBER: _ClassVar[int]
    DENSE_CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    SYNC_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    STANDBY_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[TableCursors]
    only_tables: _containers.RepeatedScalarFieldContainer[str]
    embeddings_only: bool
    dense_checksums: _containers.ScalarMap[str, int]
    sync_interval_ms: int
    standby: StandbyPlace
    complete_until_ms: int
    name: str
    def __init__(self, tables: _Optional[_Iterable[_Union[TableCursors, _Mapping]]] = ..., only_tables: _Optional[_Iterable[str]] = ..., embeddings_only: _Optional[bool] = ..., dense_checksums: _Optional[_Mapping[str, int]] = ..., sync_interval_ms: _Optional[int] = ..., standby: _Optional[_Union[StandbyPlace, _Mapping]] = ..., complete_until_ms: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class StandbyPlace(_message.Message):
    __slots__ = ("shard", "num_shards", "address")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    num_shards: int
    address: str
    def __init__(self, shard: _Optional[int] = ..., num_shards: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class FollowAck(_message.Message):
    __slots__ = ("sequence", "applied")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    applied: WatermarkSet
    def __init__(self, sequence: _Optional[int] = ..., applied: _Optional[_Union[WatermarkSet, _Mapping]] = ...) -> None: ...

class FollowRewind(_message.Message):
    __slots__ = ("cursors", "whole_table")
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_TABLE_FIELD_NUMBER: _ClassVar[int]
    cursors: TableCursors
    whole_table: bool
    def __init__(self, cursors: _Optional[_Union[TableCursors, _Mapping]] = ..., whole_table: _Optional[bool] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("sequence", "table", "dropped", "deltas", "heartbeat", "dense", "streams", "probes")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DENSE_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    table: TableAnnouncement
    dropped: TableDropped
    deltas: DeltaParts
    heartbeat: Heartbeat
    dense: DensePart
    streams: OpenStreams
    probes: Probes
    def __init__(self, sequence: _Optional[int] = ..., table: _Optional[_Union[TableAnnouncement, _Mapping]] = ..., dropped: _Optional[_Union[TableDropped, _Mapping]] = ..., deltas: _Optional[_Union[DeltaParts, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., dense: _Optional[_Union[DensePart, _Mapping]] = ..., streams: _Optional[_Union[OpenStreams, _Mapping]] = ..., probes: _Optional[_Union[Probes, _Mapping]] = ...) -> None: ...

class OpenStreams(_message.Message):
    __slots__ = ("streams",)
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[OpenStreamRecord]
    def __init__(self, streams: _Optional[_Iterable[_Union[OpenStreamRecord, _Mapping]]] = ...) -> None: ...

class OpenStreamRecord(_message.Message):
    __slots__ = ("stream", "begin", "generation")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    stream: str
    begin: int
    generation: int
    def __init__(self, stream: _Optional[str] = ..., begin: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

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

class DeltaParts(_message.Message):
    __slots__ = ("parts", "sent_ms")
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SENT_MS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[DeltaPart]
    sent_ms: int
    def __init__(self, parts: _Optional[_Iterable[_Union[DeltaPart, _Mapping]]] = ..., sent_ms: _Optional[int] = ...) -> None: ...

class Probes(_message.Message):
    __slots__ = ("probes",)
    PROBES_FIELD_NUMBER: _ClassVar[int]
    probes: _containers.RepeatedCompositeFieldContainer[Probe]
    def __init__(self, probes: _Optional[_Iterable[_Union[Probe, _Mapping]]] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("table", "id", "event_time_ms")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    table: str
    id: int
    event_time_ms: int
    def __init__(self, table: _Optional[str] = ..., id: _Optional[int] = ..., event_time_ms: _Optional[int] = ...) -> None: ...

class DeltaPart(_message.Message):
    __slots__ = ("table", "chunk", "offset", "length", "data", "oldest_event_ms", "newest_event_ms")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OLDEST_EVENT_MS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_EVENT_MS_FIELD_NUMBER: _ClassVar[int]
    table: str
    chunk: int
    offset: int
    length: int
    data: bytes
    oldest_event_ms: int
    newest_event_ms: int
    def __init__(self, table: _Optional[str] = ..., chunk: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., data: _Optional[bytes] = ..., oldest_event_ms: _Optional[int] = ..., newest_event_ms: _Optional[int] = ...) -> None: ...

class DensePart(_message.Message):
    __slots__ = ("name", "offset", "length", "crc32c", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    offset: int
    length: int
    crc32c: int
    data: bytes
    def __init__(self, name: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., crc32c: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("complete_until_ms", "replaced_in", "tables")
    COMPLETE_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    REPLACED_IN_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    complete_until_ms: int
    replaced_in: int
    tables: _containers.RepeatedCompositeFieldContainer[TableHeartbeat]
    def __init__(self, complete_until_ms: _Optional[int] = ..., replaced_in: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TableHeartbeat, _Mapping]]] = ...) -> None: ...

class TableHeartbeat(_message.Message):
    __slots__ = ("table", "chunks", "incarnations", "versions", "clocks_ms", "watermark_indexes", "watermark_sets")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_MS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_INDEXES_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_SETS_FIELD_NUMBER: _ClassVar[int]
    table: str
    chunks: bytes
    incarnations: bytes
    versions: bytes
    clocks_ms: bytes
    watermark_indexes: bytes
    watermark_sets: _containers.RepeatedCompositeFieldContainer[WatermarkSet]
    def __init__(self, table: _Optional[str] = ..., chunks: _Optional[bytes] = ..., incarnations: _Optional[bytes] = ..., versions: _Optional[bytes] = ..., clocks_ms: _Optional[bytes] = ..., watermark_indexes: _Optional[bytes] = ..., watermark_sets: _Optional[_Iterable[_Union[WatermarkSet, _Mapping]]] = ...) -> None: ...

class WatermarkSet(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedCompositeFieldContainer[_store_pb2.StreamPosition]
    def __init__(self, positions: _Optional[_Iterable[_Union[_store_pb2.StreamPosition, _Mapping]]] = ...) -> None: ...
