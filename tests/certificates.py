"""Certificates for tests: authorities and what they sign, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

import embedstore as es

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")


class Authority:
    """Signs certificates; its own is ``ca``."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.ca, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        _openssl("req", "-x509", *_EC, "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.ca)

    def credentials(self, name: str, *, token_file: Path | None = None) -> es.Credentials:
        """Of a process on this machine, with a certificate of its own, which is new with each call."""
        cert, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        signed = ("-CA", self.ca, "-CAkey", self._key, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        _openssl("req", "-x509", *_EC, "-subj", f"/CN={name}", *signed, "-keyout", key, "-out", cert)
        return es.Credentials(tls_ca=self.ca, tls_cert=cert, tls_key=key, token_file=token_file)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
