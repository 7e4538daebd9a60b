"""An export as a backup: a shard whose disk died comes back from it, and learns the rest from the streams."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import COUNTED, STREAM, counts, expected_counts, push_events, replay
from processes import Process, free_port, run

import embedstore as es


def test_a_shard_whose_disk_died_comes_back_from_an_export(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    peers = ",".join(f"127.0.0.1:{port}" for port in ports)
    data = [tmp_path / "0", tmp_path / "1"]
    export = tmp_path / "export"

    def start(shard: int) -> Process:
        return Process(
            *("--listen", f"127.0.0.1:{ports[shard]}", "--peers", peers, "--shard", f"{shard}/2"),
            *("--data", str(data[shard]), "--checkpoint-interval-s", "3600"),
        )

    with start(0), es.connect(peers) as store:
        with start(1) as lost:
            store.create_table(COUNTED)
            store.open_stream(STREAM, 0)
            push_events(store, 0, 50)
            assert run(["checkpoint", "create", "--servers", peers]).returncode == 0
            assert run(["checkpoint", "export", *map(str, data), "--to", str(export)]).returncode == 0
            generation = store.open_stream(STREAM, 0).generation
            store.open_stream("file/later/0", 3)
            push_events(store, 50, 120)
            lost.kill()
        shutil.rmtree(data[1])
        assert run(["checkpoint", "import", str(export), "--data", str(data[1]), "--shard", "1/2"]).returncode == 0
        with start(1):
            assert store.watermarks()[STREAM].watermarks == (50, 120)
            with pytest.raises(es.InvalidArgumentError, match="2 was never opened, the stream is at 1"):
                replay(store, 120)
            assert store.open_stream(STREAM, 0).generation == generation + 1
            replay(store, 120)
            np.testing.assert_array_equal(counts(store), expected_counts(120))
            assert store.watermarks()[STREAM].watermarks == (120,)
            assert store.open_stream("file/later/0", 3).watermarks == (3,)
            push_events(store, 120, 150)
            np.testing.assert_array_equal(counts(store), expected_counts(150))
