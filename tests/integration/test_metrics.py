"""What processes tell Prometheus is what happened, for shards, followers and followers of followers."""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import Authority
from processes import free_port, run
from scraping import check_told, families, scraped
from waiting import until

import embedstore as es
from embedstore.credentials import PLAIN
from embedstore.freshness import MEANINGS, SAMPLE_INTERVAL_S, TIME_TO_FIRST_EMBEDDING
from embedstore.placement import chunks_of_ids
from embedstore.server.exposed import expose_metrics
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard
from embedstore.status import Topology
from embedstore.table_set import DENSE_TOLD_MAX

TABLE = es.TableSpec("items", dim=2, optimizer=es.SGD(1.0), num_chunks=4)
TIMEOUT_S = 20.0


@pytest.fixture
def start(start: Callable[..., Shard]) -> Callable[..., Shard]:
    """As everywhere, with metrics."""
    return partial(start, metrics_listen="127.0.0.1:0")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_a_new_id_is_measured_all_the_way_to_the_last_follower(start: Callable[..., Shard]) -> None:
    leader = start(tables=[TABLE])
    follower = start(follow=[leader.address])
    last = start(follow=[follower.address])
    assert last.wait_ready(TIMEOUT_S)
    with es.connect(leader.address) as store:
        event_ms = now_ms() - 400
        began_s = time.monotonic()
        store.push({"items": ([7, 8], np.ones((2, 2)))}, event_time_ms=event_ms)
        until(lambda: scraped(last).get((f"{TIME_TO_FIRST_EMBEDDING}_count", "items")) == 2)
        took_s = time.monotonic() - began_s
        for shard in (follower, last):
            found = scraped(shard)
            mean_s = found[f"{TIME_TO_FIRST_EMBEDDING}_sum", "items"] / 2
            assert 0.4 <= mean_s <= 0.5 + took_s
            for measure in ("event_to_visible_seconds", "published_to_visible_seconds"):
                assert found[f"{measure}_count", "items"] >= 1
            assert 0.4 <= found["event_to_visible_seconds_sum", "items"] <= 2 * (0.5 + took_s)
        found = scraped(leader)
        assert 0.4 <= found["event_to_trained_seconds_sum", "items"] <= 0.5 + took_s
        assert found["trained_to_published_seconds_count", "items"] >= 1
        assert found["followers",] == 1
        [lag_s] = [value for key, value in found.items() if key[0] == "follower_lag_seconds"]
        assert lag_s <= 1 + took_s
        store.push({"items": ([7], np.ones((1, 2)))}, event_time_ms=now_ms())
        assert scraped(leader)["event_to_trained_seconds_count", "items"] == 2
    with es.connect(last.address) as reader:
        reader.pull({"items": [7, 9]})
        until(lambda: ("served_row_age_seconds_count", "items") in scraped(last))
        stats = reader.stats()
        assert stats.distributions[TIME_TO_FIRST_EMBEDDING, "items"].num_values == 2
        assert stats.leaders[0].age_s < TIMEOUT_S


def test_a_shard_says_what_it_holds_and_what_it_refused(start: Callable[..., Shard], tmp_path: Path) -> None:
    shard = start(tables=[TABLE], data=tmp_path / "data")
    with es.connect(shard.address) as store:
        store.open_stream("topic/0", 5)
        store.push({"items": ([1, 2, 3], np.ones((3, 2)))}, origins=[es.Origin("topic/0", 5, 9)])
        with pytest.raises(es.GapError):
            store.push({"items": ([1], np.ones((1, 2)))}, origins=[es.Origin("topic/0", 50, 51)])
        store.checkpoint()
        store.pull({"items": [1, 4]})
    found = scraped(shard)
    assert found["rows", "items"] == 3
    assert found["memory_bytes", "items"] > 0
    assert found["pushed_rows_total", "items"] == 3
    assert found["missed_rows_total", "items"] == 1
    assert found["stream_position", "applied", "topic/0"] == 9
    assert found["stream_position", "durable", "topic/0"] == 9
    assert found["request_seconds_count", "Push"] == 2
    assert found["refused_requests_total", "GapError", "Push"] == 1
    assert (found["ready",], found["fenced",], found["epoch",]) == (1, 0, 1)
    assert abs(found["last_checkpoint_timestamp_seconds",] - time.time()) < TIMEOUT_S
    assert not any("client/" in label for key in found for label in key)


def test_a_standby_tells_what_it_has_and_how_old_it_is(start: Callable[..., Shard], tmp_path: Path) -> None:
    leader = start(tables=[TABLE], data=tmp_path / "leader")
    standby = start(follow=[leader.address], standby=True, data=tmp_path / "standby")
    with es.connect(leader.address) as store:
        store.open_stream("topic/0", 0)
        store.push({"items": ([1, 2, 3], np.ones((3, 2)))}, origins=[es.Origin("topic/0", 0, 9)])
        until(lambda: scraped(standby).get(("rows", "items")) == 3)
    until(lambda: scraped(standby)["synced",] == 1)
    found = scraped(standby)
    assert (found["ready",], found["memory_bytes", "items"] > 0) == (0, True)
    assert found["leader_connected", leader.address] == 1
    assert found["leader_age_seconds", leader.address] < TIMEOUT_S
    assert found["stream_position", "applied", "topic/0"] == 9
    assert not any(key[0].startswith(measure) for key in found for measure in MEANINGS)
    assert ("synced",) not in scraped(leader)
    leader._serving.adopt(Topology(3, (leader.address,), 1))
    assert scraped(leader)["epoch",] == 3
    until(lambda: scraped(standby)["epoch",] == 3)


def test_a_follower_tells_what_it_has_before_its_first_copy_is_complete(start: Callable[..., Shard]) -> None:
    port = free_port()
    peers = [f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"]
    leader = start(tables=[TABLE], num_shards=2, peers=peers, listen=peers[0])
    assert leader._serving.writable().push(own_rows(TABLE, leader))
    follower = start(follow=[leader.address])
    until(lambda: scraped(follower).get(("rows", "items"), 0) > 0)
    found = scraped(follower)
    assert (found["ready",], found["synced",]) == (0, 0)
    assert (found["leader_connected", peers[0]], found["leader_connected", peers[1]]) == (1, 0)
    assert found["leader_age_seconds", peers[1]] == np.inf


def own_rows(table: es.TableSpec, shard: Shard) -> dict[str, Any]:
    """Of ten ids those that belong to this one of two shards."""
    ids = np.arange(10, dtype=np.uint64)
    ids = ids[chunks_of_ids(ids, table.num_chunks) < table.num_chunks // 2]
    return {table.name: (ids, np.ones((len(ids), table.dim)))}


def test_a_follower_says_nothing_of_what_only_shards_have(start: Callable[..., Shard], tmp_path: Path) -> None:
    """An alert on an old checkpoint, or on what is not durable, is about shards."""
    leader = start(tables=[TABLE], data=tmp_path)
    follower = start(follow=[leader.address])
    with es.connect(leader.address) as store:
        store.open_stream("topic/0", 0)
        store.push({"items": ([1, 2, 3], np.ones((3, 2)))}, origins=[es.Origin("topic/0", 0, 9)])
        until(lambda: scraped(follower).get(("stream_position", "applied", "topic/0")) == 9)
    only = {
        ("stream_position", "durable", "topic/0"),
        ("last_checkpoint_timestamp_seconds",),
        ("corrupt_chunks",),
        ("pushed_rows_total", "items"),
        ("inserted_rows_total", "items"),
        ("dropped_rows_total", "items"),
        ("sketch_halvings_total", "items"),
    }
    assert only <= scraped(leader).keys()
    assert not only & scraped(follower).keys()


def test_the_manual_lists_every_metric(start: Callable[..., Shard], tmp_path: Path) -> None:
    leader = start(tables=[TABLE])
    follower = start(follow=[leader.address])
    standby = start(follow=[leader.address], standby=True, data=tmp_path)
    manual = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    listed = set(re.findall(r"`embedstore_([a-z_]+)", manual))
    with es.connect(leader.address) as store:
        store.open_stream("topic/0", 0)
        store.push({"items": ([1], np.ones((1, 2)))}, origins=[es.Origin("topic/0", 0, 9)], event_time_ms=now_ms())
    until(lambda: all(scraped(each).get(("rows", "items")) == 1 for each in (follower, standby)))
    names: set[str] = set()
    for shard in (leader, follower, standby):
        found = families(shard.metrics_address)
        check_told(found, "embedstore_")
        names |= found.keys()
    told = {name.removeprefix("embedstore_") for name in names if name.startswith("embedstore_")}
    assert {name.removesuffix("_total") for name in listed} == told
    assert listed >= set(MEANINGS)


def test_a_program_tells_what_its_own_view_and_store_hold(start: Callable[..., Shard]) -> None:
    leader = start(tables=[TABLE])
    event_ms = now_ms() - 700
    with es.follow(leader.address) as view, expose_metrics(view, "127.0.0.1:0") as exposed:
        view.wait_synced(TIMEOUT_S)
        with es.connect(leader.address) as writer:
            writer.push({"items": ([7, 8], np.ones((2, 2)))}, event_time_ms=event_ms)
            with pytest.raises(es.InvalidArgumentError, match="store"):
                expose_metrics(writer, "127.0.0.1:0")
        until(lambda: bool(view.contains("items", [7, 8]).all()))
        began_s = time.monotonic()
        for _ in range(200):
            view.pull({"items": np.array([7, 8, 9], np.uint64)})
        looks = 1 + (time.monotonic() - began_s) / SAMPLE_INTERVAL_S
        found = scraped(exposed)
        assert 2 <= found["served_row_age_seconds_count", "items"] <= 2 * looks
        assert found["served_row_age_seconds_sum", "items"] >= 0.7 * found["served_row_age_seconds_count", "items"] / 2
        assert (found["rows", "items"], found["pulled_rows_total", "items"], found["synced",]) == (2, 600, 1)
        assert found["event_to_visible_seconds_count", "items"] >= 1
        assert found["leader_connected", leader.address] == 1
        assert "pushed_rows_total" not in {key[0] for key in found}
    with pytest.raises(OSError, match="refused"):
        scraped(exposed)
    with es.open(None, [TABLE]) as store, expose_metrics(store, "127.0.0.1:0") as exposed:
        store.push({"items": ([1], np.ones((1, 2)))}, event_time_ms=event_ms)
        store.pull({"items": [1]}, meta=True)
        found = scraped(exposed)
        assert (found["pushed_rows_total", "items"], found["served_row_age_seconds_count", "items"]) == (1, 1)
        store.close()
        assert "rows" not in {key[0] for key in scraped(exposed)}
        with pytest.raises(es.InvalidArgumentError, match="listen"):
            expose_metrics(store, "0.0.0.0:0", credentials=PLAIN)
        with pytest.raises(es.UnavailableError, match="metrics cannot be served there"):
            expose_metrics(store, exposed.address)


def test_dense_weights_are_told_of_with_what_they_were_trained_to(start: Callable[..., Shard]) -> None:
    leader = start(tables=[TABLE])
    follower = start(follow=[leader.address])
    last = start(follow=[follower.address])
    assert last.wait_ready(TIMEOUT_S)
    with es.connect(leader.address) as store:
        for stream in ("topic/0", "topic/1"):
            store.open_stream(stream, 0)
        for version in (1, 2):
            position = {"topic/0": 10 * version, "topic/1": 20 * version}
            store.put_dense("model", {"w": np.ones(3, np.float32)}, position)
            for shard in (leader, follower, last):
                until(partial(_has_version, shard, version))
                found = scraped(shard)
                assert found["dense_position", "model", "topic/0"] == 10 * version
                assert found["dense_position", "model", "topic/1"] == 20 * version
        told = store.stats().dense_sets["model"]
        assert (told.version, told.position, told.tensors) == (2, position, {})
    [facts] = lines("top", "--once", "--interval-s", "0.1", "--servers", leader.address, "--followers", last.address)
    shown = {row["process"]: (row["dense_set"], row["version"]) for row in facts["dense_sets"]}
    assert {shown[shard.address] for shard in (leader, last)} == {("model", 2)}


def _has_version(shard: Shard, version: int) -> bool:
    return scraped(shard).get(("dense_version", "model")) == version


def test_of_very_many_dense_sets_the_first_are_told(start: Callable[..., Shard]) -> None:
    leader = start(tables=[TABLE])
    with es.connect(leader.address) as store:
        for i in range(DENSE_TOLD_MAX + 3):
            store.put_dense(f"{i:04}", {}, {})
    assert sum(key[0] == "dense_version" for key in scraped(leader)) == DENSE_TOLD_MAX


def test_metrics_go_over_tls_where_the_port_does(start: Callable[..., Shard], tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    server, client = authority.credentials("server"), authority.credentials("client")
    shard = start(tables=[TABLE], credentials=server, mtls=True)
    context = ssl.create_default_context(cafile=client.tls_ca)
    with pytest.raises(OSError, match=r"(?i)certificate|reset|closed|EOF"):
        scraped(shard, context)
    assert client.tls_cert is not None
    context.load_cert_chain(client.tls_cert, client.tls_key)
    found = scraped(shard, context)
    assert found["ready",] == 1
    assert 0 < found["certificate_expiry_timestamp_seconds",] - time.time() < 2 * 86_400
    assert server.tls_cert is not None
    ends_s = time.time() + 50_000
    renewed = authority.lasting("renewed", time.time() - 60, ends_s)
    for new, old in ((renewed.tls_key, server.tls_key), (renewed.tls_cert, server.tls_cert)):
        assert new is not None and old is not None
        new.replace(old)
    assert scraped(shard, context)["certificate_expiry_timestamp_seconds",] == int(ends_s)


def test_a_port_in_use_is_told_and_leaves_nothing_open(start: Callable[..., Shard]) -> None:
    first = start(tables=[TABLE])
    options = ShardOptions("127.0.0.1:0", metrics_listen=first.metrics_address)
    with pytest.raises(es.UnavailableError, match="metrics cannot be served there"):
        Shard(options).start()
    with pytest.raises(es.InvalidArgumentError, match="metrics"):
        ShardOptions("127.0.0.1:0", metrics_listen="nowhere")
    with pytest.raises(es.InvalidArgumentError, match="plaintext"):
        ShardOptions("127.0.0.1:0", metrics_listen="0.0.0.0:9", credentials=PLAIN)


def lines(*arguments: str) -> list[dict[str, Any]]:
    done = run([*arguments, "--json"])
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_lag_and_top_show_what_all_processes_say(start: Callable[..., Shard]) -> None:
    leaders = [start(tables=[TABLE], shard=i, num_shards=2) for i in range(2)]
    addresses = ",".join(shard.address for shard in leaders)
    follower = start(follow=[shard.address for shard in leaders])
    assert follower.wait_ready(TIMEOUT_S)
    at = ("--servers", addresses, "--followers", follower.address)
    stop = threading.Event()

    def write() -> None:
        with es.connect(addresses) as store:
            ids = np.arange(64, dtype=np.uint64)
            while not stop.wait(0.02):
                store.push({"items": (ids, np.ones((64, 2), np.float32))}, event_time_ms=now_ms())
                store.pull({"items": ids})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: (TIME_TO_FIRST_EMBEDDING + "_count", "items") in scraped(follower))
        rows = lines("shard", "lag", *at)
        shown = lines("top", "--once", "--interval-s", "0.5", *at)
        text = run(["top", "--once", "--interval-s", "0.2", *at])
    finally:
        stop.set()
        writer.join()
    times = {row["measure"]: row for row in rows if "measure" in row}
    assert {measure.removesuffix("_seconds") for measure in MEANINGS} <= set(times)
    for row in times.values():
        assert 0 <= row["p50_s"] <= row["p99_s"] < TIMEOUT_S, row
    assert {row["leader"] for row in rows if "leader" in row} == {shard.address for shard in leaders}
    [facts] = shown
    assert [member["role"] for member in facts["members"]] == ["shard 0/2", "shard 1/2", "follower"]
    assert [member["epoch"] for member in facts["members"]] == [1, 1, None]
    assert [("epoch",) in scraped(shard) for shard in (*leaders, follower)] == [True, True, False]
    assert sum(member["rows"] for member in facts["members"][:2]) == facts["members"][2]["rows"] == 64
    [copy] = facts["copies"]
    assert (copy["follower"], copy["table"], copy["rows"]) == (follower.address, "items", 64)
    assert copy["memory_bytes"] == 64 * copy["bytes_per_row"] > 0
    [table] = facts["tables"]
    assert table["rows"] == 64
    assert table["pushed_rows_per_s"] > 64
    assert table["pulled_rows_per_s"] > 64
    assert text.returncode == 0
    assert "items" in text.stdout
    assert follower.address in text.stdout


def test_a_process_that_is_gone_is_shown_as_gone(start: Callable[..., Shard]) -> None:
    leader = start(tables=[TABLE])
    nobody = f"127.0.0.1:{free_port()}"
    [facts] = lines("top", "--once", "--interval-s", "0.1", "--servers", leader.address, "--followers", nobody)
    assert [member.get("problem", "") == "" for member in facts["members"]] == [True, False]
    lag = run(["shard", "lag", "--servers", nobody])
    assert (lag.returncode, nobody in lag.stderr) == (1, True)
    assert run(["top", "--once", "--interval-s", "0.1", "--servers", nobody]).returncode == 1
    assert "interval-s" in run(["top", "--interval-s", "0"]).stderr
