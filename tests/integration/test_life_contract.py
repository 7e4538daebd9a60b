"""What lets a row live, in every store alike: admission, expiry, capacity, and the sweeps that follow them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_table import chunk_of, needed, row_bytes
from stores import STORE_FACTORIES, StoreHandle

import embedstore as es
from embedstore.interface import Store

CHUNKS = 8
DAY_S = 86_400
DAY_MS = DAY_S * 1000
NOW_MS = time.time_ns() // 1_000_000
PLAIN = es.TableSpec("plain", dim=2, optimizer=es.SGD(lr=1.0), num_chunks=CHUNKS)
PICKY = replace(PLAIN, name="picky", admission=es.MinCount(3))
LUCKY = replace(PLAIN, name="lucky", admission=es.Probability(0.3, seed=11))
BRIEF = replace(PLAIN, name="brief", ttl_s=DAY_S)
SMALL = replace(PLAIN, name="small", rows_max=4 * CHUNKS)
OF_ONE_CHUNK = [key for key in range(2000) if chunk_of(key, CHUNKS) == 3]


@pytest.fixture(params=sorted(STORE_FACTORIES))
def handle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreHandle]:
    with STORE_FACTORIES[request.param](tmp_path, [PLAIN, PICKY, LUCKY, BRIEF, SMALL]) as opened:
        yield opened


@pytest.fixture
def store(handle: StoreHandle) -> Store:
    return handle.store


def push(store: Store, table: str, ids: Any, time_ms: int | None = None, **options: Any) -> None:
    store.push({table: es.TablePush(ids, np.ones((len(ids), 2), np.float32), **options)}, event_time_ms=time_ms)


def there(store: Store, table: str, ids: Any) -> list[Any]:
    return [key for key, found in zip(ids, store.contains(table, ids), strict=True) if found]


def updates(store: Store, table: str, key: int) -> int:
    return int(store.pull({table: [key]}, meta=True)[table].updates[0])


def refused(field: str, call: Callable[[], Any]) -> None:
    with pytest.raises(es.InvalidArgumentError) as caught:
        call()
    assert caught.value.field == field


# -- admission


def test_the_occurrence_that_reaches_the_count_is_the_first_to_be_learnt_from(store: Store) -> None:
    for _ in range(2):
        push(store, "picky", [7])
        assert not store.contains("picky", [7]).any()
        assert not store.pull({"picky": [7]})["picky"].any()
    push(store, "picky", [7, 8])
    push(store, "picky", [7])
    assert there(store, "picky", [7, 8]) == [7]
    assert store.pull({"picky": [7]})["picky"][0, 0] == -2, "the gradients before the row are gone"
    stats = store.stats().tables["picky"]
    assert (stats.rows, stats.dropped_rows) == (1, 3)


def test_duplicates_and_counts_are_occurrences(store: Store) -> None:
    push(store, "picky", [1, 2, 1, 3, 1, 2])
    assert there(store, "picky", [1, 2, 3]) == [1]
    push(store, "picky", [2, 3, 4, 4], counts=np.array([1, 2, 2, 1], np.uint32))
    assert there(store, "picky", [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert store.pull({"picky": [1, 4]})["picky"][:, 0].tolist() == [-3, -2], "the whole push counts"


def test_occurrences_of_one_push_may_be_more_than_a_count_holds(store: Store) -> None:
    push(store, "picky", [1, 1, 2, 2], counts=[2**32 - 1, 2**32 - 1, 0, 1])
    assert there(store, "picky", [1, 2]) == [1]


def test_an_entry_that_stands_for_no_occurrence_admits_nobody(store: Store) -> None:
    for _ in range(5):
        push(store, "picky", [5, 6], counts=np.array([0, 1], np.uint32))
    assert there(store, "picky", [5, 6]) == [6]
    push(store, "plain", [5], counts=np.array([0], np.uint32))
    assert there(store, "plain", [5]) == [5], "without admission it has a row like any other"


@pytest.mark.parametrize("table", ["picky", "lucky"])
def test_the_same_stream_admits_the_same_ids_at_the_same_event_everywhere(store: Store, table: str) -> None:
    rng, rule = np.random.default_rng(5), {"picky": PICKY, "lucky": LUCKY}[table].admission
    seen: Counter[int] = Counter()
    for _ in range(25):
        ids = rng.zipf(1.3, 60) % 400
        counts = rng.integers(0, 3, 60).astype(np.uint32)
        push(store, table, ids, counts=counts)
        for key, count in zip(ids.tolist(), counts.tolist(), strict=True):
            seen[key] += count
        everyone = sorted(seen)
        assert there(store, table, everyone) == [key for key in everyone if seen[key] >= needed(rule, key)]


def test_an_assigned_row_needs_no_admission(store: Store) -> None:
    push(store, "picky", [1])
    store.assign("picky", [1, 2], np.ones((2, 2)))
    assert there(store, "picky", [1, 2]) == [1, 2]
    assert store.delete("picky", [1, 2]) == 2
    push(store, "picky", [1, 1])
    assert there(store, "picky", [1, 2]) == [], "and is counted from the beginning when it is gone"


# -- expiry


def test_an_expired_row_is_a_miss_at_once_and_starts_afresh_when_pushed(store: Store) -> None:
    old, live = OF_ONE_CHUNK[:2]
    push(store, "brief", [old], NOW_MS - 3 * DAY_MS)
    push(store, "brief", [old], NOW_MS - 2 * DAY_MS)
    assert updates(store, "brief", old) == 2
    push(store, "brief", [live], NOW_MS - 5000)
    assert there(store, "brief", [old, live]) == [live]
    assert not store.pull({"brief": [old]})["brief"].any()
    assert [ids.tolist() for ids, _ in store.scan("brief")] == [[live]]
    assert store.delete("brief", [old]) == 0
    push(store, "brief", [old], NOW_MS)
    rows = store.pull({"brief": [old]}, meta=True)["brief"]
    assert (rows.embeddings[0, 0], rows.updates[0], rows.first_seen_s[0]) == (-1, 1, NOW_MS // 1000)


def test_a_row_lives_exactly_its_time_and_at_most_a_second_more(store: Store) -> None:
    row, other = OF_ONE_CHUNK[:2]
    at_ms = NOW_MS - 5 * DAY_MS
    push(store, "brief", [row], at_ms)
    push(store, "brief", [other], at_ms + DAY_MS)
    assert there(store, "brief", [row]) == [row]
    push(store, "brief", [other], at_ms + DAY_MS + 1000)
    assert there(store, "brief", [row]) == []


def test_only_pushes_and_assigns_keep_a_row_alive(store: Store) -> None:
    pulled, pushed, assigned, other = OF_ONE_CHUNK[:4]
    push(store, "brief", [pulled, pushed, assigned], NOW_MS - 2 * DAY_MS)
    store.pull({"brief": [pulled]}, meta=True)
    half = NOW_MS - DAY_MS // 2 - DAY_MS
    push(store, "brief", [pushed], half)
    store.assign("brief", [assigned], np.ones((1, 2)), event_time_ms=half)
    push(store, "brief", [other], half + DAY_MS)
    assert there(store, "brief", OF_ONE_CHUNK[:4]) == [pushed, assigned, other]


def test_an_event_from_the_future_expires_nothing(store: Store) -> None:
    row, other = OF_ONE_CHUNK[:2]
    push(store, "brief", [row], NOW_MS)
    push(store, "brief", [other], NOW_MS + 1000 * DAY_MS)
    store.sweep()
    assert there(store, "brief", [row, other]) == [row, other]


def test_a_stopped_stream_expires_nothing(store: Store) -> None:
    ids = list(range(100))
    push(store, "brief", ids, NOW_MS - 400 * DAY_MS)
    push(store, "brief", ids)
    assert store.sweep("brief")["brief"].rows_expired == 0
    assert there(store, "brief", ids) == ids


def test_a_clock_that_goes_back_is_harmless(store: Store) -> None:
    new, old = OF_ONE_CHUNK[:2]
    push(store, "brief", [new], NOW_MS)
    push(store, "brief", [new], NOW_MS - 30 * DAY_MS)
    assert store.pull({"brief": [new]}, meta=True)["brief"].last_seen_s[0] == NOW_MS // 1000
    push(store, "brief", [old], NOW_MS - DAY_MS // 2)
    assert there(store, "brief", [new, old]) == [new, old]


# -- sweeps


def test_a_sweep_takes_what_expired_everywhere(store: Store) -> None:
    old, late = list(range(200)), list(range(1000, 1040))
    push(store, "brief", old, NOW_MS - 3 * DAY_MS)
    push(store, "plain", old, NOW_MS - 3 * DAY_MS)
    push(store, "brief", late, NOW_MS)
    swept = store.sweep()
    assert set(swept) == {"plain", "picky", "lucky", "brief", "small"}
    assert all(result.complete for result in swept.values())
    assert (there(store, "brief", old), there(store, "brief", late)) == ([], late)
    stats = store.stats().tables
    assert (stats["brief"].rows, stats["brief"].expired_rows) == (40, 200)
    assert (stats["plain"].rows, stats["plain"].expired_rows) == (200, 0)


def test_chunks_without_events_expire_with_a_sweep(store: Store) -> None:
    late = [next(key for key in range(5000, 9000) if chunk_of(key, CHUNKS) == at) for at in (1, CHUNKS - 1)]
    push(store, "brief", list(range(100)), NOW_MS - 3 * DAY_MS)
    push(store, "brief", late, NOW_MS)
    store.sweep("brief")
    assert there(store, "brief", list(range(100)) + late) == late
    assert store.stats().tables["brief"].rows == len(late)


def test_a_dry_run_counts_and_changes_nothing(store: Store) -> None:
    # Without a limit, no sweep rides on a push: what is expired stays until it is looked for.
    store.create_table(replace(PLAIN, name="quiet"))
    ids = list(range(100))
    push(store, "quiet", ids, NOW_MS - 3 * DAY_MS)
    push(store, "quiet", OF_ONE_CHUNK[-1:], NOW_MS)
    store.alter_table(replace(BRIEF, name="quiet"))
    before = there(store, "quiet", ids)
    assert len(before) > 70, "most chunks have not met the late event"
    expected = store.sweep("quiet", dry_run=True)["quiet"].rows_expired
    assert store.sweep("quiet", dry_run=True)["quiet"].rows_expired == expected
    assert there(store, "quiet", ids) == before
    assert store.stats().tables["quiet"].rows == 101
    assert store.sweep("quiet")["quiet"].rows_expired == expected
    assert store.stats().tables["quiet"].rows == 101 - expected


def test_sweeps_with_a_budget_come_round_in_the_end(store: Store) -> None:
    push(store, "brief", list(range(500)), NOW_MS - 3 * DAY_MS)
    push(store, "brief", list(range(500, 600)), NOW_MS)
    for _ in range(10_000):
        result = store.sweep("brief", budget_ms=0.01)["brief"]
        if result.complete and store.stats().tables["brief"].rows == 100:
            break
    assert store.stats().tables["brief"].rows == 100


def test_a_bad_sweep_is_refused_by_name(store: Store) -> None:
    for bad in (0, -1.0, float("nan"), float("inf"), "5", True):
        with pytest.raises(es.InvalidArgumentError) as caught:
            store.sweep(budget_ms=bad)  # type: ignore[arg-type]
        assert caught.value.field == "budget_ms"
    refused("dry_run", lambda: store.sweep(dry_run=1))  # type: ignore[arg-type]
    with pytest.raises(es.TableNotFoundError):
        store.sweep("nowhere")


# -- capacity


def test_the_least_recently_seen_rows_make_room(store: Store) -> None:
    ids = OF_ONE_CHUNK[:6]
    for place, key in enumerate(ids[:4]):
        push(store, "small", [key], NOW_MS - (10 - place) * 1000)
    push(store, "small", ids[:1], NOW_MS - 5000)
    push(store, "small", ids[4:5], NOW_MS - 4000)
    assert there(store, "small", ids) == [ids[0], ids[2], ids[3], ids[4]]
    store.assign("small", ids[5:6], np.ones((1, 2)), event_time_ms=NOW_MS)
    assert there(store, "small", ids) == [ids[0], ids[3], ids[4], ids[5]]
    assert store.stats().tables["small"].evicted_rows == 2


def test_a_table_never_has_more_rows_than_it_may(store: Store) -> None:
    store.create_table(replace(PLAIN, name="bytes", bytes_max=3 * CHUNKS * row_bytes(PLAIN) + 5))
    for begin in range(0, 1000, 100):
        push(store, "small", range(begin, begin + 100), NOW_MS)
        push(store, "bytes", range(begin, begin + 100), NOW_MS)
        stats = store.stats().tables
        assert (stats["small"].rows, stats["bytes"].rows) == (4 * CHUNKS, 3 * CHUNKS)
    assert store.stats().tables["small"].evicted_rows == 1000 - 4 * CHUNKS


# -- changing the rules


def test_a_shorter_time_to_live_shows_at_once(store: Store) -> None:
    row, other = OF_ONE_CHUNK[:2]
    push(store, "brief", [row], NOW_MS - DAY_MS // 2)
    push(store, "brief", [other], NOW_MS)
    store.alter_table(replace(BRIEF, ttl_s=3600.0))
    assert there(store, "brief", [row, other]) == [other]
    assert store.tables()["brief"].ttl_s == 3600.0


def test_a_lower_capacity_is_kept_from_the_next_write_or_sweep_on(store: Store) -> None:
    ids = OF_ONE_CHUNK[:4]
    for place, key in enumerate(ids):
        push(store, "small", [key], NOW_MS - 10_000 + place * 1000)
    store.alter_table(replace(SMALL, rows_max=2 * CHUNKS))
    store.sweep("small")
    assert there(store, "small", ids) == ids[2:]
    store.alter_table(replace(SMALL, rows_max=None))
    push(store, "small", ids, NOW_MS)
    assert there(store, "small", ids) == ids


def test_the_longest_time_to_live_is_for_ever(store: Store) -> None:
    store.alter_table(replace(BRIEF, ttl_s=1.7e308))
    push(store, "brief", [1], 0)
    push(store, "brief", [2], NOW_MS)
    store.sweep("brief")
    assert there(store, "brief", [1, 2]) == [1, 2]


def test_what_cannot_be_is_refused_by_name_and_changes_nothing(store: Store) -> None:
    refused("TableSpec.rows_max", lambda: replace(PLAIN, rows_max=CHUNKS - 1))
    refused("TableSpec.ttl_s", lambda: replace(PLAIN, ttl_s=0.0))
    refused("TableSpec.ttl_s", lambda: replace(PLAIN, ttl_s=10**400))
    refused("Probability.p", lambda: es.Probability(10**400))
    tiny = CHUNKS * row_bytes(PLAIN) - 1
    refused("TableSpec.bytes_max", lambda: store.create_table(replace(PLAIN, name="new", bytes_max=tiny)))
    assert "new" not in store.tables()
    refused("TableSpec.bytes_max", lambda: store.alter_table(replace(PLAIN, bytes_max=tiny)))
    assert store.tables()["plain"] == PLAIN
    ragged: Any = [[1], [2, 3]]
    refused("plain.counts", lambda: push(store, "plain", [1, 2], counts=ragged))
    refused("plain.event_times_ms", lambda: push(store, "plain", [1, 2], event_times_ms=ragged))
    refused("plain.lr", lambda: push(store, "plain", [1, 2], lr=10**400))
    refused("plain.lr", lambda: push(store, "plain", [1, 2], lr=1e39))
    assert not store.contains("plain", [1, 2]).any()
    assert store.create_table(replace(PLAIN, name="new", bytes_max=tiny + 1))
