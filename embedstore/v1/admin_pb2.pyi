from embedstore.v1 import spec_pb2 as _spec_pb2
from embedstore.v1 import store_pb2 as _store_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateTableRequest(_message.Message):
    __slots__ = ("epoch", "spec")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    spec: _spec_pb2.TableSpec
    def __init__(self, epoch: _Optional[int] = ..., spec: _Optional[_Union[_spec_pb2.TableSpec, _Mapping]] = ...) -> None: ...

class CreateTableResponse(_message.Message):
    __slots__ = ("created",)
    CREATED_FIELD_NUMBER: _ClassVar[int]
    created: bool
    def __init__(self, created: _Optional[bool] = ...) -> None: ...

class AlterTableRequest(_message.Message):
    __slots__ = ("epoch", "spec")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    spec: _spec_pb2.TableSpec
    def __init__(self, epoch: _Optional[int] = ..., spec: _Optional[_Union[_spec_pb2.TableSpec, _Mapping]] = ...) -> None: ...

class AlterTableResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DropTableRequest(_message.Message):
    __slots__ = ("epoch", "table")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    table: str
    def __init__(self, epoch: _Optional[int] = ..., table: _Optional[str] = ...) -> None: ...

class DropTableResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeTableRequest(_message.Message):
    __slots__ = ("epoch", "table")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    table: str
    def __init__(self, epoch: _Optional[int] = ..., table: _Optional[str] = ...) -> None: ...

class DescribeTableResponse(_message.Message):
    __slots__ = ("spec", "stats", "row_format")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    ROW_FORMAT_FIELD_NUMBER: _ClassVar[int]
    spec: _spec_pb2.TableSpec
    stats: TableStats
    row_format: str
    def __init__(self, spec: _Optional[_Union[_spec_pb2.TableSpec, _Mapping]] = ..., stats: _Optional[_Union[TableStats, _Mapping]] = ..., row_format: _Optional[str] = ...) -> None: ...

class ListTablesRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class ListTablesResponse(_message.Message):
    __slots__ = ("tables", "dense_sets")
    TABLES_FIELD_NUMBER: _ClassVar[int]
    DENSE_SETS_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[_spec_pb2.TableSpec]
    dense_sets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tables: _Optional[_Iterable[_Union[_spec_pb2.TableSpec, _Mapping]]] = ..., dense_sets: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("chunks_written", "bytes_written", "seconds")
    CHUNKS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    chunks_written: int
    bytes_written: int
    seconds: float
    def __init__(self, chunks_written: _Optional[int] = ..., bytes_written: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class SweepRequest(_message.Message):
    __slots__ = ("epoch", "table", "budget_ms", "dry_run")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    table: str
    budget_ms: float
    dry_run: bool
    def __init__(self, epoch: _Optional[int] = ..., table: _Optional[str] = ..., budget_ms: _Optional[float] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class SweepResponse(_message.Message):
    __slots__ = ("tables",)
    TABLES_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[SweptTable]
    def __init__(self, tables: _Optional[_Iterable[_Union[SweptTable, _Mapping]]] = ...) -> None: ...

class SweptTable(_message.Message):
    __slots__ = ("table", "rows_visited", "rows_expired", "rows_moved", "bytes_released", "complete")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_VISITED_FIELD_NUMBER: _ClassVar[int]
    ROWS_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    ROWS_MOVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_RELEASED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    table: str
    rows_visited: int
    rows_expired: int
    rows_moved: int
    bytes_released: int
    complete: bool
    def __init__(self, table: _Optional[str] = ..., rows_visited: _Optional[int] = ..., rows_expired: _Optional[int] = ..., rows_moved: _Optional[int] = ..., bytes_released: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...

class TopologyRecord(_message.Message):
    __slots__ = ("epoch", "addresses", "num_shards")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    num_shards: int
    def __init__(self, epoch: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., num_shards: _Optional[int] = ...) -> None: ...

class TopologyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TopologyResponse(_message.Message):
    __slots__ = ("topology", "shard", "ready", "follower", "standby", "address", "fenced", "previous", "num_shards", "synced")
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    STANDBY_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    topology: TopologyRecord
    shard: int
    ready: bool
    follower: bool
    standby: bool
    address: str
    fenced: bool
    previous: TopologyRecord
    num_shards: int
    synced: bool
    def __init__(self, topology: _Optional[_Union[TopologyRecord, _Mapping]] = ..., shard: _Optional[int] = ..., ready: _Optional[bool] = ..., follower: _Optional[bool] = ..., standby: _Optional[bool] = ..., address: _Optional[str] = ..., fenced: _Optional[bool] = ..., previous: _Optional[_Union[TopologyRecord, _Mapping]] = ..., num_shards: _Optional[int] = ..., synced: _Optional[bool] = ...) -> None: ...

class ReassignRequest(_message.Message):
    __slots__ = ("topology",)
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    topology: TopologyRecord
    def __init__(self, topology: _Optional[_Union[TopologyRecord, _Mapping]] = ...) -> None: ...

class ReassignResponse(_message.Message):
    __slots__ = ("fenced",)
    FENCED_FIELD_NUMBER: _ClassVar[int]
    fenced: bool
    def __init__(self, fenced: _Optional[bool] = ...) -> None: ...

class ActivateRequest(_message.Message):
    __slots__ = ("topology", "force", "timeout_s")
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    topology: TopologyRecord
    force: bool
    timeout_s: float
    def __init__(self, topology: _Optional[_Union[TopologyRecord, _Mapping]] = ..., force: _Optional[bool] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class ActivateResponse(_message.Message):
    __slots__ = ("topology",)
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    topology: TopologyRecord
    def __init__(self, topology: _Optional[_Union[TopologyRecord, _Mapping]] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class TableStats(_message.Message):
    __slots__ = ("table", "rows", "memory_bytes", "chunks", "pulled_rows", "missed_rows", "pushed_rows", "inserted_rows", "tombstones", "dropped_rows", "expired_rows", "evicted_rows", "sketch_bytes", "sketch_halvings")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PULLED_ROWS_FIELD_NUMBER: _ClassVar[int]
    MISSED_ROWS_FIELD_NUMBER: _ClassVar[int]
    PUSHED_ROWS_FIELD_NUMBER: _ClassVar[int]
    INSERTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    TOMBSTONES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ROWS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_ROWS_FIELD_NUMBER: _ClassVar[int]
    EVICTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    SKETCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    SKETCH_HALVINGS_FIELD_NUMBER: _ClassVar[int]
    table: str
    rows: int
    memory_bytes: int
    chunks: int
    pulled_rows: int
    missed_rows: int
    pushed_rows: int
    inserted_rows: int
    tombstones: int
    dropped_rows: int
    expired_rows: int
    evicted_rows: int
    sketch_bytes: int
    sketch_halvings: int
    def __init__(self, table: _Optional[str] = ..., rows: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., chunks: _Optional[int] = ..., pulled_rows: _Optional[int] = ..., missed_rows: _Optional[int] = ..., pushed_rows: _Optional[int] = ..., inserted_rows: _Optional[int] = ..., tombstones: _Optional[int] = ..., dropped_rows: _Optional[int] = ..., expired_rows: _Optional[int] = ..., evicted_rows: _Optional[int] = ..., sketch_bytes: _Optional[int] = ..., sketch_halvings: _Optional[int] = ...) -> None: ...

class LeaderState(_message.Message):
    __slots__ = ("address", "connected", "age_s", "deltas", "reconnects")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    RECONNECTS_FIELD_NUMBER: _ClassVar[int]
    address: str
    connected: bool
    age_s: float
    deltas: int
    reconnects: int
    def __init__(self, address: _Optional[str] = ..., connected: _Optional[bool] = ..., age_s: _Optional[float] = ..., deltas: _Optional[int] = ..., reconnects: _Optional[int] = ...) -> None: ...

class FollowerState(_message.Message):
    __slots__ = ("peer", "standby", "lag_s", "in_flight_bytes", "sent_bytes", "sent_messages", "calls")
    PEER_FIELD_NUMBER: _ClassVar[int]
    STANDBY_FIELD_NUMBER: _ClassVar[int]
    LAG_S_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    standby: bool
    lag_s: float
    in_flight_bytes: int
    sent_bytes: int
    sent_messages: int
    calls: int
    def __init__(self, peer: _Optional[str] = ..., standby: _Optional[bool] = ..., lag_s: _Optional[float] = ..., in_flight_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., sent_messages: _Optional[int] = ..., calls: _Optional[int] = ...) -> None: ...

class Distribution(_message.Message):
    __slots__ = ("measure", "table", "bounds", "counts", "total")
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    measure: str
    table: str
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    total: float
    def __init__(self, measure: _Optional[str] = ..., table: _Optional[str] = ..., bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., total: _Optional[float] = ...) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("tables", "streams", "last_checkpoint_s", "uptime_s", "followers", "leaders", "corrupt_chunks", "standbys", "follower_states", "distributions", "dense_sets")
    TABLES_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    LAST_CHECKPOINT_S_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    FOLLOWERS_FIELD_NUMBER: _ClassVar[int]
    LEADERS_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    STANDBYS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWER_STATES_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    DENSE_SETS_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[TableStats]
    streams: _containers.RepeatedCompositeFieldContainer[_store_pb2.StreamState]
    last_checkpoint_s: float
    uptime_s: float
    followers: int
    leaders: _containers.RepeatedCompositeFieldContainer[LeaderState]
    corrupt_chunks: int
    standbys: _containers.RepeatedScalarFieldContainer[str]
    follower_states: _containers.RepeatedCompositeFieldContainer[FollowerState]
    distributions: _containers.RepeatedCompositeFieldContainer[Distribution]
    dense_sets: _containers.RepeatedCompositeFieldContainer[_store_pb2.DenseSet]
    def __init__(self, tables: _Optional[_Iterable[_Union[TableStats, _Mapping]]] = ..., streams: _Optional[_Iterable[_Union[_store_pb2.StreamState, _Mapping]]] = ..., last_checkpoint_s: _Optional[float] = ..., uptime_s: _Optional[float] = ..., followers: _Optional[int] = ..., leaders: _Optional[_Iterable[_Union[LeaderState, _Mapping]]] = ..., corrupt_chunks: _Optional[int] = ..., standbys: _Optional[_Iterable[str]] = ..., follower_states: _Optional[_Iterable[_Union[FollowerState, _Mapping]]] = ..., distributions: _Optional[_Iterable[_Union[Distribution, _Mapping]]] = ..., dense_sets: _Optional[_Iterable[_Union[_store_pb2.DenseSet, _Mapping]]] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("kind", "name", "streams", "topology", "numbers", "problem")
    class NumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    streams: _containers.RepeatedCompositeFieldContainer[_store_pb2.StreamState]
    topology: TopologyRecord
    numbers: _containers.ScalarMap[str, int]
    problem: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., streams: _Optional[_Iterable[_Union[_store_pb2.StreamState, _Mapping]]] = ..., topology: _Optional[_Union[TopologyRecord, _Mapping]] = ..., numbers: _Optional[_Mapping[str, int]] = ..., problem: _Optional[str] = ...) -> None: ...
