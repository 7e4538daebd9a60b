from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnMiss(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_MISS_UNSPECIFIED: _ClassVar[OnMiss]
    ON_MISS_ZEROS: _ClassVar[OnMiss]
    ON_MISS_INIT: _ClassVar[OnMiss]
ON_MISS_UNSPECIFIED: OnMiss
ON_MISS_ZEROS: OnMiss
ON_MISS_INIT: OnMiss

class TableSpec(_message.Message):
    __slots__ = ("name", "dim", "optimizer", "init", "on_miss", "admission", "ttl_s", "rows_max", "bytes_max", "num_chunks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    ON_MISS_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    NUM_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dim: int
    optimizer: Optimizer
    init: Initializer
    on_miss: OnMiss
    admission: Admission
    ttl_s: float
    rows_max: int
    bytes_max: int
    num_chunks: int
    def __init__(self, name: _Optional[str] = ..., dim: _Optional[int] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., init: _Optional[_Union[Initializer, _Mapping]] = ..., on_miss: _Optional[_Union[OnMiss, str]] = ..., admission: _Optional[_Union[Admission, _Mapping]] = ..., ttl_s: _Optional[float] = ..., rows_max: _Optional[int] = ..., bytes_max: _Optional[int] = ..., num_chunks: _Optional[int] = ...) -> None: ...

class Optimizer(_message.Message):
    __slots__ = ("lr", "weight_decay", "clip_norm", "sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "rmsprop", "ftrl")
    LR_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    SGD_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    ADAGRAD_FIELD_NUMBER: _ClassVar[int]
    ROWWISE_ADAGRAD_FIELD_NUMBER: _ClassVar[int]
    ADAM_FIELD_NUMBER: _ClassVar[int]
    RMSPROP_FIELD_NUMBER: _ClassVar[int]
    FTRL_FIELD_NUMBER: _ClassVar[int]
    lr: float
    weight_decay: float
    clip_norm: float
    sgd: Sgd
    momentum: Momentum
    adagrad: Adagrad
    rowwise_adagrad: RowwiseAdagrad
    adam: Adam
    rmsprop: RmsProp
    ftrl: Ftrl
    def __init__(self, lr: _Optional[float] = ..., weight_decay: _Optional[float] = ..., clip_norm: _Optional[float] = ..., sgd: _Optional[_Union[Sgd, _Mapping]] = ..., momentum: _Optional[_Union[Momentum, _Mapping]] = ..., adagrad: _Optional[_Union[Adagrad, _Mapping]] = ..., rowwise_adagrad: _Optional[_Union[RowwiseAdagrad, _Mapping]] = ..., adam: _Optional[_Union[Adam, _Mapping]] = ..., rmsprop: _Optional[_Union[RmsProp, _Mapping]] = ..., ftrl: _Optional[_Union[Ftrl, _Mapping]] = ...) -> None: ...

class Sgd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Momentum(_message.Message):
    __slots__ = ("beta",)
    BETA_FIELD_NUMBER: _ClassVar[int]
    beta: float
    def __init__(self, beta: _Optional[float] = ...) -> None: ...

class Adagrad(_message.Message):
    __slots__ = ("initial_accumulator", "eps")
    INITIAL_ACCUMULATOR_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    initial_accumulator: float
    eps: float
    def __init__(self, initial_accumulator: _Optional[float] = ..., eps: _Optional[float] = ...) -> None: ...

class RowwiseAdagrad(_message.Message):
    __slots__ = ("initial_accumulator", "eps")
    INITIAL_ACCUMULATOR_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    initial_accumulator: float
    eps: float
    def __init__(self, initial_accumulator: _Optional[float] = ..., eps: _Optional[float] = ...) -> None: ...

class Adam(_message.Message):
    __slots__ = ("beta1", "beta2", "eps")
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    beta1: float
    beta2: float
    eps: float
    def __init__(self, beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ...) -> None: ...

class RmsProp(_message.Message):
    __slots__ = ("decay", "eps")
    DECAY_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    decay: float
    eps: float
    def __init__(self, decay: _Optional[float] = ..., eps: _Optional[float] = ...) -> None: ...

class Ftrl(_message.Message):
    __slots__ = ("beta", "l1", "l2")
    BETA_FIELD_NUMBER: _ClassVar[int]
    L1_FIELD_NUMBER: _ClassVar[int]
    L2_FIELD_NUMBER: _ClassVar[int]
    beta: float
    l1: float
    l2: float
    def __init__(self, beta: _Optional[float] = ..., l1: _Optional[float] = ..., l2: _Optional[float] = ...) -> None: ...

class Initializer(_message.Message):
    __slots__ = ("zeros", "constant", "uniform", "normal", "truncated_normal")
    ZEROS_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_FIELD_NUMBER: _ClassVar[int]
    NORMAL_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_NORMAL_FIELD_NUMBER: _ClassVar[int]
    zeros: Zeros
    constant: Constant
    uniform: Uniform
    normal: Normal
    truncated_normal: TruncatedNormal
    def __init__(self, zeros: _Optional[_Union[Zeros, _Mapping]] = ..., constant: _Optional[_Union[Constant, _Mapping]] = ..., uniform: _Optional[_Union[Uniform, _Mapping]] = ..., normal: _Optional[_Union[Normal, _Mapping]] = ..., truncated_normal: _Optional[_Union[TruncatedNormal, _Mapping]] = ...) -> None: ...

class Zeros(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Constant(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: float
    def __init__(self, value: _Optional[float] = ...) -> None: ...

class Uniform(_message.Message):
    __slots__ = ("scale", "seed")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    scale: float
    seed: int
    def __init__(self, scale: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class Normal(_message.Message):
    __slots__ = ("scale", "seed")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    scale: float
    seed: int
    def __init__(self, scale: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class TruncatedNormal(_message.Message):
    __slots__ = ("scale", "seed")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    scale: float
    seed: int
    def __init__(self, scale: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("min_count", "probability")
    MIN_COUNT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    min_count: MinCount
    probability: Probability
    def __init__(self, min_count: _Optional[_Union[MinCount, _Mapping]] = ..., probability: _Optional[_Union[Probability, _Mapping]] = ...) -> None: ...

class MinCount(_message.Message):
    __slots__ = ("count", "memory_bytes")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    count: int
    memory_bytes: int
    def __init__(self, count: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Probability(_message.Message):
    __slots__ = ("p", "seed", "memory_bytes")
    P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    p: float
    seed: int
    memory_bytes: int
    def __init__(self, p: _Optional[float] = ..., seed: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...
