"""Ids from texts."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from embedstore.errors import InvalidArgumentError


def hash_ids(strings: Iterable[str]) -> np.ndarray:
    """uint64 [n]: the id of each text, over all its UTF-8 bytes: BLAKE2b (RFC 7693), 8-byte digest, little-endian.

    A pure function, the same on every machine and in every release; may be called from any thread. Two of n texts
    share an id with probability n**2 / 2**65.
    """
    if isinstance(strings, str | bytes):
        raise InvalidArgumentError("strings", "must be several texts, not one")
    try:
        digests = b"".join([blake2b(text.encode(), digest_size=8).digest() for text in strings])
    except (AttributeError, TypeError, UnicodeEncodeError) as problem:
        raise InvalidArgumentError("strings", f"must be texts: {problem}") from problem
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
