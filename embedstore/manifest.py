"""The manifest: a small RocksDB that says what a store's directory means. docs/formats/checkpoint.md.

Every write is one synced batch, so the manifest moves from one consistent state to the next or not at all. RocksDB's
lock is also what keeps a second process out of the directory.

RocksDB takes a log that was cut off for one whose last write never ended, which is right after a kill. So the number of
the last write that did end is in a file beside it: a manifest that ends before that has lost something.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crc32c import crc32c
from google.protobuf.message import DecodeError, Message
from rocksdict import AccessType, DBRecoveryMode, Options, Rdict, WriteBatch, WriteOptions

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
ATTEMPTS_MAX = 20
LAST_WRITE_NAME = "last-write"
_OWNERS = ("LOCK", "LOG", "rocksdict-config", LAST_WRITE_NAME)
_LAST_WRITE_MAGIC = b"ESLASTWR"
_LAST_WRITE = struct.Struct("<8sQI")
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
        self._check_end()
        options = _options()
        options.create_if_missing(True)
        options.set_keep_log_file_num(2)
        options.set_write_buffer_size(8 << 20)
        try:
            return Rdict(str(self._path), options=options)
        except Exception as problem:
            text = str(problem)
            if "lock" in text.lower() and "IO error" in text:
                raise StoreLockedError(str(self._path.parent)) from problem
            raise CorruptCheckpointError(str(self._path), text) from problem

    def _check_end(self) -> None:
        """Look before it is opened: that goes on from what is there, and then nothing can be put back."""
        if not (last := _last_write(self._path)):
            return
        try:
            database = Rdict(str(self._path), options=_options(), access_type=AccessType.read_only(False))
        except Exception as problem:
            # Damaged, or another process's: who opens it to write is told which.
            _log.debug("the manifest's end is not known: %s", problem)
            return
        try:
            _check_end(self._path, database, last)
        finally:
            database.close()

    def read(self) -> ManifestContents:
        """All of it; :class:`CorruptCheckpointError` for an entry that cannot be understood."""
        return _contents(self._db, self._path)

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
                _note_last_write(self._path, self._db.latest_sequence_number())
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


def read_manifest(path: Path) -> ManifestContents:
    """All of a manifest as it is now, without its lock and without a trace: its owner may go on.
    :class:`CorruptCheckpointError`."""
    try:
        if not (path / "CURRENT").exists():
            raise CorruptCheckpointError(str(path.parent), "holds no store")
        for _ in range(ATTEMPTS_MAX):
            names = _files(path)
            try:
                return _read_aside(path, names)
            except CorruptCheckpointError:
                # The owner may have begun a new file, or deleted one, meanwhile.
                if _files(path) == names:
                    raise
    except OSError as problem:
        raise CorruptCheckpointError(str(path), str(problem)) from problem
    raise CorruptCheckpointError(str(path), "does not hold still")


def _files(path: Path) -> set[str]:
    return {entry.name for entry in os.scandir(path) if not entry.name.startswith(_OWNERS)}


def _read_aside(path: Path, names: set[str]) -> ManifestContents:
    """Read through links: RocksDB writes a little even where it only reads."""
    last = _last_write(path)
    with TemporaryDirectory() as aside:
        for name in names:
            os.symlink((path / name).absolute(), Path(aside) / name)
        try:
            database = Rdict(aside, options=_options(), access_type=AccessType.read_only(False))
        except Exception as problem:
            raise CorruptCheckpointError(str(path), str(problem).replace(aside, str(path))) from problem
        try:
            _check_end(path, database, last)
            return _contents(database, path)
        finally:
            database.close()


def _options() -> Options:
    options = Options(raw_mode=True)
    options.set_paranoid_checks(True)
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_max_open_files(64)
    return options


def _note_last_write(manifest: Path, number: int) -> None:
    """Not synced: what counts is that it never reaches the disk before the write itself."""
    front = _LAST_WRITE_MAGIC + struct.pack("<Q", number)
    try:
        handle = os.open(manifest / LAST_WRITE_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(handle, front + struct.pack("<I", crc32c(front)), 0)
        finally:
            os.close(handle)
    except OSError as problem:
        _log.warning("the number of the manifest's last write is not noted: %s", problem)


def _last_write(manifest: Path) -> int:
    """The number of the last write that is known to have ended; 0 when none is."""
    file = manifest / LAST_WRITE_NAME
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return 0
    except OSError as problem:
        raise CorruptCheckpointError(str(file), str(problem)) from problem
    sound = len(content) == _LAST_WRITE.size and content.startswith(_LAST_WRITE_MAGIC)
    if not sound or _LAST_WRITE.unpack(content)[2] != crc32c(content[:-4]):
        _log.warning("%s is damaged: a manifest that has lost its last writes would not be noticed", file)
        return 0
    return int(_LAST_WRITE.unpack(content)[1])


def _check_end(manifest: Path, database: Any, last: int) -> None:
    held = database.latest_sequence_number()
    if held < last:
        raise CorruptCheckpointError(
            str(manifest),
            f"its last writes are lost: it ends with change {held}, and {last} were durable; to go on from what is "
            f"there, delete {manifest / LAST_WRITE_NAME}",
        )


def _contents(database: Any, path: Path) -> ManifestContents:
    contents = ManifestContents()
    try:
        entries = list(database.items())
    except Exception as problem:
        raise CorruptCheckpointError(str(path), str(problem)) from problem
    for key, value in entries:
        _add(contents, key, value, path)
    if contents.store is None and entries:
        raise CorruptCheckpointError(str(path), "has entries but does not say of which store")
    if contents.store is not None and contents.store.format != FORMAT:
        raise CorruptCheckpointError(
            str(path.parent),
            f"is of format {contents.store.format} and this release reads {FORMAT}; it is left as it was: open it "
            "with the release that wrote it, or begin in an empty directory and read the streams again",
        )
    return contents


def _add(contents: ManifestContents, key: bytes, value: bytes, path: Path) -> None:
    kind, _, _ = key.partition(b"/")
    if key == STORE_KEY:
        contents.store = _parse(manifest_pb2.StoreManifest(), key, value, path)
    elif key == TOPOLOGY_KEY:
        contents.topology = _parse(admin_pb2.TopologyRecord(), key, value, path)
    elif key == PREVIOUS_TOPOLOGY_KEY:
        contents.previous_topology = _parse(admin_pb2.TopologyRecord(), key, value, path)
    elif key == ACQUAINTANCES_KEY:
        contents.acquaintances = list(_parse(manifest_pb2.Acquaintances(), key, value, path).addresses)
    elif kind == b"table":
        contents.tables.append(_parse(manifest_pb2.TableManifest(), key, value, path))
    elif kind == b"kept":
        contents.kept.append(_parse(manifest_pb2.CheckpointManifest(), key, value, path))
    elif kind == b"stream":
        contents.streams.append(_parse(manifest_pb2.StreamManifest(), key, value, path))
    elif kind == b"dense":
        contents.dense.append(_parse(store_pb2.DenseSet(), key, value, path))
    else:
        raise CorruptCheckpointError(str(path), f"unknown entry {key!r}")


def _parse(message: Any, key: bytes, value: bytes, path: Path) -> Any:
    try:
        message.ParseFromString(value)
    except DecodeError as problem:
        raise CorruptCheckpointError(str(path), f"entry {key!r}: {problem}") from problem
    return message
