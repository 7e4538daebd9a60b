"""tensorflow-recommenders-addons: a dynamic embedding table on the CPU, one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from itertools import count
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.harness import Figures, Settings, per_row

Run = Callable[[int], Figures]


def prepare(task: str, settings: Settings) -> Mapping[str, Run]:
    """The contenders of a task by name. By wall time alone: TensorFlow's kernels run in threads of its own."""
    settings = replace(settings, cpu_time=False)
    tf: Any = import_module("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    addons: Any = import_module("tensorflow_recommenders_addons")
    peer = _Peer(tf, addons.dynamic_embedding, settings)
    if task == "insert":
        return {"TFRA upsert": peer.insert}
    if task == "pull":
        peer.fill()
        return {"TFRA lookup": peer.lookup}
    peer.fill()
    return {"TFRA lookup + Adagrad": peer.train()}


class _Peer:
    """One table; ``tf`` and ``de`` are the libraries' modules, which have no types."""

    def __init__(self, tf: Any, de: Any, settings: Settings) -> None:
        self._tf, self._de, self._settings = tf, de, settings
        self._numbers = count()
        self._rows = data.some_rows(settings, settings.batch)
        self._table: Any = self._new_table()

    def _new_table(self) -> Any:
        return self._de.get_variable(
            f"rows{next(self._numbers)}",
            key_dtype=self._tf.int64,
            value_dtype=self._tf.float32,
            dim=self._settings.dim,
            devices=["/CPU:0"],
            initializer=0.0,
            init_size=8,
        )

    def _ids(self, ids: np.ndarray) -> Any:
        return self._tf.constant(ids.view(np.int64))

    def fill(self) -> None:
        for ids in data.new_ids(self._settings):
            self._table.upsert(self._ids(ids), self._tf.constant(self._rows[: len(ids)]))

    def insert(self, number: int) -> Figures:
        settings, table = self._settings, self._new_table()
        seconds = []
        for ids in data.new_ids(settings):
            new, values = self._ids(ids), self._tf.constant(self._rows[: len(ids)])
            begin_s = settings.now_s()
            table.upsert(new, values)
            seconds.append(settings.now_s() - begin_s)
        return {"ns/row": sum(seconds) / settings.rows * 1e9, "worst batch ms": max(seconds) * 1e3}

    def lookup(self, number: int) -> Figures:
        batches = data.uniform_batches(self._settings, number)
        return self._timed(self._table.lookup, batches)

    def train(self) -> Run:
        tf, de = self._tf, self._de
        shadow = de.shadow_ops.ShadowVariable(self._table, name="trained", trainable=True)
        optimizer = de.DynamicEmbeddingOptimizer(tf.keras.optimizers.legacy.Adagrad(data.LR))
        grads = tf.constant(self._rows)

        @tf.function  # type: ignore[untyped-decorator]
        def step(ids: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(de.shadow_ops.embedding_lookup(shadow, ids) * grads)
            optimizer.apply_gradients(zip(tape.gradient(loss, [shadow]), [shadow], strict=True))

        return lambda number: self._timed(step, data.distinct_batches(self._settings, number))

    def _timed(self, call: Callable[[Any], object], batches: list[np.ndarray]) -> Figures:
        wanted = [self._ids(data.ids_of(self._settings, numbers)) for numbers in batches]
        return {"ns/row": per_row(self._settings, call, wanted)["ns/row"]}
