"""Dense sets: checked, frozen, and the same in memory, on the wire and in the manifest.

A dense set is one value: its arrays are copied in once, made read-only and never changed afterwards, so that any thread
may read a published set while the next one is put in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from embedstore.errors import InvalidArgumentError, LimitError
from embedstore.interface import DenseSet, check_position, check_stream_name
from embedstore.v1 import store_pb2

NAME_BYTES_MAX = 255
TENSORS_MAX = 1 << 16
SET_BYTES_MAX = 1 << 30


def check_dense_name(label: str, name: str) -> None:
    """Raise :class:`InvalidArgumentError` unless ``name`` can name a dense set or a tensor."""
    if not isinstance(name, str) or not name or len(name.encode()) > NAME_BYTES_MAX:
        raise InvalidArgumentError(label, f"must be 1-{NAME_BYTES_MAX} bytes of text, not {name!r}")


def freeze(tensors: Mapping[str, Any], position: Mapping[str, int], version: int) -> DenseSet:
    """A dense set of its own copies of ``tensors`` (numpy or torch, any shape; bool, integers or floats).

    Raises :class:`InvalidArgumentError` naming the tensor or stream, :class:`LimitError` past 1 GiB or 65536 tensors.
    """
    if len(tensors) > TENSORS_MAX:
        raise LimitError("tensors", len(tensors), TENSORS_MAX)
    arrays: dict[str, np.ndarray] = {}
    num_bytes = 0
    for name, tensor in tensors.items():
        check_dense_name("tensors", name)
        array = _copy(f"tensors[{name!r}]", tensor)
        num_bytes += array.nbytes
        if num_bytes > SET_BYTES_MAX:
            raise LimitError("tensors", num_bytes, SET_BYTES_MAX)
        arrays[name] = array
    for stream, offered in position.items():
        check_stream_name("position", stream)
        check_position(f"position[{stream!r}]", offered)
    return DenseSet(arrays, {stream: int(offered) for stream, offered in position.items()}, version)


def _copy(label: str, tensor: Any) -> np.ndarray:
    try:
        array = np.array(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor)
    except (TypeError, ValueError, RuntimeError, OverflowError) as problem:
        raise InvalidArgumentError(label, f"cannot be read as an array: {problem}") from problem
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InvalidArgumentError(label, f"must be bool, integers or floats, not {array.dtype}")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    array.flags.writeable = False
    return array


def to_proto(name: str, dense_set: DenseSet, generations: Mapping[str, int] | None = None) -> store_pb2.DenseSet:
    """The wire and manifest form; ``generations`` of the writer by stream, where one is known."""
    message = store_pb2.DenseSet(name=name, version=dense_set.version)
    for tensor_name, array in dense_set.tensors.items():
        message.tensors.add(
            name=tensor_name, dtype=array.dtype.name, shape=array.shape, data=np.ascontiguousarray(array).tobytes()
        )
    for stream, position in dense_set.position.items():
        message.position.add(stream=stream, position=position)
        if generations is not None:
            message.generations.append(generations.get(stream, 0))
    return message


def from_proto(message: store_pb2.DenseSet) -> tuple[str, DenseSet]:
    """Read the wire form; arrays are read-only views of the message's bytes. :class:`InvalidArgumentError` by name."""
    check_dense_name("dense_set.name", message.name)
    arrays: dict[str, np.ndarray] = {}
    for tensor in message.tensors:
        label = f"tensors[{tensor.name!r}]"
        check_dense_name("tensors", tensor.name)
        try:
            dtype = np.dtype(tensor.dtype).newbyteorder("<")
            if dtype.kind not in "biuf" or tensor.name in arrays:
                raise InvalidArgumentError(label, f"dtype {tensor.dtype!r} is not a number format, or it comes twice")
            arrays[tensor.name] = np.frombuffer(tensor.data, dtype).reshape(tuple(tensor.shape))
        except (TypeError, ValueError) as problem:
            if isinstance(problem, InvalidArgumentError):
                raise
            raise InvalidArgumentError(label, f"dtype, shape and data do not fit: {problem}") from problem
    position = {entry.stream: entry.position for entry in message.position}
    return message.name, DenseSet(arrays, position, message.version)
