"""What expires gives its memory back to the system, measured from outside the allocator in a process of its own.

``EMBEDSTORE_LIFE_ROWS`` makes it larger: 5000000 needs about 2 GB and two minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

ROWS = int(os.environ.get("EMBEDSTORE_LIFE_ROWS", "300000"))
ROUNDS = 20
COMMON = """
import json, sys
import numpy as np
import embedstore as es
from embedstore.store import LocalStore

DAY_MS, BATCH = 86_400_000, 8192
rows, clock_ms = int(sys.argv[1]), 1_700_000_000_000
# As many rows a chunk as in a table of millions: each chunk remembers up to 8192 removals.
num_chunks = max(4, 1 << (rows // 20_000).bit_length() - 1)
spec = es.TableSpec("items", dim=32, optimizer=es.Adagrad(lr=0.1), ttl_s=86_400.0, num_chunks=num_chunks)
store = LocalStore(None, [spec], clock_ms=lambda: clock_ms)
random = np.random.default_rng(1)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def push(ids, time_ms):
    grads = np.ones((BATCH, 32), np.float32)
    for begin in range(0, len(ids), BATCH):
        part = ids[begin : begin + BATCH]
        store.push({"items": (part, grads[: len(part)])}, event_time_ms=time_ms)

push(random.integers(0, 2**63, BATCH, dtype=np.uint64), 0)
clock_ms += 2 * DAY_MS
push(np.array([1], np.uint64), clock_ms)
store.sweep()
"""
FALL = """
empty = resident()
ids = random.integers(0, 2**63, rows, dtype=np.uint64)
push(ids, clock_ms)
full = resident()
kept = ids[::10]
clock_ms += DAY_MS * 3 // 4
push(kept, clock_ms)
clock_ms += DAY_MS // 2
push(kept[:1], clock_ms)
store.sweep()
left = resident()
found = np.concatenate([store.contains("items", part) for part in np.array_split(ids, rows // 100_000 + 1)])
assert found[::10].all() and found.sum() == len(kept)
print(json.dumps({"taken": full - empty, "fallen": full - left, "rows": store.stats().tables["items"].rows}))
"""
ROUND = """
sizes = []
for _ in range(int(sys.argv[2])):
    push(random.integers(0, 2**63, rows, dtype=np.uint64), clock_ms)
    sizes.append(resident())
    clock_ms += 2 * DAY_MS
    push(np.array([1], np.uint64), clock_ms)
    store.sweep()
print(json.dumps({"sizes": sizes, "rows": store.stats().tables["items"].rows}))
"""


def measure(script: str, *arguments: object) -> dict[str, int]:
    command = [sys.executable, "-c", COMMON + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(700)
def test_three_quarters_of_the_memory_come_back_when_nine_tenths_of_the_rows_expire() -> None:
    found = measure(FALL, ROWS)
    assert found["rows"] == len(range(0, ROWS, 10))
    assert found["taken"] > ROWS * 32 * 4 * 2
    assert found["fallen"] >= 0.75 * found["taken"], found


@pytest.mark.timeout(700)
def test_twenty_rounds_of_insert_and_expire_do_not_grow() -> None:
    found: dict[str, object] = dict(measure(ROUND, ROWS // 5, ROUNDS))
    sizes = found["sizes"]
    assert isinstance(sizes, list) and found["rows"] == 1
    assert max(sizes[5:]) <= 1.05 * max(sizes[:5]), sizes
