"""fbgemm-gpu-cpu: a table of known rows in a TBE, one id a bag (on CPUs its fastest form), one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.harness import Figures, Settings, per_row

OPTIMIZERS = {"pull": "EXACT_SGD", "push Adagrad": "EXACT_ADAGRAD", "push row-wise Adagrad": "EXACT_ROWWISE_ADAGRAD"}
NAMES = {"push Adagrad": "fused Adagrad", "push row-wise Adagrad": "fused row-wise"}


def prepare(task: str, settings: Settings) -> Mapping[str, Callable[[int], Figures]]:
    """The contenders of a task by name."""
    torch: Any = import_module("torch")
    torch.set_num_threads(1)
    table = _table(OPTIMIZERS[task], settings)
    offsets = torch.arange(settings.batch + 1)
    grads = torch.from_numpy(data.some_rows(settings, settings.batch))

    def tensors(batches: list[np.ndarray]) -> list[Any]:
        return [torch.from_numpy(numbers.view(np.int64)) for numbers in batches]

    def forward(number: int) -> Figures:
        with torch.no_grad():
            batches = tensors(data.uniform_batches(settings, number))
            return per_row(settings, lambda numbers: table(numbers, offsets), batches)

    def whole(number: int) -> Figures:
        batches = tensors(data.distinct_batches(settings, number))
        return per_row(settings, lambda numbers: table(numbers, offsets).backward(grads), batches)

    def backward(number: int) -> Figures:
        batches = tensors(data.distinct_batches(settings, number))
        taken = [_backward(settings, table, numbers, offsets, grads) for numbers in batches]
        return {figure: sum(one[figure] for one in taken) / len(taken) for figure in taken[0]}

    if task == "pull":
        return {"fbgemm TBE forward, known rows": forward}
    name = NAMES[task]
    return {f"fbgemm TBE forward + {name}": whole, f"fbgemm TBE {name} alone": backward}


def _backward(settings: Settings, table: Any, numbers: Any, offsets: Any, grads: Any) -> Figures:
    out = table(numbers, offsets)
    begin_s, begin_cpu_s = settings.now_s(), settings.cpu_s()
    out.backward(grads)
    rows_e9 = settings.batch / 1e9
    return {
        "ns/row": (settings.now_s() - begin_s) / rows_e9,
        "cpu ns/row": (settings.cpu_s() - begin_cpu_s) / rows_e9,
    }


def _table(optimizer: str, settings: Settings) -> Any:
    import_module("fbgemm_gpu")
    training: Any = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common: Any = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    table = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(settings.rows, settings.dim, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
        optimizer=getattr(training.OptimType, optimizer),
        learning_rate=data.LR,
        eps=1e-10,
        pooling_mode=common.PoolingMode.SUM,
    )
    table.init_embedding_weights_uniform(-0.01, 0.01)
    return table
