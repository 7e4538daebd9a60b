"""The manifest: a small RocksDB that says what a store's directory means. docs/formats/checkpoint.md.

Every write is one synced batch, so the manifest moves from one consistent state to the next or not at all. RocksDB's
lock is also what keeps a second process out of the directory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message
from rocksdict import DBRecoveryMode, Options, Rdict, WriteBatch, WriteOptions

from embedstore.errors import CheckpointFailedError, CorruptCheckpointError, StoreLockedError
from embedstore.v1 import admin_pb2, manifest_pb2, store_pb2

FORMAT = 3
"""Of the whole directory: it counts up with the format of what the blobs hold, too."""
MANIFEST_NAME = "manifest"
"""Of its directory within the store's."""
STORE_KEY = b"store"
TOPOLOGY_KEY = b"topology"
PREVIOUS_TOPOLOGY_KEY = b"topology/previous"
ACQUAINTANCES_KEY = b"acquaintances"
_log = logging.getLogger(__name__)


def table_key(name: str) -> bytes:
    """Key of a ``TableManifest``."""
    return b"table/" + name.encode()


def kept_key(number: int) -> bytes:
    """Key of a ``CheckpointManifest``."""
    return b"kept/%016d" % number


def stream_key(name: str) -> bytes:
    """Key of a ``StreamManifest``."""
    return b"stream/" + name.encode()


def dense_key(name: str) -> bytes:
    """Key of a ``DenseSet``."""
    return b"dense/" + name.encode()


@dataclass
class ManifestContents:
    """Everything in a manifest; ``store`` is None in a new one."""

    store: manifest_pb2.StoreManifest | None = None
    tables: list[manifest_pb2.TableManifest] = field(default_factory=list)
    streams: list[manifest_pb2.StreamManifest] = field(default_factory=list)
    dense: list[store_pb2.DenseSet] = field(default_factory=list)
    kept: list[manifest_pb2.CheckpointManifest] = field(default_factory=list)
    topology: admin_pb2.TopologyRecord | None = None
    previous_topology: admin_pb2.TopologyRecord | None = None
    acquaintances: list[str] = field(default_factory=list)


class Manifest:
    """An open manifest; any thread may call it. :class:`StoreLockedError`, :class:`CorruptCheckpointError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: Any = self._open()

    def _open(self) -> Any:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_paranoid_checks(True)
        options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
        options.set_keep_log_file_num(2)
        options.set_max_open_files(64)
        options.set_write_buffer_size(8 << 20)
        try:
            return Rdict(str(self._path), options=options)
        except Exception as problem:
            text = str(problem)
            if "lock" in text.lower() and "IO error" in text:
                raise StoreLockedError(str(self._path.parent)) from problem
            raise CorruptCheckpointError(str(self._path), text) from problem

    def read(self) -> ManifestContents:
        """All of it; :class:`CorruptCheckpointError` for an entry that cannot be understood."""
        contents = ManifestContents()
        try:
            entries = list(self._db.items())
        except Exception as problem:
            raise CorruptCheckpointError(str(self._path), str(problem)) from problem
        for key, value in entries:
            kind, _, _ = key.partition(b"/")
            if key == STORE_KEY:
                contents.store = self._parse(manifest_pb2.StoreManifest(), key, value)
            elif key == TOPOLOGY_KEY:
                contents.topology = self._parse(admin_pb2.TopologyRecord(), key, value)
            elif key == PREVIOUS_TOPOLOGY_KEY:
                contents.previous_topology = self._parse(admin_pb2.TopologyRecord(), key, value)
            elif key == ACQUAINTANCES_KEY:
                contents.acquaintances = list(self._parse(manifest_pb2.Acquaintances(), key, value).addresses)
            elif kind == b"table":
                contents.tables.append(self._parse(manifest_pb2.TableManifest(), key, value))
            elif kind == b"kept":
                contents.kept.append(self._parse(manifest_pb2.CheckpointManifest(), key, value))
            elif kind == b"stream":
                contents.streams.append(self._parse(manifest_pb2.StreamManifest(), key, value))
            elif kind == b"dense":
                contents.dense.append(self._parse(store_pb2.DenseSet(), key, value))
            else:
                raise CorruptCheckpointError(str(self._path), f"unknown entry {key!r}")
        if contents.store is None and entries:
            raise CorruptCheckpointError(str(self._path), "has entries but does not say of which store")
        if contents.store is not None and contents.store.format != FORMAT:
            raise CorruptCheckpointError(
                str(self._path.parent),
                f"is of format {contents.store.format} and this release reads {FORMAT}; it is left as it was: open it "
                "with the release that wrote it, or begin in an empty directory and read the streams again",
            )
        return contents

    def _parse(self, message: Any, key: bytes, value: bytes) -> Any:
        try:
            message.ParseFromString(value)
        except DecodeError as problem:
            raise CorruptCheckpointError(str(self._path), f"entry {key!r}: {problem}") from problem
        return message

    def write(self, puts: Mapping[bytes, Message | bytes], deletes: Iterable[bytes] = ()) -> None:
        """All of these or none, durable when it returns. :class:`CheckpointFailedError`: the next call tries afresh."""
        batch = WriteBatch(raw_mode=True)
        for key, value in puts.items():
            batch.put(key, value if isinstance(value, bytes) else value.SerializeToString(deterministic=True))
        for key in deletes:
            batch.delete(key)
        options = WriteOptions()
        options.sync = True
        with self._lock:
            try:
                if self._db is None:
                    self._db = self._open()
                self._db.write(batch, options)
            except Exception as problem:
                # After a failed write RocksDB may refuse all others; opened again, it is as good as the disk is.
                self._abandon()
                raise CheckpointFailedError(str(self._path), str(problem)) from problem

    def _abandon(self) -> None:
        database, self._db = self._db, None
        try:
            if database is not None:
                database.close()
        except Exception as problem:
            _log.warning("closing a manifest that could not be written: %s", problem)

    def close(self) -> None:
        """Give the directory back."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None
