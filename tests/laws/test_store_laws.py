"""LocalStore with a directory is indistinguishable from the model under any sequence of calls, stops and crashes."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import crash, state
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from model_store import ModelStore

import embedstore as es
from embedstore.store import LocalStore

NOW_MS = 1_700_000_000_000
IDS = [0, 1, 2, 3, 5, 8, 2**63, 2**64 - 2, 2**64 - 1, 1 << 40]
SPECS = [
    es.TableSpec("adagrad", dim=3, optimizer=es.Adagrad(lr=0.5, initial_accumulator=0.1), num_chunks=4),
    es.TableSpec("adam", dim=2, optimizer=es.Adam(lr=0.25), init=es.Constant(0.5), on_miss="init", num_chunks=2),
    es.TableSpec("sgd", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=8),
    es.TableSpec(
        "ftrl", dim=3, optimizer=es.FTRL(lr=0.5, l1=0.25, clip_norm=1.0), init=es.Normal(0.5, 3), num_chunks=4
    ),
    es.TableSpec("rowwise", dim=17, optimizer=es.RowwiseAdagrad(lr=0.5, weight_decay=0.25), num_chunks=4),
    es.TableSpec("picky", dim=2, admission=es.MinCount(2), ttl_s=300_000.0, num_chunks=4),
    es.TableSpec("small", dim=1, admission=es.Probability(0.5, seed=2), rows_max=4, num_chunks=2),
]
LIMITS: list[dict[str, Any]] = [{}, {"ttl_s": 100_000.0}, {"rows_max": 9}, {"bytes_max": 700, "ttl_s": 900_000.0}]
FIRST = [spec for spec in SPECS if spec.name in ("adagrad", "adam", "picky")]
STREAMS = ["a", "b"]

ids = st.lists(st.sampled_from(IDS), max_size=6)
tables = st.sampled_from([spec.name for spec in SPECS])
times = st.one_of(st.none(), st.integers(NOW_MS - 10**9, NOW_MS + 10**9))
streams = st.sampled_from(STREAMS)


class Stores(RuleBasedStateMachine):
    """Both stores get every call, must answer alike or refuse with the same error, and hold the same state."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.lives = 0
        self.model = ModelStore(FIRST, clock_ms=lambda: NOW_MS)
        self.store = self.open(FIRST)

    @property
    def path(self) -> Path:
        return self.directory / str(self.lives)

    def open(self, specs: Any = ()) -> LocalStore:
        return LocalStore(self.path, specs, clock_ms=lambda: NOW_MS)

    def both(self, call: Any) -> Any:
        answers: list[Any] = []
        for store in (self.model, self.store):
            try:
                answers.append(call(store))
            except (es.EmbedstoreError, es.InvalidArgumentError) as problem:
                answers.append((type(problem), getattr(problem, "watermarks", None)))
        assert answers[0] == answers[1]
        return answers[1]

    def grads(self, name: str, keys: list[int], seed: int) -> np.ndarray:
        dim = next(spec.dim for spec in SPECS if spec.name == name)
        return np.random.default_rng(seed).normal(size=(len(keys), dim)).round(2).astype(np.float32)

    def pushes(self, keys: dict[str, list[int]], seed: int) -> dict[str, Any]:
        counts = np.random.default_rng(seed).integers(0, 3, 6)
        return {
            name: es.TablePush(np.array(k, np.uint64), self.grads(name, k, seed), counts=counts[: len(k)])
            for name, k in keys.items()
        }

    @initialize()
    def open_first(self) -> None:
        self.both(lambda store: store.open_stream("a", 10))

    @rule(keys=st.dictionaries(tables, ids, max_size=2), time=times, seed=st.integers(0, 99))
    def push(self, keys: dict[str, list[int]], time: int | None, seed: int) -> None:
        self.both(lambda store: store.push(self.pushes(keys, seed), event_time_ms=time))

    @rule(
        keys=st.dictionaries(tables, ids, max_size=2),
        time=times,
        seed=st.integers(0, 99),
        wanted=st.lists(streams, min_size=1, max_size=2, unique=True),
        length=st.integers(0, 5),
        shift=st.sampled_from([0, 0, 0, 0, -3, 2]),
        lowest=st.booleans(),
    )
    def push_with_origins(
        self,
        keys: dict[str, list[int]],
        time: int | None,
        seed: int,
        wanted: list[str],
        length: int,
        shift: int,
        lowest: bool,
    ) -> None:
        known = self.model.watermarks()
        origins = []
        for stream in wanted:
            at = known[stream].watermarks[0 if lowest else -1] if stream in known else 0
            begin = max(at + shift, 0)
            origins.append(es.Origin(stream, begin, begin + length))
        self.both(lambda store: store.push(self.pushes(keys, seed), origins=origins, event_time_ms=time))

    @rule(seed=st.integers(0, 99))
    def replay(self, seed: int) -> None:
        """Bring every stream level, as a trainer does: batches of one stream, cut at all watermarks."""
        for stream, standing in self.model.watermarks().items():
            for begin, end in zip(standing.watermarks, standing.watermarks[1:], strict=False):
                keys = {name: [seed % 7, begin % 5] for name in self.model.tables()}
                origins = [es.Origin(stream, begin, end)]
                self.both(
                    lambda store, keys=keys, origins=origins: store.push(self.pushes(keys, seed), origins=origins)
                )
            assert len(self.store.watermarks()[stream].watermarks) == 1

    @rule(name=tables, keys=ids, time=times, seed=st.integers(0, 99))
    def assign(self, name: str, keys: list[int], time: int | None, seed: int) -> None:
        rows = self.grads(name, keys, seed)
        self.both(lambda store: store.assign(name, np.array(keys, np.uint64), rows, event_time_ms=time))

    @rule(name=tables, keys=ids)
    def delete(self, name: str, keys: list[int]) -> None:
        self.both(lambda store: store.delete(name, np.array(keys, np.uint64)))

    @rule(stream=streams, position=st.integers(0, 30))
    def open_stream(self, stream: str, position: int) -> None:
        self.both(lambda store: store.open_stream(stream, position))

    @rule(spec=st.sampled_from(SPECS))
    def create(self, spec: es.TableSpec) -> None:
        self.both(lambda store: store.create_table(spec))

    @rule(spec=st.sampled_from(SPECS), lr=st.sampled_from([0.5, 1.0]), limits=st.sampled_from(LIMITS))
    def alter(self, spec: es.TableSpec, lr: float, limits: dict[str, Any]) -> None:
        changed = replace(spec.lasting(), optimizer=replace(spec.optimizer, lr=lr), **limits)
        self.both(lambda store: store.alter_table(changed))

    @rule(name=st.one_of(st.none(), tables), dry_run=st.booleans())
    def sweep(self, name: str | None, dry_run: bool) -> None:
        def expired(store: Any) -> dict[str, tuple[int, bool]]:
            swept = store.sweep(name, dry_run=dry_run)
            return {table: (result.rows_expired, result.complete) for table, result in swept.items()}

        self.both(expired)

    @rule(name=tables)
    def drop(self, name: str) -> None:
        self.both(lambda store: store.drop_table(name))

    @rule(position=st.dictionaries(streams, st.integers(0, 40)), value=st.integers(0, 9))
    def put_dense(self, position: dict[str, int], value: int) -> None:
        self.both(lambda store: store.put_dense("model", {"w": np.full(3, value)}, position))

    @rule()
    def checkpoint(self) -> None:
        self.model.checkpoint()
        self.store.checkpoint()

    @rule()
    def stop_and_start(self) -> None:
        self.model.reopen()
        self.store.close()
        self.store = self.open()

    @rule()
    def crash(self) -> None:
        old, self.lives = self.path, self.lives + 1
        crash(old, self.path)
        self.store.close()
        self.model.crash()
        self.store = self.open()

    @invariant()
    def same_state(self) -> None:
        ours, theirs = state(self.store), state(self.model)
        assert ours["specs"] == theirs["specs"]
        assert ours["streams"] == theirs["streams"]
        for name, rows in theirs["rows"].items():
            assert ours["rows"][name].keys() == rows.keys()
            for key, (embedding, *numbers) in rows.items():
                assert ours["rows"][name][key][1:] == tuple(numbers)
                np.testing.assert_allclose(ours["rows"][name][key][0], embedding, atol=1e-3, rtol=1e-3)

    @invariant()
    def same_pulls(self) -> None:
        for name in self.model.tables():
            wanted = {name: np.array(IDS, np.uint64)}
            np.testing.assert_allclose(
                self.store.pull(wanted)[name], self.model.pull(wanted)[name], atol=1e-3, rtol=1e-3
            )

    @invariant()
    def same_dense(self) -> None:
        def published(store: Any) -> Any:
            try:
                dense = store.get_dense("model")
            except es.DenseSetNotFoundError:
                return None
            return dense.tensors["w"].tolist(), dense.position, dense.version

        assert published(self.store) == published(self.model)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


Stores.TestCase.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestStores = Stores.TestCase
