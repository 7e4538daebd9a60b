"""What a serving process is told at its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedstore.credentials import PLAIN, Credentials, is_loopback
from embedstore.errors import InvalidArgumentError
from embedstore.peers import check_address, parse_addresses
from embedstore.placement import check_shard
from embedstore.row_formats import as_row_format
from embedstore.server.follow_places import FOLLOWERS_MAX
from embedstore.spec import TableSpec
from embedstore.store import Durability

_POSITIVE = ("checkpoint_interval_s", "checkpoint_bytes", "drain_s", "workers", "requests_max", "followers_max")


@dataclass(frozen=True)
class ShardOptions:
    """What a serving process is told at its start.

    ``listen``: host:port, port 0 for a free one. ``data``: directory, None for memory only. ``peers``: addresses of all
    shards in order, or none. ``follow``: leaders' addresses; then this is a follower and has no shard, data or tables;
    ``rows``: how a follower keeps them, fp32, fp16, int8 or int4. ``standby``: it follows to become that shard, with
    that data, when it is told to. ``advertise``: where others reach it (its place in ``peers``, or ``listen``).
    A checkpoint comes every ``checkpoint_interval_s``, and sooner when about ``checkpoint_bytes`` of rows were written;
    the last ``keep_checkpoints`` stay readable. ``durability``: see :class:`LocalStore`.
    ``requests_max``: calls at once, see :class:`embedstore.server.doors.Door`; ``workers``: how many of them run.
    ``credentials``: the process's own; with a certificate the port speaks TLS. ``mtls``: callers need one from
    ``credentials.tls_ca``. ``tokens``: see :class:`Tokens`; without, everyone who can connect may do everything.
    Beyond loopback the port needs TLS, or ``plaintext_beyond_loopback``. ``metrics_listen``: host:port for
    Prometheus.
    """

    listen: str
    shard: int = 0
    num_shards: int = 1
    data: Path | None = None
    tables: Sequence[TableSpec] = ()
    peers: Sequence[str] = ()
    follow: Sequence[str] = ()
    rows: str | None = None
    standby: bool = False
    advertise: str = ""
    checkpoint_interval_s: float = 5.0
    checkpoint_bytes: int = 1 << 30
    keep_checkpoints: int = 1
    durability: Durability = "checkpoint"
    drain_s: float = 10.0
    workers: int = 32
    requests_max: int = 1024
    followers_max: int = FOLLOWERS_MAX
    sync_interval_ms: int = 200
    heartbeat_interval_ms: int = 500
    credentials: Credentials = PLAIN
    mtls: bool = False
    tokens: Path | None = None
    plaintext_beyond_loopback: bool = False
    metrics_listen: str = ""

    def __post_init__(self) -> None:
        check_shard(self.shard, self.num_shards)
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidArgumentError(name, f"must be positive, not {getattr(self, name)!r}")
        if self.peers and len(parse_addresses(self.peers)) != self.num_shards:
            raise InvalidArgumentError("peers", f"must name all {self.num_shards} shards in order")
        if self.follow:
            self._check_follower()
        elif self.rows is not None:
            raise InvalidArgumentError("rows", "is for followers: a shard keeps float32")
        elif self.standby:
            raise InvalidArgumentError("follow", "a standby must follow the shards whose place it can take")
        if self.advertise:
            check_address("advertise", self.advertise)
        self._check_port("listen", self.listen)
        if self.standby and not self.advertise:
            host, _, port = self.listen.rpartition(":")
            check_address("advertise", f"{host}:{port if int(port) else 1}")
        if self.metrics_listen:
            self._check_port("metrics_listen", self.metrics_listen)

    def _check_port(self, name: str, listen: str) -> None:
        host, colon, port = listen.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) >= 1 << 16:
            raise InvalidArgumentError(name, f"must be host:port, not {listen!r}")
        if self.credentials.tls_cert is None and not (is_loopback(listen) or self.plaintext_beyond_loopback):
            raise InvalidArgumentError(
                "tls_cert", f"is needed to listen on {host}, or plaintext_beyond_loopback if anyone there may listen in"
            )

    def _check_follower(self) -> None:
        parse_addresses(self.follow)
        what = "standby" if self.standby else "follower"
        for name in ("tables", "peers") if self.standby else ("data", "tables", "peers"):
            if getattr(self, name):
                raise InvalidArgumentError(name, f"a {what} has none")
        if self.num_shards != 1 and not self.standby:
            raise InvalidArgumentError("shard", "a follower has none")
        if self.standby and self.rows not in (None, "fp32"):
            raise InvalidArgumentError("rows", "a standby keeps float32")
        as_row_format(self.rows)
