"""Ids from texts."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np


def hash_ids(strings: Iterable[str]) -> np.ndarray:
    """uint64 [n]: the id of each text, over all its UTF-8 bytes: BLAKE2b with an 8-byte digest, read as little-endian.

    A pure function, the same on every machine and in every release; may be called from any thread.
    """
    digests = b"".join([blake2b(text.encode(), digest_size=8).digest() for text in strings])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
