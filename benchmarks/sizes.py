"""What fits into memory."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.harness import Settings

DIMS = (64, 32, 16, 8, 4)


def available_bytes() -> int | None:
    """Memory that can be had without swapping, or None where the system does not tell."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    return next(int(line.split()[1]) << 10 for line in info.read_text().splitlines() if "MemAvailable" in line)


def lack_of_memory(num_bytes: int) -> str | None:
    """Why so many bytes had better not be taken, or None: a tenth of what is available is left alone."""
    available = available_bytes()
    if available is None or num_bytes <= available * 9 // 10:
        return None
    return f"takes {num_bytes / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are available"


def give_memory_back() -> None:
    """Drop what nothing refers to any more, and let malloc return what it kept of that."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def touch_memory(num_bytes: int) -> None:
    """Make the system hand out so much memory, as far as it has it, and take it back at once.

    On a virtual machine the host, too, finds memory at its first touch, and takes back what the guest does not use for
    some seconds: 2 MiB took 5.4 ms instead of 0.27 here. Which rounds meet that would be chance.
    """
    available = available_bytes()
    if available is not None:
        num_bytes = min(num_bytes, available * 8 // 10)
    with mmap.mmap(-1, max(num_bytes, mmap.PAGESIZE)) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        pages = np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE]
        pages[:] = 1
        del pages


def fitted(settings: Settings, row_bytes: Callable[[int], int]) -> Settings:
    """The same with the largest dim, up to the chosen one, of which all rows fit: ``row_bytes(dim)`` each.

    What earlier measurements left goes back to the system first. MemoryError when not even the smallest fits.
    """
    give_memory_back()
    lack = lack_of_memory(settings.rows * row_bytes(settings.dim))
    if lack is None:
        return settings
    for dim in (dim for dim in DIMS if dim < settings.dim):
        if lack_of_memory(settings.rows * row_bytes(dim)) is None:
            return replace(settings, dim=dim, note=f"dim {dim} instead of {settings.dim}, which {lack}")
    raise MemoryError(f"{settings.rows:,} rows: dim {settings.dim} {lack}, and no smaller one fits")
