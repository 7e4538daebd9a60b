"""From when until when a certificate holds. Pure functions."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography import x509


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
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return None
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())
