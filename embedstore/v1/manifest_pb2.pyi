from embedstore.v1 import spec_pb2 as _spec_pb2
from embedstore.v1 import sync_pb2 as _sync_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StoreManifest(_message.Message):
    __slots__ = ("format", "shard", "num_shards", "epoch", "next_segment", "checkpoint", "checkpoint_ms")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_MS_FIELD_NUMBER: _ClassVar[int]
    format: int
    shard: int
    num_shards: int
    epoch: int
    next_segment: int
    checkpoint: int
    checkpoint_ms: int
    def __init__(self, format: _Optional[int] = ..., shard: _Optional[int] = ..., num_shards: _Optional[int] = ..., epoch: _Optional[int] = ..., next_segment: _Optional[int] = ..., checkpoint: _Optional[int] = ..., checkpoint_ms: _Optional[int] = ...) -> None: ...

class CheckpointManifest(_message.Message):
    __slots__ = ("number", "taken_ms", "tables")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TAKEN_MS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    number: int
    taken_ms: int
    tables: _containers.RepeatedCompositeFieldContainer[TableManifest]
    def __init__(self, number: _Optional[int] = ..., taken_ms: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TableManifest, _Mapping]]] = ...) -> None: ...

class ExportManifest(_message.Message):
    __slots__ = ("num_shards", "tables", "streams", "dense")
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    DENSE_FIELD_NUMBER: _ClassVar[int]
    num_shards: int
    tables: _containers.RepeatedCompositeFieldContainer[TableManifest]
    streams: _containers.RepeatedCompositeFieldContainer[StreamManifest]
    dense: _containers.RepeatedCompositeFieldContainer[DenseRef]
    def __init__(self, num_shards: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TableManifest, _Mapping]]] = ..., streams: _Optional[_Iterable[_Union[StreamManifest, _Mapping]]] = ..., dense: _Optional[_Iterable[_Union[DenseRef, _Mapping]]] = ...) -> None: ...

class DenseRef(_message.Message):
    __slots__ = ("name", "blob")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    name: str
    blob: BlobRef
    def __init__(self, name: _Optional[str] = ..., blob: _Optional[_Union[BlobRef, _Mapping]] = ...) -> None: ...

class TableManifest(_message.Message):
    __slots__ = ("spec", "chunks", "watermark_sets", "beginnings")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_SETS_FIELD_NUMBER: _ClassVar[int]
    BEGINNINGS_FIELD_NUMBER: _ClassVar[int]
    spec: _spec_pb2.TableSpec
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkManifest]
    watermark_sets: _containers.RepeatedCompositeFieldContainer[_sync_pb2.WatermarkSet]
    beginnings: _sync_pb2.WatermarkSet
    def __init__(self, spec: _Optional[_Union[_spec_pb2.TableSpec, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[ChunkManifest, _Mapping]]] = ..., watermark_sets: _Optional[_Iterable[_Union[_sync_pb2.WatermarkSet, _Mapping]]] = ..., beginnings: _Optional[_Union[_sync_pb2.WatermarkSet, _Mapping]] = ...) -> None: ...

class ChunkManifest(_message.Message):
    __slots__ = ("cursor", "clock_ms", "watermark_set", "blobs")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_SET_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    cursor: _sync_pb2.Cursor
    clock_ms: int
    watermark_set: int
    blobs: _containers.RepeatedCompositeFieldContainer[BlobRef]
    def __init__(self, cursor: _Optional[_Union[_sync_pb2.Cursor, _Mapping]] = ..., clock_ms: _Optional[int] = ..., watermark_set: _Optional[int] = ..., blobs: _Optional[_Iterable[_Union[BlobRef, _Mapping]]] = ...) -> None: ...

class BlobRef(_message.Message):
    __slots__ = ("segment", "offset", "length", "crc32c")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    segment: int
    offset: int
    length: int
    crc32c: int
    def __init__(self, segment: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class StreamManifest(_message.Message):
    __slots__ = ("stream", "begin", "generation")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    stream: str
    begin: int
    generation: int
    def __init__(self, stream: _Optional[str] = ..., begin: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class Acquaintances(_message.Message):
    __slots__ = ("addresses",)
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, addresses: _Optional[_Iterable[str]] = ...) -> None: ...
