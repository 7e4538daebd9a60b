"""The online trainer over an embedded store: it learns, and whatever stops it costs neither events nor scores."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving_shards import MovingShards
from processes import Process, free_port
from scraping import check_told, families
from stores import STORE_FACTORIES

import embedstore as es
from embedstore.errors import StaleGenerationError, StreamPositionError, UnavailableError
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard
from trainer.config import Settings, load_settings
from trainer.cut import read_cut
from trainer.events import EventBatch
from trainer.exposition import Exposition
from trainer.history import Window
from trainer.learner import Learner, Plan
from trainer.online import Trainer
from trainer.patience import Clock
from trainer.sources import open_source

ITEMS = 120
USERS = 40
EVENTS = 2000
BATCH = 32
START_MS = 1_700_000_000_000


def write_events(path: Path, count: int = EVENTS, seed: int = 11) -> Path:
    """Users who mostly go on to a fixed successor of their last item; a session is about ten events long."""
    rng = np.random.default_rng(seed)
    successor = rng.permutation(ITEMS)
    latest = rng.integers(0, ITEMS, USERS)
    session = np.arange(USERS) + 1
    with path.open("w") as file:
        for i in range(count):
            user = int(rng.integers(0, USERS))
            opens = rng.random() < 0.1
            session[user] += USERS if opens else 0
            latest[user] = rng.integers(0, ITEMS) if rng.random() < 0.2 else successor[latest[user]]
            event = {
                "user_id": user,
                "item_id": int(latest[user]) + 1,
                "action": "click" if i % 3 else "view",
                "surface": "home",
                "event_time_ms": START_MS + 1000 * i,
                "session_id": int(session[user]),
            }
            file.write(json.dumps(event) + "\n")
    return path


def expected_tests(path: Path) -> int:
    """Events that are not the first of their session."""
    sessions = [json.loads(line)["session_id"] for line in path.read_text().splitlines()]
    return len(sessions) - len(set(sessions))


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("events") / "events.jsonl")


@pytest.fixture
def settings() -> Settings:
    return load_settings(
        model={"dim": 16, "layers": 1, "heads": 2, "length": 4},
        train={"batch_events": BATCH, "head_negatives": 60, "tail_negatives": 40, "dense_lr": 3e-3},
        tables={"num_chunks": 8, "lr": 0.3},
        run={"cut_interval_s": 3600.0, "retry_max_s": 0.1, "threads": 1},
    )


class Runs:
    """Trainers over one event file, store directory and state directory, one after the other."""

    def __init__(self, settings: Settings, events: Path, directory: Path) -> None:
        self.settings, self.events, self.directory = settings, events, directory
        self.losses: list[float] = []

    def open_store(self) -> es.Store:
        return es.open(self.directory / "store", tables=self.settings.table_specs())

    def trainer(self, store: es.Store, **options: Any) -> Trainer:
        options.setdefault("state_dir", self.directory / "state")
        trainer = Trainer(self.settings, store, open_source(str(self.events)), durable_store=True, **options)
        learnt = trainer.metrics.learnt

        def record(loss: float) -> None:
            self.losses.append(loss)
            learnt(loss)

        trainer.metrics.learnt = record  # type: ignore[method-assign]
        return trainer

    def run(self, max_events: int | None = None, **options: Any) -> dict[str, Any]:
        store = self.open_store()
        try:
            return self.train(store, max_events, **options)
        finally:
            store.close()

    def train(self, store: es.Store, max_events: int | None = None, **options: Any) -> dict[str, Any]:
        trainer = self.trainer(store, **options)
        try:
            return trainer.run(max_events)
        finally:
            trainer.close()

    def rows(self) -> dict[str, dict[int, tuple[bytes, int]]]:
        """Every row of every table: embedding and number of updates."""
        store = self.open_store()
        try:
            return {
                table: {
                    int(key): (rows.embeddings[i].tobytes(), int(rows.updates[i]))
                    for ids, rows in store.scan(table)
                    for i, key in enumerate(ids)
                }
                for table in store.tables()
            }
        finally:
            store.close()

    def watermarks(self) -> dict[str, tuple[int, ...]]:
        store = self.open_store()
        try:
            return {stream: state.watermarks for stream, state in store.watermarks().items() if "client/" not in stream}
        finally:
            store.close()


@pytest.fixture
def make_runs(settings: Settings, events: Path, tmp_path: Path) -> Callable[..., Runs]:
    def make(name: str) -> Runs:
        (tmp_path / name).mkdir()
        return Runs(settings, events, tmp_path / name)

    return make


class Wrapped:
    """A store whose pushes a test looks at, refuses or reverts."""

    def __init__(self, store: Any, before_push: Callable[[Wrapped, int], None]) -> None:
        self.store = store
        self._before_push = before_push
        self.pushes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def push(self, tables: Mapping[str, Any], *, origins: Sequence[es.Origin] = (), **options: Any) -> es.PushResult:
        self.pushes += 1
        self._before_push(self, self.pushes)
        result: es.PushResult = self.store.push(tables, origins=origins, **options)
        return result


def popularity_hit_rate(path: Path) -> float:
    """HR@10 of the ten most met items so far, at every event: what a trainer without a model would reach."""
    counts = np.zeros(ITEMS + 1)
    hits = 0
    items = [json.loads(line)["item_id"] for line in path.read_text().splitlines()]
    for item in items:
        hits += int(counts[item] > 0 and (counts > counts[item]).sum() < 10)
        counts[item] += 1
    return hits / len(items)


def test_it_learns_what_follows_what_far_above_popularity(settings: Settings, tmp_path: Path) -> None:
    path = write_events(tmp_path / "long.jsonl", 5000)
    runs = Runs(settings, path, tmp_path)
    reports: list[dict[str, Any]] = []
    store = runs.open_store()
    result = runs.train(store, on_report=reports.append)
    store.close()
    assert result["events"] == result["run_events"] == 5000
    assert result["tests"] == expected_tests(path)
    assert result["window_hr_at_10"] > 3 * popularity_hit_rate(path)
    assert result["window_hr_at_10"] > 0.25
    assert result["window_mrr_at_10"] > 0.12
    assert reports[-1]["lag_records"] == 0
    assert json.dumps(reports[-1])


def test_the_same_seed_gives_the_same_losses_scores_and_rows(make_runs: Callable[..., Runs]) -> None:
    first, second = make_runs("one"), make_runs("two")
    results = [runs.run() for runs in (first, second)]
    assert first.losses == second.losses
    assert first.rows() == second.rows()
    for name in ("events", "tests", "hr_at_10", "mrr_at_10"):
        assert results[0][name] == results[1][name]


def test_a_restart_goes_on_as_if_there_had_been_none(make_runs: Callable[..., Runs]) -> None:
    whole, parted = make_runs("whole"), make_runs("parted")
    expected = whole.run()
    stream = next(iter(whole.watermarks()))
    first = parted.run(max_events=BATCH * 20)
    assert first["events"] == BATCH * 20
    assert parted.watermarks() == {stream: (BATCH * 20,)}
    result = parted.run()
    assert result["replayed_events"] == 0
    assert result["run_events"] == EVENTS - BATCH * 20
    for name in ("tests", "steps"):
        assert result[f"run_{name}"] == expected[name] - first[name] > 0
    assert parted.watermarks() == whole.watermarks() == {stream: (EVENTS,)}
    assert parted.losses == whole.losses
    assert parted.rows() == whole.rows()
    for name in ("events", "tests", "hr_at_10", "mrr_at_10", "steps"):
        assert result[name] == expected[name]


def test_a_finished_stream_gives_the_same_summary_again(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs("again")
    first, rows = runs.run(), runs.rows()
    second = runs.run()
    assert second["run_events"] == 0
    assert (second["events"], second["tests"], second["hr_at_10"]) == (
        first["events"],
        first["tests"],
        first["hr_at_10"],
    )
    assert runs.rows() == rows


def record_windows(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[list[int]]]:
    """What every event saw, each time that it was read for learning: position to histories."""
    seen: dict[int, list[list[int]]] = {}
    plan = Learner.plan

    def record(self: Learner, batch: EventBatch, window: Window) -> Plan:
        for row, position in enumerate(batch.positions.tolist()):
            seen.setdefault(position, []).append(window.items[row, : int(window.lengths[row])].tolist())
        return plan(self, batch, window)

    monkeypatch.setattr(Learner, "plan", record)
    return seen


def test_a_store_that_comes_back_from_an_older_checkpoint_gets_what_it_lacks(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the store falls back, to before what was committed; scores and dense weights have each event once."""
    seen = record_windows(monkeypatch)
    runs, whole = make_runs("older"), make_runs("whole")
    runs.run(max_events=500)
    shutil.copytree(runs.directory / "store", runs.directory / "copy")
    runs.run(max_events=700)
    shutil.rmtree(runs.directory / "store")
    (runs.directory / "copy").rename(runs.directory / "store")
    assert list(runs.watermarks().values()) == [(500,)]
    result = runs.run()
    assert result["replayed_events"] == 700
    assert result["unscored"] == 0
    assert sorted(len(times) for times in seen.values()) == [1] * (EVENTS - 700) + [2] * 700
    assert all(first == again for first, *rest in seen.values() for again in rest)
    expected = whole.run()
    for name in ("events", "tests"):
        assert result[name] == expected[name]
    assert runs.watermarks() == whole.watermarks()
    assert runs.rows().keys() == whole.rows().keys()
    assert runs.rows()["items"].keys() == whole.rows()["items"].keys()


def test_a_gap_refusal_in_the_middle_of_a_run_rewinds_it(
    make_runs: Callable[..., Runs], caplog: pytest.LogCaptureFixture
) -> None:
    runs = make_runs("gap")
    copy = runs.directory / "copy"

    def fall_back(wrapped: Wrapped, pushes: int) -> None:
        if pushes == 10:
            wrapped.store.checkpoint()
            shutil.copytree(runs.directory / "store", copy, ignore=shutil.ignore_patterns("LOCK", "trainer"))
        if pushes == 30:
            wrapped.store.close()
            wrapped.store = es.open(copy, tables=runs.settings.table_specs())

    store = Wrapped(runs.open_store(), fall_back)
    with caplog.at_level(logging.INFO, "embedtrain"):
        result = runs.train(store)
    assert "reading again" in caplog.text
    (state,) = (state for name, state in store.watermarks().items() if "client/" not in name)
    store.store.close()
    assert state.watermarks == (EVENTS,)
    assert result["replayed_events"] == (30 - 10) * BATCH
    assert result["events"] == EVENTS
    assert result["tests"] == expected_tests(runs.events)


def test_a_killed_trainer_scores_no_event_twice_and_takes_in_every_one(make_runs: Callable[..., Runs]) -> None:
    """The state directory goes back to an older cut than the store's, as after a kill between push and cut."""
    runs, whole = make_runs("killed"), make_runs("whole")
    runs.run(max_events=BATCH * 10)
    shutil.copytree(runs.directory / "state", runs.directory / "older")
    runs.run(max_events=BATCH * 10)
    rows = runs.rows()
    shutil.rmtree(runs.directory / "state")
    (runs.directory / "older").rename(runs.directory / "state")
    assert runs.run(max_events=0)["replayed_events"] == BATCH * 10
    assert runs.rows() == rows
    result = runs.run()
    assert result["events"] == EVENTS
    assert result["tests"] + result["unscored"] == whole.run()["tests"]
    assert result["unscored"] > 0
    assert 0 < result["run_tests"] < result["tests"]
    exposition = Exposition()
    exposition.update(result)
    told = {family.name.removeprefix("embedtrain_"): family for family in exposition.collect()}
    for name in ("events", "tests", "steps", "unscored"):
        assert told[name].samples[0].value == result[f"run_{name}"], "a counter that goes back looks like a reset"


def test_a_lost_state_directory_costs_a_rereading_but_no_row(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs("lost")
    runs.run(max_events=BATCH * 30)
    rows = runs.rows()
    shutil.rmtree(runs.directory / "state")
    store = runs.open_store()
    trainer = runs.trainer(store)
    published = store.get_dense(runs.settings.run.dense_set)
    trainer.run(max_events=0)
    for name, value in trainer.learner.dense().items():
        np.testing.assert_array_equal(value, published.tensors[name])
    assert len(trainer.history) == USERS
    assert set(trainer.catalog.ids.tolist()) == rows["items"].keys()
    assert trainer.catalog.counts().sum() > BATCH
    trainer.close()
    store.close()
    assert runs.rows() == rows
    result = runs.run()
    assert runs.watermarks().popitem()[1] == (EVENTS,)
    assert result["events"] == EVENTS


def test_an_absent_store_is_waited_for(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs("absent")
    refused: list[int] = []

    def refuse(wrapped: Wrapped, pushes: int) -> None:
        if 5 <= pushes < 9:
            refused.append(pushes)
            raise UnavailableError("here:1", "gone for a moment")

    store = Wrapped(runs.open_store(), refuse)
    result = runs.train(store)
    store.store.close()
    assert refused == [5, 6, 7, 8]
    assert result["events"] == EVENTS
    assert result["tests"] == expected_tests(runs.events)


def test_stopping_while_the_store_is_away_loses_nothing(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs("stopping")

    def refuse(wrapped: Wrapped, pushes: int) -> None:
        if pushes >= 5:
            trainer.stop()
            raise UnavailableError("here:1", "gone for good")

    store = Wrapped(runs.open_store(), refuse)
    trainer = runs.trainer(store)
    assert trainer.run()["events"] == 4 * BATCH
    trainer.close()
    store.store.close()
    result = runs.run()
    assert result["events"] == EVENTS
    assert result["tests"] == expected_tests(runs.events)


def test_a_step_that_is_not_a_number_is_skipped_and_its_range_still_pushed(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs("nan")
    store = runs.open_store()
    trainer = runs.trainer(store)
    weights = trainer.learner.dense()

    def poison(wrapped: Wrapped, pushes: int) -> None:
        if pushes == 5:
            bad = {name: np.full_like(value, np.nan) for name, value in weights.items()}
            trainer.learner.load_dense(bad)
        if pushes == 6:
            trainer.learner.load_dense(weights)

    trainer.store = Wrapped(store, poison)
    result = trainer.run()
    trainer.close()
    store.close()
    assert result["skipped_steps"] == 1
    assert result["events"] == EVENTS
    assert runs.watermarks().popitem()[1] == (EVENTS,)


def test_a_replaced_trainer_stops_with_the_reason(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs("replaced")
    stream = next(iter(open_source(str(runs.events)).streams()))
    generations: dict[str, int] = {}

    class Writer(Wrapped):
        def open_stream(self, name: str, position: int) -> es.StreamState:
            state: es.StreamState = self.store.open_stream(name, position)
            generations[name] = state.generation
            return state

        def push(self, tables: Any, *, origins: Any = (), **options: Any) -> es.PushResult:
            self.pushes += 1
            if self.pushes == 7:
                self.store.open_stream(stream, 0)
            result: es.PushResult = self.store.push(tables, origins=origins, generations=generations, **options)
            return result

    store = Writer(runs.open_store(), lambda wrapped, pushes: None)
    with pytest.raises(StaleGenerationError, match="generation"):
        runs.train(store)
    store.store.close()
    assert runs.watermarks() == {stream: (6 * BATCH,)}


def test_a_log_that_ends_before_the_watermark_is_refused(make_runs: Callable[..., Runs], tmp_path: Path) -> None:
    runs = make_runs("short")
    stream = next(iter(open_source(str(runs.events)).streams()))
    store = runs.open_store()
    store.open_stream(stream, EVENTS + 10)
    with pytest.raises(StreamPositionError):
        runs.train(store)
    store.close()


def test_a_stream_is_left_only_when_the_store_has_all_of_it(settings: Settings, events: Path, tmp_path: Path) -> None:
    """A shard that is killed after the last push and comes back from an older checkpoint gets what it lost."""
    listen, data = f"127.0.0.1:{free_port()}", str(tmp_path / "shard")
    serving = ("--listen", listen, "--shard", "0/1", "--data", data, "--checkpoint-interval-s", "3600")
    shards = [Process(*serving)]
    source = open_source(str(events))

    class Ending:
        """The source; when it ends, the shard is killed and started again."""

        def __getattr__(self, name: str) -> Any:
            return getattr(source, name)

        def poll(self, *args: Any, **options: Any) -> EventBatch | None:
            batch = source.poll(*args, **options)
            if batch is None and len(shards) == 1:
                shards[0].kill()
                shards.append(Process(*serving))
            return batch

    store = es.connect(shards[0].address, retry_s=60.0)
    try:
        for spec in settings.table_specs():
            store.create_table(spec)
        trainer = Trainer(settings, store, Ending(), state_dir=tmp_path / "state", durable_store=False)
        result = trainer.run()
        trainer.close()
        [state] = store.watermarks().values()
        assert (state.applied, state.durable) == (EVENTS, EVENTS)
        assert (result["events"], result["replayed_events"]) == (EVENTS, EVENTS)
        assert store.stats().tables["items"].rows == ITEMS
    finally:
        store.close()
        for shard in shards:
            shard.__exit__(None, None, None)


def test_told_to_stop_while_a_shard_is_away_it_leaves_with_its_own_state(
    settings: Settings, events: Path, tmp_path: Path
) -> None:
    shard = Shard(ShardOptions("127.0.0.1:0", tables=settings.table_specs()))
    shard.start()
    store = es.connect(shard.address, timeout_s=1.0, retry_s=1.0)

    def leave(wrapped: Wrapped, pushes: int) -> None:
        if pushes == 5:
            shard.stop()
            trainer.stop()

    trainer = Trainer(
        settings,
        Wrapped(store, leave),
        open_source(str(events)),
        state_dir=tmp_path,
        durable_store=False,
    )
    started = time.monotonic()
    result = trainer.run()
    assert time.monotonic() - started < 30, "not as long as a checkpoint may take"
    trainer.close()
    store.close()
    assert result["events"] == 4 * BATCH
    assert list(result["positions"].values()) == [4 * BATCH]
    cut = read_cut(tmp_path)
    assert cut is not None
    assert list(cut.positions.values()) == [4 * BATCH]


def test_sigterm_ends_a_run_with_a_cut_and_the_next_one_finishes_it(settings: Settings, tmp_path: Path) -> None:
    path = write_events(tmp_path / "events.jsonl", 3000)
    config = tmp_path / "c.toml"
    config.write_text(
        "[model]\ndim = 16\nlayers = 1\nlength = 4\n[train]\nbatch_events = 32\n"
        "[run]\nreport_interval_s = 0.01\nthreads = 1\n[tables]\nnum_chunks = 8\n"
    )
    options = {"events": path, "store": tmp_path / "store", "config": config, "summary": tmp_path / "s.json"}
    options["metrics"] = tmp_path / "m.jsonl"
    command = [sys.executable, "-c", "from trainer.cli import main; main()", "stream"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    metrics_at = f"127.0.0.1:{free_port()}"
    run = subprocess.Popen(
        [*command, "--metrics-listen", metrics_at],
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_first_report(tmp_path / "m.jsonl", run)
        check_metrics(metrics_at)
        run.send_signal(signal.SIGTERM)
        output, problems = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0, problems
    stopped = json.loads((tmp_path / "s.json").read_text())
    assert 0 < stopped["events"] < 3000
    assert "HR@10" in output
    subprocess.run(command, env=os.environ, check=True, timeout=100, capture_output=True)
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["events"] == 3000
    assert summary["replayed_events"] == 0
    assert summary["tests"] == expected_tests(path)
    assert summary["rows"] == ITEMS
    exposition = Exposition()
    exposition.update(summary)
    told = {family.name: family for family in exposition.collect()}
    assert told.keys() == listed_metrics()
    check_told(told, "embedtrain_")
    assert {"events_per_s", "hr_at_10", "mrr_at_10"} <= summary.keys()


def check_metrics(address: str) -> None:
    """The trainer tells Prometheus what the manual says."""
    found = families(address)
    check_told(found, "embedtrain_")
    check_told(found, "embedstore_")
    assert found["embedtrain_events"].samples[0].value > 0
    [count] = [s.value for s in found["embedtrain_event_to_trained_seconds"].samples if s.name.endswith("_count")]
    assert count > 0
    assert {name for name in found if name.startswith("embedtrain_")} <= listed_metrics()


def listed_metrics() -> set[str]:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    return {name.removesuffix("_total") for name in re.findall(r"`(embedtrain_[a-z0-9_]+)", manual)}


def wait_for_first_report(path: Path, run: subprocess.Popen[str]) -> None:
    """The file is watched, not slept for: each turn waits for the process to end or a short while to pass."""
    while not (path.exists() and path.stat().st_size):
        try:
            run.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"ended early: {run.communicate()}")


def test_the_clock_is_a_parameter(make_runs: Callable[..., Runs]) -> None:
    ticks = iter(range(10**9))
    clock = Clock(wall_ms=lambda: START_MS + 7_000, monotonic_s=lambda: float(next(ticks)))
    reports: list[dict[str, Any]] = []
    make_runs("clock").run(max_events=BATCH * 3, clock=clock, on_report=reports.append)
    assert {report["time_ms"] for report in reports} == {START_MS + 7_000}
    assert reports[-1]["lag_s"] == pytest.approx(7.0 - (BATCH * 3 - 1))
    assert reports[-1]["lag_records"] == EVENTS - BATCH * 3


def test_two_shards_over_grpc_give_what_the_embedded_store_gives(make_runs: Callable[..., Runs]) -> None:
    local, remote = make_runs("local"), make_runs("remote")
    expected = local.run()
    with STORE_FACTORIES["remote-2"](remote.directory, remote.settings.table_specs()) as handle:
        result = remote.train(handle.store)
        (state,) = (state for name, state in handle.store.watermarks().items() if "client/" not in name)
        rows = {int(key) for ids, _ in handle.store.scan("items") for key in ids}
    assert state.durable == EVENTS
    assert rows == local.rows()["items"].keys()
    assert result["tests"] == expected["tests"]
    assert result["hr_at_10"] == pytest.approx(expected["hr_at_10"], abs=0.01)
    np.testing.assert_allclose(remote.losses, local.losses, rtol=1e-3)


def test_a_run_goes_over_to_other_shards_one_of_them_older_and_to_another_number(
    make_runs: Callable[..., Runs], caplog: pytest.LogCaptureFixture
) -> None:
    runs = make_runs("moves")
    copy = runs.directory / "copy"
    with (
        MovingShards(runs.directory, tables=runs.settings.table_specs()) as shards,
        es.connect(shards.addresses, timeout_s=5.0) as remote,
    ):

        def change(wrapped: Wrapped, pushes: int) -> None:
            if pushes == 10:
                wrapped.store.checkpoint()
                shutil.copytree(shards.data(1), copy, ignore=shutil.ignore_patterns("LOCK"))
            elif pushes == 20:
                shards.move(0)
            elif pushes == 30:
                shards.move(1, data=copy)
            elif pushes in (60, 70):
                shards.reshard(3 if pushes == 60 else 1)

        with caplog.at_level(logging.INFO, "embedtrain"):
            result = runs.train(Wrapped(remote, change))
        states = {name: state for name, state in remote.watermarks().items() if "client/" not in name}
        assert remote.topology == shards.record
        known = {int(key) for ids, _ in remote.scan("items") for key in ids}
    assert "reading again" in caplog.text
    assert [state.watermarks for state in states.values()] == [(EVENTS,)]
    assert result["replayed_events"] == (30 - 9) * BATCH, "the other shard took the push that one refused"
    assert (result["events"], result["tests"] + result["unscored"]) == (EVENTS, expected_tests(runs.events))
    assert result["unscored"] <= BATCH, "that push alone"
    assert known == {json.loads(line)["item_id"] for line in runs.events.read_text().splitlines()}
