"""A cut is the old one or the new one, and damage is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.errors import CheckpointFailedError, CorruptCheckpointError, StreamPositionError
from embedstore.interface import Origin, StreamState
from trainer.cut import Cut, decode_cut, encode_cut, read_cut, write_cut
from trainer.positions import Replay, check_forgotten, check_log, committable, replays


def a_cut(value: int) -> Cut:
    arrays: dict[str, np.ndarray] = {
        "a/float": np.full((3, 2), value, np.float32),
        "b": np.array(value, np.float32),
        "c": np.arange(value, dtype=np.uint64),
        "d": np.zeros((0, 4), np.int64),
        "e": np.array([True, False]),
    }
    return Cut({"file/x/0": value}, arrays, {"n": value, "state": {"big": 2**127}})


def equal(left: Cut, right: Cut) -> bool:
    return (
        left.positions == right.positions
        and left.values == right.values
        and left.arrays.keys() == right.arrays.keys()
        and all(
            np.array_equal(left.arrays[k], right.arrays[k]) and left.arrays[k].dtype == right.arrays[k].dtype
            for k in left.arrays
        )
    )


def test_a_cut_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_cut(tmp_path) is None
    write_cut(tmp_path / "state", a_cut(5))
    write_cut(tmp_path / "state", a_cut(6))
    back = read_cut(tmp_path / "state")
    assert back is not None
    assert equal(back, a_cut(6))
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["cut"]


@given(flip=st.integers(0, 10_000), bit=st.integers(0, 7), keep=st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_and_any_lost_tail_is_refused(flip: int, bit: int, keep: int) -> None:
    data = bytearray(encode_cut(a_cut(5)))
    data[flip % len(data)] ^= 1 << bit
    with pytest.raises(CorruptCheckpointError):
        decode_cut(bytes(data), "cut")
    whole = encode_cut(a_cut(5))
    with pytest.raises(CorruptCheckpointError):
        decode_cut(whole[: keep % len(whole)], "cut")


_KILLED_WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import trainer.cut as module
from test_cut import a_cut
fatal = {"fsync": "fsync", "replace": None}[sys.argv[2]]
if fatal == "fsync":
    os.fsync = lambda handle: os._exit(9)
else:
    Path.replace = lambda self, target: os._exit(9)
module.write_cut(Path(sys.argv[1]), a_cut(7))
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_writer_killed_on_the_way_leaves_the_old_cut_and_the_next_one_succeeds(tmp_path: Path, moment: str) -> None:
    write_cut(tmp_path, a_cut(6))
    command = [sys.executable, "-c", _KILLED_WRITER, str(tmp_path), moment, str(Path(__file__).parent)]
    assert subprocess.run(command, env=os.environ, check=False, timeout=60).returncode == 9
    assert (tmp_path / "cut.tmp").exists()
    back = read_cut(tmp_path)
    assert back is not None
    assert equal(back, a_cut(6))
    write_cut(tmp_path, a_cut(8))
    again = read_cut(tmp_path)
    assert again is not None
    assert equal(again, a_cut(8))


def state(durable: int, *watermarks: int) -> StreamState:
    return StreamState(min(watermarks), durable, tuple(watermarks), 1)


def test_level_holders_have_nothing_to_replay() -> None:
    assert replays({"s": state(5, 9)}, {"s": 9}, {"s": 9}, {"s": 0}) == []


def test_a_replay_stops_at_every_holders_position() -> None:
    plan = replays({"s": state(0, 3, 7), "t": state(0, 4)}, {"s": 9, "t": 4}, {"s": 5, "t": 4}, {"s": 0, "t": 4})
    assert plan == [Replay("s", (3, 5, 7, 9))]
    assert plan[0].begin == 3
    assert plan[0].end == 9
    assert [plan[0].stop_after(at) for at in (3, 4, 5, 8)] == [5, 5, 7, 9]


def test_a_log_that_begins_above_a_holder_is_refused_and_names_the_gap() -> None:
    plan = replays({"s": state(0, 3, 7)}, {"s": 9}, {"s": 9}, {"s": 5})
    with pytest.raises(StreamPositionError, match=r"'s' at 3: the log begins at 5: \[3, 5\) is gone"):
        check_log(plan, {"s": 5}, {"s": 20})
    with pytest.raises(StreamPositionError, match="'s' at 9: the log ends at 8"):
        check_log(plan, {"s": 3}, {"s": 8}, accept_loss=True)


def test_an_accepted_loss_is_covered_by_empty_ranges_that_cross_nobodys_position() -> None:
    [replay] = replays({"s": state(0, 3, 4)}, {"s": 9}, {"s": 9}, {"s": 7})
    check_log([replay], {"s": 7}, {"s": 20}, accept_loss=True)
    assert list(replay.lost(7)) == [Origin("s", 3, 4), Origin("s", 4, 7)]
    assert replay.stop_after(7) == 9
    [replay] = replays({"s": state(0, 3)}, {"s": 3}, {"s": 3}, {"s": 5})
    assert (list(replay.lost(5)), replay.end) == ([Origin("s", 3, 5)], 5), "level holders lack it all the same"
    [replay] = replays({"s": state(0, 3)}, {"s": 6}, {"s": 6}, {"s": 2})
    assert list(replay.lost(2)) == []


def test_a_shard_that_forgot_a_trained_stream_is_refused_only_where_the_log_cannot_tell_it_again() -> None:
    with pytest.raises(StreamPositionError, match=r"forgotten.*begins at 4: \[0, 4\) is gone"):
        check_forgotten({"s": 4}, {}, {"s": 9})
    check_forgotten({"s": 0}, {}, {"s": 9})
    check_forgotten({"s": 4}, {"s": 9}, {"s": 9})
    check_forgotten({"s": 4}, {}, {})


def test_what_is_committed_is_in_the_cut_and_on_every_shards_disk() -> None:
    assert committable({"s": 9, "t": 4}, {"s": state(6, 9), "t": state(4, 9)}) == {"s": 6, "t": 4}


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointFailedError, match=str(tmp_path / "file")):
        write_cut(tmp_path / "file", a_cut(1))
