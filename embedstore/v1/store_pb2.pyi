from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]
    DTYPE_NONE: _ClassVar[Dtype]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_FLOAT16: Dtype
DTYPE_NONE: Dtype

class Origin(_message.Message):
    __slots__ = ("stream", "begin", "end", "generation")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    stream: str
    begin: int
    end: int
    generation: int
    def __init__(self, stream: _Optional[str] = ..., begin: _Optional[int] = ..., end: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class StreamPosition(_message.Message):
    __slots__ = ("stream", "position")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    stream: str
    position: int
    def __init__(self, stream: _Optional[str] = ..., position: _Optional[int] = ...) -> None: ...

class StreamState(_message.Message):
    __slots__ = ("stream", "applied", "durable", "watermarks", "generation")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    WATERMARKS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    stream: str
    applied: int
    durable: int
    watermarks: _containers.RepeatedScalarFieldContainer[int]
    generation: int
    def __init__(self, stream: _Optional[str] = ..., applied: _Optional[int] = ..., durable: _Optional[int] = ..., watermarks: _Optional[_Iterable[int]] = ..., generation: _Optional[int] = ...) -> None: ...

class TablePull(_message.Message):
    __slots__ = ("table", "ids", "dtype", "meta")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    table: str
    ids: bytes
    dtype: Dtype
    meta: bool
    def __init__(self, table: _Optional[str] = ..., ids: _Optional[bytes] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., meta: _Optional[bool] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("epoch", "tables")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    tables: _containers.RepeatedCompositeFieldContainer[TablePull]
    def __init__(self, epoch: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TablePull, _Mapping]]] = ...) -> None: ...

class TableRows(_message.Message):
    __slots__ = ("table", "dim", "dtype", "rows", "found", "updates", "first_seen_s", "last_seen_s")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    table: str
    dim: int
    dtype: Dtype
    rows: bytes
    found: bytes
    updates: bytes
    first_seen_s: bytes
    last_seen_s: bytes
    def __init__(self, table: _Optional[str] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., rows: _Optional[bytes] = ..., found: _Optional[bytes] = ..., updates: _Optional[bytes] = ..., first_seen_s: _Optional[bytes] = ..., last_seen_s: _Optional[bytes] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("tables",)
    TABLES_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[TableRows]
    def __init__(self, tables: _Optional[_Iterable[_Union[TableRows, _Mapping]]] = ...) -> None: ...

class TablePush(_message.Message):
    __slots__ = ("table", "ids", "dim", "dtype", "grads", "counts", "event_times_ms", "lr")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    GRADS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    table: str
    ids: bytes
    dim: int
    dtype: Dtype
    grads: bytes
    counts: bytes
    event_times_ms: bytes
    lr: float
    def __init__(self, table: _Optional[str] = ..., ids: _Optional[bytes] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., grads: _Optional[bytes] = ..., counts: _Optional[bytes] = ..., event_times_ms: _Optional[bytes] = ..., lr: _Optional[float] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("epoch", "tables", "origins", "event_time_ms")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    tables: _containers.RepeatedCompositeFieldContainer[TablePush]
    origins: _containers.RepeatedCompositeFieldContainer[Origin]
    event_time_ms: int
    def __init__(self, epoch: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TablePush, _Mapping]]] = ..., origins: _Optional[_Iterable[_Union[Origin, _Mapping]]] = ..., event_time_ms: _Optional[int] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("streams", "repeated_push", "lost_updates")
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    REPEATED_PUSH_FIELD_NUMBER: _ClassVar[int]
    LOST_UPDATES_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[StreamState]
    repeated_push: bool
    lost_updates: int
    def __init__(self, streams: _Optional[_Iterable[_Union[StreamState, _Mapping]]] = ..., repeated_push: _Optional[bool] = ..., lost_updates: _Optional[int] = ...) -> None: ...

class AssignRequest(_message.Message):
    __slots__ = ("epoch", "table", "ids", "dim", "dtype", "rows", "event_time_ms", "origin")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    table: str
    ids: bytes
    dim: int
    dtype: Dtype
    rows: bytes
    event_time_ms: int
    origin: Origin
    def __init__(self, epoch: _Optional[int] = ..., table: _Optional[str] = ..., ids: _Optional[bytes] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., rows: _Optional[bytes] = ..., event_time_ms: _Optional[int] = ..., origin: _Optional[_Union[Origin, _Mapping]] = ...) -> None: ...

class AssignResponse(_message.Message):
    __slots__ = ("repeated_push", "lost_updates")
    REPEATED_PUSH_FIELD_NUMBER: _ClassVar[int]
    LOST_UPDATES_FIELD_NUMBER: _ClassVar[int]
    repeated_push: bool
    lost_updates: int
    def __init__(self, repeated_push: _Optional[bool] = ..., lost_updates: _Optional[int] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("epoch", "table", "ids", "origin")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    table: str
    ids: bytes
    origin: Origin
    def __init__(self, epoch: _Optional[int] = ..., table: _Optional[str] = ..., ids: _Optional[bytes] = ..., origin: _Optional[_Union[Origin, _Mapping]] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ("deleted", "repeated_push", "lost_updates")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    REPEATED_PUSH_FIELD_NUMBER: _ClassVar[int]
    LOST_UPDATES_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    repeated_push: bool
    lost_updates: int
    def __init__(self, deleted: _Optional[int] = ..., repeated_push: _Optional[bool] = ..., lost_updates: _Optional[int] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("epoch", "table", "dtype", "sample_rows")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_ROWS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    table: str
    dtype: Dtype
    sample_rows: int
    def __init__(self, epoch: _Optional[int] = ..., table: _Optional[str] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., sample_rows: _Optional[int] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("chunk", "ids", "rows")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    chunk: int
    ids: bytes
    rows: TableRows
    def __init__(self, chunk: _Optional[int] = ..., ids: _Optional[bytes] = ..., rows: _Optional[_Union[TableRows, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class DenseSet(_message.Message):
    __slots__ = ("name", "tensors", "position", "generations", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    position: _containers.RepeatedCompositeFieldContainer[StreamPosition]
    generations: _containers.RepeatedScalarFieldContainer[int]
    version: int
    def __init__(self, name: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., position: _Optional[_Iterable[_Union[StreamPosition, _Mapping]]] = ..., generations: _Optional[_Iterable[int]] = ..., version: _Optional[int] = ...) -> None: ...

class PutDenseRequest(_message.Message):
    __slots__ = ("epoch", "dense_set")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DENSE_SET_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    dense_set: DenseSet
    def __init__(self, epoch: _Optional[int] = ..., dense_set: _Optional[_Union[DenseSet, _Mapping]] = ...) -> None: ...

class PutDenseResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class GetDenseRequest(_message.Message):
    __slots__ = ("epoch", "name")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    name: str
    def __init__(self, epoch: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class GetDenseResponse(_message.Message):
    __slots__ = ("dense_set",)
    DENSE_SET_FIELD_NUMBER: _ClassVar[int]
    dense_set: DenseSet
    def __init__(self, dense_set: _Optional[_Union[DenseSet, _Mapping]] = ...) -> None: ...

class OpenStreamRequest(_message.Message):
    __slots__ = ("epoch", "stream", "position", "generation")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    stream: str
    position: int
    generation: int
    def __init__(self, epoch: _Optional[int] = ..., stream: _Optional[str] = ..., position: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class OpenStreamResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: StreamState
    def __init__(self, state: _Optional[_Union[StreamState, _Mapping]] = ...) -> None: ...

class WatermarksRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class WatermarksResponse(_message.Message):
    __slots__ = ("streams",)
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[StreamState]
    def __init__(self, streams: _Optional[_Iterable[_Union[StreamState, _Mapping]]] = ...) -> None: ...
