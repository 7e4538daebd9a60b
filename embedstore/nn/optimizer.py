"""The optimizer: pushes what the modules of a model have gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from embedstore.errors import InvalidArgumentError
from embedstore.interface import Origin, PushResult, Store, TablePush
from embedstore.nn.gradients import Pulled, merged
from embedstore.nn.modules import TableModule


class Optimizer(torch.optim.Optimizer):
    """Pushes the gradients of a model's tables; a torch optimizer, so schedulers and ``torch.amp.GradScaler`` work.

    ``model``: every `Embedding` and `EmbeddingBag` in it over ``store``, as of now. The optimizer *algorithm* of a
    table runs in the store, by its ``TableSpec``. ``dense``: the ordinary optimizer of the other parameters; then
    `step`, `zero_grad` and ``param_groups`` here cover it too.

    **lr.** Each table has a group in ``param_groups`` (key "table") whose ``lr`` begins as the table's own. While it
    has that value, pushes carry none and the store's decides, so ``alter_table`` acts at once; once a scheduler or you
    set it to another, every push carries it.

    **Failure.** The push comes first. If it raises (GapError, UnavailableError, ...), nothing was applied or it is not
    known whether it was; gradients and dense weights are as they were, and calling `step` again with the same origins
    is safe: what was applied is recognised as a repeat.

    **Skipping.** Origins must tile their stream, so a step that is not taken still pushes its origins, empty: call
    `skip`. ``GradScaler.step(opt, origins=...)`` does that by itself when it found an infinite gradient.
    """

    # GradScaler then calls step on overflow too, with `grad_scale` and `found_inf` set.
    _step_supports_amp_scaling = True

    last_push: PushResult | None
    """What became of the latest push."""

    def __init__(self, model: torch.nn.Module, store: Store, dense: torch.optim.Optimizer | None = None) -> None:
        if not isinstance(store, Store):
            raise InvalidArgumentError("Optimizer.store", f"{type(store).__name__} cannot be pushed to")
        self._modules = [m for m in model.modules() if isinstance(m, TableModule) and m.store is store]
        if not self._modules:
            raise InvalidArgumentError("Optimizer.model", "has no Embedding or EmbeddingBag over this store")
        self._store = store
        self._dense = dense
        self._pulled: dict[str, list[Pulled]] = {}
        self._groups: list[dict[str, Any]] = []
        self.last_push = None
        specs = store.tables()
        self._table_lr = {m.table: specs[m.table].optimizer.lr for m in self._modules}
        self._table_groups = [{"params": [], "table": table, "lr": lr} for table, lr in self._table_lr.items()]
        super().__init__(self._table_groups, {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The dense optimizer's groups, then one a table; ``params`` are the tensors that hold gradients now."""
        self._collect()
        self._groups[:] = [*(self._dense.param_groups if self._dense else ()), *self._table_groups]
        for group in self._table_groups:
            group["params"] = [pulled.rows for pulled in self._pulled.get(cast(str, group["table"]), ())]
        return self._groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if groups:
            raise InvalidArgumentError("Optimizer.param_groups", "cannot be replaced")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of dense parameters to the ``dense`` optimizer."""
        if any(param_group is group for group in self._table_groups):
            return
        if self._dense is None:
            raise InvalidArgumentError("Optimizer.dense", "is None, there is nothing to add a group to")
        self._dense.add_param_group(param_group)

    def parameters(self) -> Iterator[torch.Tensor]:
        """Every tensor of ``param_groups``: what ``torch.nn.utils.clip_grad_norm_`` takes.

        For a table it is one tensor, the rows of the distinct ids since the last step with their summed gradients, so
        that the norm is the one of a dense table. Only those that backward has reached are there.
        """
        for group in self.param_groups:
            yield from group["params"]

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        origins: Sequence[Origin] = (),
        event_time_ms: int | None = None,
    ) -> Any:
        """Push all gradients and occurrence counts in one push, drop them, then step the dense optimizer.

        ``origins``: what the gradients were computed from. ``event_time_ms``: when that happened; without one the clock
        does not move. With nothing to push and no origins the store is not called. Returns the closure's result.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        scale = getattr(self, "grad_scale", None)
        overflow = getattr(self, "found_inf", None)
        try:
            if overflow is not None and bool(overflow):
                self.skip(origins, event_time_ms=event_time_ms)
                return result
            self._collect()
            self._push(self._pushes(scale), origins, event_time_ms)
            self._drop()
            if self._dense is not None:
                self._unscale_dense(scale)
                self._dense.step()
        except BaseException:
            # GradScaler multiplies into a grad_scale that is still there from a step that raised.
            for name in ("grad_scale", "found_inf"):
                self.__dict__.pop(name, None)
            raise
        return result

    def skip(self, origins: Sequence[Origin] = (), *, event_time_ms: int | None = None) -> None:
        """Instead of a step: push the origins without gradients, then drop all gradients."""
        self._push({}, origins, event_time_ms)
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the tables and of the dense optimizer. Forwards that wait for a backward stay."""
        self._collect()
        self._drop()
        if self._dense is not None:
            self._dense.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The groups' settings (lr) and the dense optimizer's state. The tables' optimizer state is in the store."""
        tables = {}
        for group in self._table_groups:
            own = {name: value for name, value in group.items() if name not in ("params", "table", "lr")}
            tables[cast(str, group["table"])] = {**own, "lr": self._set_lr(group)}
        return {"tables": tables, "dense": self._dense.state_dict() if self._dense else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, for a model of the same tables."""
        if set(state_dict["tables"]) != set(self._table_lr):
            raise InvalidArgumentError("state_dict.tables", f"is of {sorted(state_dict['tables'])}")
        if (state_dict["dense"] is None) != (self._dense is None):
            raise InvalidArgumentError("state_dict.dense", "one of the two optimizers has no dense part")
        for group in self._table_groups:
            table = cast(str, group["table"])
            saved = state_dict["tables"][table]
            group.update(saved, lr=self._table_lr[table] if saved["lr"] is None else saved["lr"])
        if self._dense is not None:
            self._dense.load_state_dict(state_dict["dense"])

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "an embedstore.nn.Optimizer holds a live store and cannot be copied or pickled; use state_dict()"
        )

    def _collect(self) -> None:
        for module in self._modules:
            taken = module._filed.take()
            if taken:
                held = self._pulled.get(module.table, [])
                self._pulled[module.table] = [merged([*held, *taken])]

    def _drop(self) -> None:
        for pulled in self._pulled.values():
            for one in pulled:
                one.forget()
        self._pulled.clear()

    def _pushes(self, scale: torch.Tensor | None) -> dict[str, TablePush]:
        pushes = {}
        for group in self._table_groups:
            table = cast(str, group["table"])
            for pulled in self._pulled.get(table, ()):
                grad = pulled.grad if scale is None else pulled.grad / scale.to(pulled.grad.device)
                ids, counts, grads = pulled.ids, pulled.counts, grad.detach().cpu().numpy()
                if not counts.all():
                    # Prefetched and not asked for: no gradient, and none of the batch's ids.
                    used = (counts > 0) | grads.any(axis=1)
                    ids, counts, grads = ids[used], np.maximum(counts[used], 1), grads[used]
                occurrences = np.minimum(counts, 2**32 - 1).astype(np.uint32)
                pushes[table] = TablePush(ids, grads, counts=occurrences, lr=self._set_lr(group))
        return pushes

    def _set_lr(self, group: Mapping[str, Any]) -> float | None:
        """The lr that a group was given, or None while it has its table's."""
        lr = float(group["lr"])
        return None if lr == self._table_lr[group["table"]] else lr

    def _push(self, tables: Mapping[str, TablePush], origins: Sequence[Origin], event_time_ms: int | None) -> None:
        if tables or origins:
            self.last_push = self._store.push(tables, origins=origins, event_time_ms=event_time_ms)
        for module in self._modules:
            module._prefetched = None

    def _unscale_dense(self, scale: torch.Tensor | None) -> None:
        if scale is None or self._dense is None:
            return
        with torch.no_grad():
            for group in self._dense.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.div_(scale.to(parameter.grad.device))
