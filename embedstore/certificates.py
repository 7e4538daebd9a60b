"""From when until when a certificate holds. Pure functions."""

from __future__ import annotations

import re
import ssl
import time
from datetime import UTC, datetime
from typing import NamedTuple

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17
_BEFORE_VALIDITY = 3
"""Serial number, algorithm and issuer come before it."""


class Validity(NamedTuple):
    """Seconds since 1970."""

    begins_s: float
    ends_s: float

    def problem(self, now_s: float | None = None) -> str:
        """What is wrong with it by now, in words; "" when it holds."""
        now_s = time.time() if now_s is None else now_s
        if now_s < self.begins_s:
            return f"is not valid before {moment(self.begins_s)}"
        return f"has expired on {moment(self.ends_s)}" if now_s >= self.ends_s else ""


def moment(at_s: float) -> str:
    """Readable, in UTC."""
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def validity(pem: bytes) -> Validity | None:
    """Of the first certificate, which is the process's own; None when there is none."""
    found = _PEM.search(pem)
    if found is None:
        return None
    try:
        der = ssl.PEM_cert_to_DER_cert(found[0].decode("ascii"))
        _, certificate, _ = _element(der, 0)
        _, at, _ = _element(der, certificate)
        if der[at] == _VERSION:
            _, _, at = _element(der, at)
        for _ in range(_BEFORE_VALIDITY):
            _, _, at = _element(der, at)
        _, begin, _ = _element(der, at)
        _, _, end = _element(der, begin)
        return Validity(_time(der, begin), _time(der, end))
    except (ValueError, IndexError):
        return None


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, begin and end of the DER element at ``at``."""
    tag, length, at = der[at], der[at + 1], at + 2
    if length >= 0x80:
        width = length - 0x80
        length, at = int.from_bytes(der[at : at + width], "big"), at + width
    return tag, at, at + length


def _time(der: bytes, at: int) -> float:
    tag, begin, end = _element(der, at)
    text = der[begin:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
