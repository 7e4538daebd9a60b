"""Reads while a shard is away: never a wrong row without saying so, never an error that was not asked for."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from half_rows import bits
from moving_shards import MovingShards
from processes import Process, free_port

import embedstore as es
from embedstore.placement import chunks_of_ids, shard_of_chunk

ITEMS = es.TableSpec("items", 2, optimizer=es.SGD(1.0), init=es.Uniform(0.5, seed=3), on_miss="init", num_chunks=8)
USERS = es.TableSpec("users", 1, optimizer=es.SGD(1.0), num_chunks=8)
HUGE = es.TableSpec("huge", 1, init=es.Constant(1e30), on_miss="init", num_chunks=8)
IDS = np.array([5, 9, 5, *range(40), 9], np.uint64)


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[MovingShards]:
    with MovingShards(tmp_path, 2, tables=(ITEMS, USERS, HUGE)) as moving:
        with es.connect(moving.addresses) as store:
            unique = np.arange(40, dtype=np.uint64)
            for name, dim in (("items", 2), ("users", 1)):
                store.push({name: (unique, np.full((40, dim), -1.0, np.float32))})
        yield moving


def of_shard(shard: int) -> np.ndarray:
    chunks = chunks_of_ids(IDS, 8)
    return np.array([shard_of_chunk(int(chunk), 2, 8) == shard for chunk in chunks])


def reader(shards: MovingShards, **options: Any) -> Any:
    return es.connect(shards.addresses, **{"timeout_s": 1.0, "retry_s": 0.3, "on_unavailable": "default", **options})


@pytest.mark.parametrize("gone", [0, 1])
def test_the_ids_of_a_shard_that_is_gone_read_as_default_and_are_named(shards: MovingShards, gone: int) -> None:
    with es.open(None, [ITEMS]) as empty:
        initial = empty.pull({"items": IDS})["items"]
    with reader(shards) as store:
        whole = store.pull({"items": IDS, "users": IDS})
        assert whole.unavailable == {}
        shards.shards[gone].stop()
        for specs_known in (True, False):
            if not specs_known:
                store.forget(["items", "users"])
            part = store.pull({"items": IDS, "users": IDS})
            lost = of_shard(gone)
            assert set(part.unavailable) == {"items", "users"}
            np.testing.assert_array_equal(part.unavailable["items"], lost)
            np.testing.assert_array_equal(part["items"][~lost], whole["items"][~lost])
            np.testing.assert_array_equal(part["items"][lost], initial[lost])
            assert not part["users"][lost].any()
        rows = store.pull({"users": IDS}, meta=True)
        np.testing.assert_array_equal(rows.unavailable["users"], lost)
        np.testing.assert_array_equal(rows["users"].found, ~lost)
        np.testing.assert_array_equal(rows["users"].updates, (~lost).astype(np.uint32))
        shards.restart(gone)
        deadline_s = time.monotonic() + 30.0
        while (again := store.pull({"items": IDS, "users": IDS})).unavailable:
            assert time.monotonic() < deadline_s
        np.testing.assert_array_equal(again["items"], whole["items"])


def test_defaults_are_rounded_as_the_shards_round_them(shards: MovingShards) -> None:
    with es.open(None, [ITEMS, HUGE]) as empty, reader(shards) as store:
        whole = store.pull({"items": IDS}, dtype=np.float16)["items"]
        store.tables()
        shards.shards[1].stop()
        lost = of_shard(1)
        asked = {"items": IDS, "huge": IDS}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            part, known = (store.pull(asked, dtype=np.float16, meta=meta) for meta in (False, True))
        initial = empty.pull(asked, dtype=np.float16)
        for answer, rows in ((part, part), (known, {name: known[name].embeddings for name in known})):
            assert bits(rows["items"][lost]) == bits(initial["items"][lost])
            assert bits(rows["items"][~lost]) == bits(whole[~lost])
            assert bits(rows["huge"]) == bits(np.full((len(IDS), 1), np.inf, np.float16))
            assert set(answer.unavailable) == {"items", "huge"}


def test_unless_asked_for_a_shard_that_is_gone_is_an_error(shards: MovingShards) -> None:
    with reader(shards, on_unavailable="raise") as store:
        store.pull({"items": IDS})
        shards.shards[1].stop()
        with pytest.raises(es.UnavailableError, match=shards.addresses[1]):
            store.pull({"items": IDS})
        some = IDS[of_shard(0)]
        assert store.pull({"items": some}).unavailable == {}


def test_what_is_no_silence_stays_an_error(shards: MovingShards) -> None:
    with reader(shards) as store:
        shards.shards[1].stop()
        with pytest.raises(es.TableNotFoundError):
            store.pull({"nothing": IDS})
        with pytest.raises(es.UnavailableError):
            store.contains("items", IDS)
        with pytest.raises(es.UnavailableError):
            store.push({"items": (IDS, np.ones((len(IDS), 2)))})
        shards.restart(1)
    with pytest.raises(es.InvalidArgumentError, match="on_unavailable"):
        es.connect(shards.addresses, on_unavailable="zeros")  # type: ignore[arg-type]


def test_with_all_shards_gone_everything_reads_as_default(shards: MovingShards) -> None:
    with reader(shards) as store:
        store.tables()
        for shard in shards.shards:
            shard.stop()
        part = store.pull({"users": IDS}, dtype=np.float16)
        assert part.unavailable["users"].all()
        assert part["users"].dtype == np.float16
        assert not part["users"].any()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[Process]]:
    (tmp_path / "tables.toml").write_text("[tables.users]\ndim = 1\nnum_chunks = 8\n")
    with ExitStack() as stack:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        yield [
            stack.enter_context(
                Process(
                    *("--shard", f"{shard}/2", "--listen", address, "--peers", ",".join(addresses)),
                    *("--tables", str(tmp_path / "tables.toml")),
                )
            )
            for shard, address in enumerate(addresses)
        ]


@pytest.mark.parametrize("how", ["suspend", "kill"])
def test_only_the_first_pull_waits_for_a_shard_that_is_away(processes: list[Process], how: str) -> None:
    wait_s = 1.0
    addresses = [process.address for process in processes]
    with (
        es.connect(addresses, timeout_s=wait_s, retry_s=wait_s, on_unavailable="default") as store,
        ExitStack() as stack,
    ):
        assert store.pull({"users": IDS}).unavailable == {}
        getattr(processes[1], how)()
        assert store.pull({"users": IDS}).unavailable
        began_s = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            pulls = [pool.submit(store.pull, {"users": IDS}) for _ in range(40)]
            for pull in pulls:
                np.testing.assert_array_equal(pull.result().unavailable["users"], of_shard(1))
        assert time.monotonic() - began_s < wait_s
        if how == "suspend":
            processes[1].process.send_signal(signal.SIGCONT)
        else:
            stack.enter_context(Process(*processes[1].arguments))
        deadline_s = time.monotonic() + 30.0
        while store.pull({"users": IDS}).unavailable:
            assert time.monotonic() < deadline_s


def test_a_silence_that_nobody_asked_about_is_forgotten(processes: list[Process]) -> None:
    """Who pulls seldom is told how it is, not how it was."""
    addresses = [process.address for process in processes]
    with es.connect(addresses, timeout_s=0.5, retry_s=0.5, on_unavailable="default") as store:
        store.tables()
        processes[0].suspend()
        assert store.pull({"users": IDS}).unavailable
        [watch] = [thread for thread in threading.enumerate() if thread.name == f"silent {addresses[0]}"]
        watch.join(30.0)
        assert not watch.is_alive()
        processes[0].process.send_signal(signal.SIGCONT)
        assert store.pull({"users": IDS}).unavailable == {}
