"""The modules: forwards pull rows, and track them when a gradient can come back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from embedstore import _native
from embedstore.errors import InvalidArgumentError, LimitError, TableNotFoundError
from embedstore.interface import IDS_PER_CALL_MAX, Reader, Store
from embedstore.nn.gradients import Filed, Pulled

RowDtype = type[np.float32] | type[np.float16]


class _StoreRef:
    """A module's hold on its store: shared by copies of the module, refused by pickle."""

    def __init__(self, store: Reader) -> None:
        self.store = store
        self.writable = isinstance(store, Store)

    def __deepcopy__(self, memo: dict[int, Any]) -> _StoreRef:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            "embedstore.nn modules hold a live store and cannot be pickled; save state_dict() for the dense weights "
            "(the rows are in the store) and build the model again over an open store"
        )


class TableModule(torch.nn.Module):
    """What the two modules share: reading rows of one table, tracked when a gradient can come back."""

    _like: torch.Tensor

    def __init__(self, store: Reader, table: str, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        specs = store.tables()
        if table not in specs:
            raise TableNotFoundError(table)
        if dtype is not None and not dtype.is_floating_point:
            raise InvalidArgumentError(f"{type(self).__name__}.dtype", f"must be a float type, not {dtype}")
        self.table = table
        self.embedding_dim = specs[table].dim
        self._ref = _StoreRef(store)
        self._filed = Filed()
        self._prefetched: _Prefetched | None = None
        self.register_buffer("_like", torch.empty(0, device=device, dtype=dtype), persistent=False)

    @property
    def store(self) -> Reader:
        """The store that the rows are pulled from."""
        return self._ref.store

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.table!r}, dim={self.embedding_dim}"

    def _row_dtype(self) -> RowDtype:
        """What to pull rows as, so that the output is what it would be of float32."""
        return np.float32

    def _tracks(self) -> bool:
        return self.training and torch.is_grad_enabled() and self._ref.writable

    def _read(self, ids: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, int | None]:
        """Leaf rows [u (+ 1), dim], where each id is in them (int, the shape of ids), and the zero row's number."""
        owner = type(self).__name__
        flat = _flat_ids(ids, owner)
        keep = None if mask is None else _flat_mask(mask, ids, owner)
        wanted = flat if keep is None else flat[keep]
        pulled, where = self._pulled(wanted, padded=keep is not None)
        index = torch.from_numpy(where)
        zero_row = None
        if keep is not None:
            zero_row = len(pulled.ids)
            index = torch.full((flat.size,), zero_row, dtype=index.dtype)
            index[torch.from_numpy(keep)] = torch.from_numpy(where)
        rows = pulled.rows if self._tracks() else pulled.rows.detach()
        return rows, index.view(ids.shape).to(rows.device), zero_row

    def _pulled(self, wanted: np.ndarray, padded: bool) -> tuple[Pulled, np.ndarray]:
        dtype = self._row_dtype()
        if self._prefetched is not None and self._prefetched.serves(self._like.device, dtype, self._tracks()):
            where = self._prefetched.find(wanted)
            if where is not None:
                pulled = self._prefetched.pulled
                if self._tracks():
                    pulled.counts += np.bincount(where, minlength=len(pulled.counts))
                return pulled, where
        ids, where, counts = _native.unique(wanted)
        if self._filed.num_ids() + len(ids) > IDS_PER_CALL_MAX:
            raise LimitError("ids with a gradient before step", self._filed.num_ids() + len(ids), IDS_PER_CALL_MAX)
        rows = np.empty((0, self.embedding_dim), dtype)
        if len(ids):
            rows = self.store.pull({self.table: ids}, dtype=dtype)[self.table]
        return self._track(ids, counts.astype(np.int64), rows, padded or not len(ids), shared=False), where

    def _track(self, ids: np.ndarray, counts: np.ndarray, rows: np.ndarray, padded: bool, *, shared: bool) -> Pulled:
        device = self._like.device
        read = torch.from_numpy(rows if rows.flags.writeable else rows.copy()).to(device)
        dtype = torch.float32 if self._tracks() else read.dtype  # gradients of equal ids are summed in the leaf's
        if padded:
            leaf = torch.zeros((len(ids) + 1, self.embedding_dim), device=device, dtype=dtype)
            leaf[: len(ids)] = read
        else:
            leaf = read.to(dtype)
        pulled = Pulled(ids, counts, leaf, shared)
        if self._tracks():
            leaf.requires_grad_(True)
            filed = weakref.ref(self._filed)

            def file(reached: torch.Tensor) -> None:
                # Neither the leaf nor the module may be held from here: the leaf owns this hook.
                target = filed()
                if target is not None:
                    target.add(Pulled(ids, counts, reached, shared))

            leaf.register_post_accumulate_grad_hook(file)  # type: ignore[no-untyped-call]
        return pulled


class Embedding(TableModule):
    """Rows of one table, like :class:`torch.nn.Embedding` without a size.

    ``store``: any store; a gradient is kept only over one that can be pushed to, in train mode, with grad enabled.
    ``device`` and ``dtype`` (default float32) are those of the output and follow ``module.to(...)``; gradients are
    float32 always. A module of float16 (``module.half()``) pulls float16, so that half the bytes travel from a remote
    store, any other float32: the output is the same to the bit. The module has no parameters and nothing in its
    ``state_dict``: the rows live in the store. So clip with ``clip_grad_norm_(optimizer.parameters(), ...)``, of the
    `Optimizer`, not of the model. ``copy.deepcopy`` gives a module over the same table; pickling is refused.

    Raises TableNotFoundError.
    """

    def _row_dtype(self) -> RowDtype:
        return np.float16 if self._like.dtype == torch.float16 else np.float32

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Rows of ``ids``: int64, any shape ``[...]`` and device -> ``[..., dim]``.

        ``mask`` bool ``[...]``: False positions read as zeros and are neither pulled, counted nor pushed; no id is
        reserved for padding. InvalidArgumentError, LimitError, or whatever the store's pull raises.
        """
        rows, index, zero_row = self._read(ids, mask)
        output: torch.Tensor = functional.embedding(index, rows, padding_idx=zero_row)
        return output.to(self._like.dtype)


class EmbeddingBag(TableModule):
    """Sums or means of bags of rows, like :class:`torch.nn.EmbeddingBag` without a size.

    ``mode`` is "sum" or "mean" (over the bag's unmasked ids). An empty bag is zeros. Rows are float32 until a
    bag is whole, so they are pulled as such whatever ``dtype`` is. All else as :class:`Embedding`.
    """

    def __init__(
        self,
        store: Reader,
        table: str,
        mode: Literal["sum", "mean"] = "mean",
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(store, table, device=device, dtype=dtype)
        if mode not in ("sum", "mean"):
            raise InvalidArgumentError("EmbeddingBag.mode", f'must be "sum" or "mean", not {mode!r}')
        self.mode = mode

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{super().extra_repr()}, mode={self.mode!r}"

    def forward(
        self,
        ids: torch.Tensor,
        offsets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One vector a bag: float [bags, dim].

        ``ids`` int64 [bags, length], or [n] with ``offsets`` int64 [bags], the start of each bag (the first is 0).
        ``mask`` bool and ``weights`` float (mode "sum" only) have the shape of ``ids``; False positions are left out.
        """
        if ids.dim() not in (1, 2) or (ids.dim() == 1) != (offsets is not None):
            raise InvalidArgumentError("EmbeddingBag.ids", "must be [bags, length], or [n] with offsets")
        if weights is not None and self.mode != "sum":
            raise InvalidArgumentError("EmbeddingBag.weights", 'only mode "sum" has weights')
        if weights is not None and weights.shape != ids.shape:
            raise InvalidArgumentError("EmbeddingBag.weights", f"must have shape {tuple(ids.shape)}")
        rows, index, zero_row = self._read(ids, mask)
        if offsets is not None:
            offsets = offsets.to(rows.device, index.dtype)
        elif index.numel() == 0:
            # Nothing was pulled: the last row is the zero row.
            return rows[-1:].expand(ids.shape[0], -1).to(self._like.dtype)
        if weights is not None:
            weights = weights.to(rows.device, rows.dtype)
        bags = functional.embedding_bag(
            index, rows, offsets, mode=self.mode, per_sample_weights=weights, padding_idx=zero_row
        )
        return bags.to(self._like.dtype)


class _Prefetched:
    """Rows, pulled as ``dtype``, that forwards may read instead of pulling; the ids ascend."""

    def __init__(self, pulled: Pulled, dtype: RowDtype) -> None:
        self.pulled = pulled
        self._dtype = dtype

    def serves(self, device: torch.device, dtype: RowDtype, tracked: bool) -> bool:
        """Whether a forward on ``device`` that would pull ``dtype`` can use these rows, and send a gradient back when
        ``tracked``."""
        exact = self._dtype is np.float32 or dtype is np.float16
        return exact and self.pulled.rows.device == device and (self.pulled.rows.requires_grad or not tracked)

    def find(self, wanted: np.ndarray) -> np.ndarray | None:
        """Where each id is, or None when one is not there."""
        ids = self.pulled.ids
        if not len(ids):
            return np.empty(0, np.int64) if not len(wanted) else None
        where = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        return where if np.array_equal(ids[where], wanted) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied module pulls for itself."""


@contextmanager
def prefetch(reads: Mapping[Embedding | EmbeddingBag, torch.Tensor | Sequence[torch.Tensor]]) -> Iterator[None]:
    """Pull the rows of several modules in one call (one round trip a shard); forwards inside the block use them.

    ``reads`` gives the ids that each module is going to be asked for, in any number of tensors; modules of one table
    share their rows, which are pulled as float16 when all modules are `Embedding` and of float16. A forward that asks
    for any other id pulls for itself. The rows are those of the block's start; they are let go at its end, or at the
    next step of an optimizer.
    """
    by_store: dict[int, dict[str, list[tuple[TableModule, np.ndarray]]]] = {}
    for module, tensors in reads.items():
        parts = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        flat = [_flat_ids(part, "prefetch") for part in parts]
        ids = np.concatenate(flat) if flat else np.empty(0, np.uint64)
        by_store.setdefault(id(module.store), {}).setdefault(module.table, []).append((module, ids))
    for tables in by_store.values():
        wanted = {table: np.unique(np.concatenate([ids for _, ids in users])) for table, users in tables.items()}
        asked = {table: ids for table, ids in wanted.items() if len(ids)}
        all_users = [user for users in tables.values() for user, _ in users]
        dtype = np.float16 if all(user._row_dtype() is np.float16 for user in all_users) else np.float32
        rows = all_users[0].store.pull(asked, dtype=dtype) if asked else {}
        for table, users in tables.items():
            first = next((user for user, _ in users if user._tracks()), users[0][0])
            ids = wanted[table]
            found = rows.get(table, np.empty((0, first.embedding_dim), dtype))
            pulled = first._track(ids, np.zeros(len(ids), np.int64), found, padded=True, shared=True)
            for user, _ in users:
                user._prefetched = _Prefetched(pulled, dtype)
    try:
        yield
    finally:
        for module in reads:
            module._prefetched = None


def _flat_ids(ids: torch.Tensor, owner: str) -> np.ndarray:
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int64, torch.uint64, torch.int32):
        kind = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise InvalidArgumentError(f"{owner}.ids", f"must be a tensor of 64-bit integers, not {kind}")
    host = ids.detach().cpu()
    host = host.to(torch.int64) if host.dtype == torch.int32 else host
    return host.reshape(-1).numpy().view(np.uint64)


def _flat_mask(mask: torch.Tensor, ids: torch.Tensor, owner: str) -> np.ndarray:
    if mask.dtype != torch.bool or mask.shape != ids.shape:
        raise InvalidArgumentError(f"{owner}.mask", f"must be bool {tuple(ids.shape)}")
    return mask.detach().cpu().reshape(-1).numpy()
