"""Certificates for tests: authorities and what they sign, made by openssl."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import embedstore as es

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")


_CA = """
[ca]
default_ca = this
[this]
new_certs_dir = {directory}
database = {directory}/issued
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
x509_extensions = local
[any]
commonName = supplied
[local]
subjectAltName = DNS:localhost,IP:127.0.0.1
"""


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

    def lasting(self, name: str, begins_s: float, ends_s: float) -> es.Credentials:
        """The same, with a certificate that holds between these times, by the wall clock."""
        cert, key, wish = (self._directory / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        config, issued = self._directory / "ca.conf", self._directory / "issued"
        config.write_text(_CA.format(directory=self._directory))
        issued.touch()
        _openssl("req", "-new", *_EC[:-2], "-subj", f"/CN={name}", "-keyout", key, "-out", wish)
        times = ("-startdate", _asn1_time(begins_s), "-enddate", _asn1_time(ends_s))
        signed = ("-cert", self.ca, "-keyfile", self._key, "-in", wish, "-out", cert)
        _openssl("ca", "-batch", "-notext", "-config", config, *times, *signed)
        return es.Credentials(tls_ca=self.ca, tls_cert=cert, tls_key=key)


def _asn1_time(at_s: float) -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(at_s))


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
