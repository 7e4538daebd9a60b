"""The reference loops of native/reference.cc: compiled on first use into build/bench, loaded with ctypes.

ctypes lets go of the interpreter lock during a call, as the native module does.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from benchmarks.sizes import lack_of_memory

SOURCE = Path(__file__).parent / "native" / "reference.cc"
BUILD_DIR = Path(__file__).resolve().parents[1] / "build" / "bench"
# A limit is what this very machine can do; the two -fno- let sqrt be vectorized and change no result.
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-shared", "-fPIC")
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t
_FLOAT = ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ref_rows_new": (_POINTER, (_SIZE,)),
    "ref_rows_free": (None, (_POINTER, _SIZE)),
    "ref_gather": (None, (_POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _POINTER)),
    "ref_adagrad": (None, (_POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _FLOAT, _FLOAT)),
    "ref_rowwise_adagrad": (None, (_POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _SIZE, _FLOAT, _FLOAT)),
    "ref_adam": (None, (_POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _FLOAT, ctypes.c_uint64)),
    "ref_changed": (
        _SIZE,
        (_POINTER, _POINTER, _SIZE, ctypes.c_uint64, _POINTER, _SIZE, _POINTER, _POINTER),
    ),
    "ref_std_new": (_POINTER, (_SIZE,)),
    "ref_cuckoo_new": (_POINTER, (_SIZE,)),
    "ref_have_cuckoo": (ctypes.c_int, ()),
    "ref_map_free": (None, (_POINTER,)),
    "ref_map_assign": (None, (_POINTER, _POINTER, _SIZE, _POINTER, _SIZE)),
    "ref_map_find": (None, (_POINTER, _POINTER, _SIZE, _POINTER, _SIZE)),
    "ref_map_erase": (None, (_POINTER, _POINTER, _SIZE)),
    "ref_map_adagrad": (None, (_POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _FLOAT, _FLOAT)),
}


@cache
def library() -> ctypes.CDLL:
    """The compiled loops; subprocess.CalledProcessError with the compiler's words when they do not build."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    digest = hashlib.sha256(repr((SOURCE.read_bytes(), FLAGS, compiler)).encode()).hexdigest()[:16]
    built = BUILD_DIR / f"libreference-{digest}.so"
    if not built.exists():
        BUILD_DIR.mkdir(parents=True, exist_ok=True)
        partial = built.with_suffix(f".{os.getpid()}")
        subprocess.run([*compiler, *FLAGS, str(SOURCE), "-o", str(partial), "-lpthread"], check=True)
        partial.rename(built)
    loaded = ctypes.CDLL(str(built))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def keep_memory() -> None:
    """Tell malloc to keep large buffers instead of giving them back, as embedstore's client and server do."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def new_bytes(size: int) -> tuple[bytes, int]:
    """Bytes that are not written yet, and their address: to be filled before anyone else sees them."""
    create = ctypes.pythonapi.PyBytes_FromStringAndSize
    create.restype, create.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
    content: bytes = create(None, size)
    return content, id(content) + bytes.__basicsize__ - 1


class KnownRows:
    """``num_rows`` rows of ``width`` floats on huge pages, addressed by number; the first ``dim`` are the embedding."""

    def __init__(self, num_rows: int, dim: int, width: int) -> None:
        self.num_rows, self.dim, self.width = num_rows, dim, width
        self._library = library()
        self._num_floats = num_rows * width
        self._address = self._library.ref_rows_new(self._num_floats)
        if not self._address:
            raise MemoryError(f"{self._num_floats * 4} bytes for the reference rows")
        pointer = ctypes.cast(self._address, ctypes.POINTER(ctypes.c_float))
        self.rows = np.ctypeslib.as_array(pointer, (num_rows, width))

    def fill(self, embeddings: np.ndarray) -> None:
        """Set the embeddings to these, float32 [n, dim], over and over again; touches every page."""
        self.rows[:, self.dim :] = 0
        for at in range(0, self.num_rows, len(embeddings)):
            part = self.rows[at : at + len(embeddings), : self.dim]
            part[:] = embeddings[: len(part)]

    def gather(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """out float32 [n, dim] = the rows ``numbers`` uint64 [n]."""
        self.gather_to(numbers, out.ctypes.data)

    def gather_to(self, numbers: np.ndarray, address: int) -> None:
        """The same to raw memory."""
        self._library.ref_gather(self._address, self.width, numbers.ctypes.data, len(numbers), self.dim, address)

    def adagrad(self, numbers: np.ndarray, grads: np.ndarray, lr: float, eps: float = 1e-10) -> None:
        """One Adagrad step on distinct rows of width 2 * dim."""
        self.adagrad_from(numbers, grads.ctypes.data, lr, eps)

    def adagrad_from(self, numbers: np.ndarray, grads: int, lr: float, eps: float = 1e-10) -> None:
        """The same with the gradients at an address."""
        self._library.ref_adagrad(self._address, numbers.ctypes.data, len(numbers), grads, self.dim, lr, eps)

    def rowwise_adagrad(self, numbers: np.ndarray, grads: np.ndarray, lr: float, eps: float = 1e-10) -> None:
        """One row-wise Adagrad step on distinct rows whose accumulator follows the embedding."""
        address = grads.ctypes.data
        self._library.ref_rowwise_adagrad(
            self._address, self.width, numbers.ctypes.data, len(numbers), address, self.dim, lr, eps
        )

    def adam(self, numbers: np.ndarray, grads: np.ndarray, lr: float, step: int) -> None:
        """Adam with the usual constants on distinct rows of width 3 * dim; ``step`` counts the calls from 1."""
        address = grads.ctypes.data
        self._library.ref_adam(self._address, numbers.ctypes.data, len(numbers), address, self.dim, lr, step)

    def changed(self, versions: np.ndarray, ids: np.ndarray, cursor: int, ids_out: np.ndarray, out: np.ndarray) -> int:
        """Copy the whole rows whose version is above ``cursor``; returns how many."""
        copied: int = self._library.ref_changed(
            versions.ctypes.data,
            ids.ctypes.data,
            self.num_rows,
            cursor,
            self._address,
            self.width,
            ids_out.ctypes.data,
            out.ctypes.data,
        )
        return copied

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self.rows
        self._library.ref_rows_free(self._address, self._num_floats)


class HashMap:
    """A common C++ hash map from id to row: "libcuckoo" or "std::unordered_map"."""

    def __init__(self, kind: Literal["libcuckoo", "std::unordered_map"], width: int) -> None:
        self._library = library()
        create = self._library.ref_cuckoo_new if kind == "libcuckoo" else self._library.ref_std_new
        self._map = create(width)
        if not self._map:
            raise ValueError(f"{kind} is not available for rows of {width} floats")

    def assign(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Insert or overwrite rows, float32 [n, dim]."""
        self._library.ref_map_assign(self._map, ids.ctypes.data, len(ids), rows.ctypes.data, rows.shape[1])

    def find(self, ids: np.ndarray, out: np.ndarray) -> None:
        """out float32 [n, dim] = the rows of ``ids``."""
        self._library.ref_map_find(self._map, ids.ctypes.data, len(ids), out.ctypes.data, out.shape[1])

    def erase(self, ids: np.ndarray) -> None:
        """Remove the rows of ``ids``."""
        self._library.ref_map_erase(self._map, ids.ctypes.data, len(ids))

    def adagrad(self, ids: np.ndarray, grads: np.ndarray, lr: float, eps: float = 1e-10) -> None:
        """One Adagrad step on the rows of ``ids``; the map has width 2 * dim."""
        self._library.ref_map_adagrad(self._map, ids.ctypes.data, len(ids), grads.ctypes.data, grads.shape[1], lr, eps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.ref_map_free(self._map)


def absence(kind: str, width: int, num_rows: int) -> str | None:
    """Why a hash map of so many rows cannot be measured here, or None."""
    if kind == "libcuckoo":
        if not library().ref_have_cuckoo():
            return "libcuckoo/cuckoohash_map.hh is not installed (Debian: libcuckoo-dev)"
        probe = library().ref_cuckoo_new(width)
        if not probe:
            return f"not compiled for rows of {width} floats"
        library().ref_map_free(probe)
        # A power of two of slots, and the smaller table beside it while it doubles.
        return lack_of_memory((1 << (num_rows * 10 // 9).bit_length()) * (4 * width + 16) * 3 // 2)
    return lack_of_memory(num_rows * (4 * width + 64))
