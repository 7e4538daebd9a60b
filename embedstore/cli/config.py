"""Settings of a serving process: flags, then ``EMBEDSTORE_`` variables, then a TOML file, then defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from embedstore.cli.tables import parse_tables, read_tables, read_toml
from embedstore.credentials import Credentials
from embedstore.errors import InvalidArgumentError
from embedstore.server.options import ShardOptions
from embedstore.store import Durability

PORT_DEFAULT = 7600


class ServeSettings(BaseSettings):
    """Everything that ``embedstore serve`` can be told.

    ``shard``: "i/n". ``tables``: a TOML file, or sections [tables.NAME] of the configuration file itself. ``peers`` and
    ``follow``: "host:port,host:port".
    """

    model_config = SettingsConfigDict(env_prefix="EMBEDSTORE_", extra="forbid", frozen=True)

    listen: str = f"127.0.0.1:{PORT_DEFAULT}"
    shard: str = "0/1"
    data: Path | None = None
    tables: Path | dict[str, Any] | None = None
    peers: str = ""
    follow: str = ""
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
    followers_max: int = 16
    sync_interval_ms: int = 200
    heartbeat_interval_ms: int = 500
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_name: str | None = None
    token_file: Path | None = None
    mtls: bool = False
    tokens: Path | None = None
    plaintext_beyond_loopback: bool = False
    metrics_listen: str = ""

    def options(self) -> ShardOptions:
        """As the server takes them; :class:`InvalidArgumentError` names a bad one."""
        index, count = shard_of(self.shard)
        tables = self.tables
        specs = read_tables(tables) if isinstance(tables, Path) else parse_tables(tables or {})
        return ShardOptions(
            listen=self.listen,
            shard=index,
            num_shards=count,
            data=self.data,
            tables=specs,
            peers=_addresses(self.peers),
            follow=_addresses(self.follow),
            rows=self.rows,
            standby=self.standby,
            advertise=self.advertise,
            checkpoint_interval_s=self.checkpoint_interval_s,
            checkpoint_bytes=self.checkpoint_bytes,
            keep_checkpoints=self.keep_checkpoints,
            durability=self.durability,
            drain_s=self.drain_s,
            workers=self.workers,
            requests_max=self.requests_max,
            followers_max=self.followers_max,
            sync_interval_ms=self.sync_interval_ms,
            heartbeat_interval_ms=self.heartbeat_interval_ms,
            credentials=Credentials(self.tls_ca, self.tls_cert, self.tls_key, self.tls_name, self.token_file),
            mtls=self.mtls,
            tokens=self.tokens,
            plaintext_beyond_loopback=self.plaintext_beyond_loopback,
            metrics_listen=self.metrics_listen,
        )


def shard_of(text: str) -> tuple[int, int]:
    """Shard and number of shards of "i/n"; :class:`InvalidArgumentError`."""
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal():
        raise InvalidArgumentError("shard", f'must be "i/n", such as "0/2", not {text!r}')
    return int(index), int(count)


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> ServeSettings:
    """Settings from everywhere; flags that are None were not given. :class:`InvalidArgumentError` names a bad field."""
    content = read_toml(config) if config is not None else {}

    class _WithFile(ServeSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, content)

    try:
        return _WithFile(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        problem = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidArgumentError(".".join(map(str, first["loc"][:1])), problem) from error


def _addresses(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()
