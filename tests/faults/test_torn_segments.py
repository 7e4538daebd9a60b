"""Segments torn and flipped between runs, again and again: chunks fall back apart, and replays bring them level."""

from __future__ import annotations

import itertools
import secrets
from pathlib import Path

import numpy as np
from checkpoints import STREAM, crash

import embedstore as es
from embedstore.store import LocalStore

ROUNDS = 25
BATCH_MAX = 128
TABLES = [
    es.TableSpec("items", dim=2, optimizer=es.SGD(lr=1.0), num_chunks=16),
    es.TableSpec("users", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=16),
]


class Log:
    """Events of an item and a user each."""

    def __init__(self, rng: np.random.Generator, num_events: int = 20_000) -> None:
        self.items = (2000 * rng.random(num_events) ** 3).astype(np.uint64)
        self.users = rng.integers(0, 1000, num_events).astype(np.uint64)

    def push(self, store: LocalStore, begin: int, end: int) -> None:
        """Count the events [begin, end)."""
        tables = {
            name: (ids[begin:end], np.full((end - begin, store.tables()[name].dim), -1.0, np.float32))
            for name, ids in (("items", self.items), ("users", self.users))
        }
        store.push(tables, origins=[es.Origin(STREAM, begin, end)])


def tear(rng: np.random.Generator, directory: Path) -> None:
    """Truncate or flip some of the segments."""
    paths = sorted(directory.rglob("*.seg"))
    for path in rng.permutation(np.array(paths, object))[: int(rng.integers(1, 4))]:
        data = bytearray(path.read_bytes())
        if not data:
            continue
        if rng.random() < 0.5:
            del data[int(rng.integers(len(data))) :]
        else:
            for at in rng.integers(len(data), size=int(rng.integers(1, 8))).tolist():
                data[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(data))


def level(store: LocalStore, log: Log, end: int, rng: np.random.Generator) -> None:
    """Push again what any chunk lacks, in batches that cross no chunk's position."""
    cuts = sorted({*store.watermarks()[STREAM].watermarks, end})
    for begin, stop in itertools.pairwise(cuts):
        at = begin
        while at < stop:
            batch_end = min(stop, at + int(rng.integers(1, BATCH_MAX)))
            log.push(store, at, batch_end)
            at = batch_end


def counts(store: LocalStore, table: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for ids, rows in store.scan(table):
        for key, row in zip(ids.tolist(), rows.embeddings, strict=True):
            assert key not in found, f"{table}: {key} has two rows"
            found[key] = float(row[0])
    return found


def test_chunks_that_fall_back_apart_are_brought_level_by_a_replay(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    log, end, fallen = Log(rng), 0, 0
    directory = tmp_path / "0"
    for round_number in range(1, ROUNDS):
        with LocalStore(directory, TABLES) as store:
            if not end:
                store.open_stream(STREAM, 0)
            fallen += store.corrupt_chunks()
            level(store, log, end, rng)
            for table, ids in (("items", log.items), ("users", log.users)):
                keys, numbers = np.unique(ids[:end], return_counts=True)
                assert counts(store, table) == dict(zip(keys.tolist(), numbers.tolist(), strict=True))
            for _ in range(int(rng.integers(1, 12))):
                batch_end = end + int(rng.integers(1, BATCH_MAX))
                log.push(store, end, batch_end)
                end = batch_end
                if rng.random() < 0.3:
                    store.checkpoint()
            directory = crash(directory, tmp_path / str(round_number))
        if rng.random() < 0.6:
            tear(rng, directory)
    assert fallen, "no chunk ever fell back"
