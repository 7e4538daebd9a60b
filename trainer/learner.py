"""One batch through the model: predict, rank, learn. Knows tables and torch, and nothing of streams.

The rows of a step are the leaves of its graph; their gradients are what is pushed. Weights and rows are those from
before the batch throughout. Occurrences (``counts``) are real events only: an item that is in the step as a negative
or as history is pushed with a count of 0 and its own latest event time, so that it neither counts as met nor as seen.

Shape suffixes: B events, T tests, Q queries that learn, L places, D dim, C candidates, U used rows, N known items,
K half-lives. Not safe for concurrent use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from embedstore import TablePush
from embedstore.errors import InvalidArgumentError
from trainer.candidates import Candidates, Located, draw, locate, same_user_pairs
from trainer.model.adam import FlatAdam
from trainer.model.losses import info_nce, sampling_log_q
from trainer.model.scoring import RANK_MAX, CandidateScorer, competition_ranks
from trainer.model.sequence import SequenceModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedstore.interface import Store
    from trainer.catalog import Catalog
    from trainer.config import Settings
    from trainer.events import EventBatch
    from trainer.history import Window

_SCORES_MAX = 1 << 23


class OnlineModel(nn.Module):
    """The dense weights: the sequence model and the scorer."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        shape = settings.model
        self.sequence = SequenceModel(shape.dim, length=shape.length, layers=shape.layers, heads=shape.heads)
        self.scorer = CandidateScorer(len(shape.half_lives_s), temperature=shape.temperature)


@dataclass(frozen=True)
class Plan:
    """What a batch needs: its items in the catalog's numbers, its candidates, the numbers of rows to be pulled, and the
    actions and surfaces of its histories (distinct ids, and which of them each place has)."""

    batch: EventBatch
    window: Window
    located: Located
    candidates: Candidates
    counts_NK: np.ndarray
    pulled: np.ndarray
    action_ids: np.ndarray
    action_BL: np.ndarray
    surface_ids: np.ndarray
    surface_BL: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """A batch between the forward pass and what follows it; the leaves are the rows that receive gradients."""

    plan: Plan
    popularity_NK: Tensor
    used_U: np.ndarray
    leaf_UD: Tensor
    actions_AD: Tensor
    surfaces_AD: Tensor
    query_BD: Tensor


@dataclass(frozen=True)
class Learnt:
    """``loss``: mean over the queries, NaN for a step that must be skipped, None when there was nothing to learn.
    ``pushes``: what goes to the store, empty for a skipped step."""

    loss: float | None
    pushes: Mapping[str, TablePush]


class Learner:
    """See the module."""

    def __init__(self, settings: Settings, catalog: Catalog, device: torch.device, rng: np.random.Generator) -> None:
        self.settings = settings
        self.catalog = catalog
        self.device = device
        self.rng = rng
        self.model = OnlineModel(settings).to(device)
        self.optimizer = FlatAdam(
            [
                (list(self.model.sequence.parameters()), settings.train.dense_lr),
                (list(self.model.scorer.parameters()), settings.train.scalar_lr),
            ]
        )

    # -- forward -----------------------------------------------------------------------------------------------------

    def plan(self, batch: EventBatch, window: Window) -> Plan:
        """Decide which items the batch is about and which rows it needs. Once for each batch: it draws."""
        train = self.settings.train
        located = locate(self.catalog, batch, window)
        counts_NK = self.catalog.counts()
        weight_N = counts_NK[:, train.share_half_life]
        candidates = draw(located, weight_N, train.head_negatives, train.tail_negatives, self.rng)
        valid_BL = window.valid()
        action_ids, action_BL = _places(window.actions, valid_BL)
        surface_ids, surface_BL = _places(window.surfaces, valid_BL)
        return Plan(
            batch=batch,
            window=window,
            located=located,
            candidates=candidates,
            counts_NK=counts_NK,
            pulled=self.catalog.to_pull(train.refresh_rows),
            action_ids=action_ids,
            action_BL=action_BL,
            surface_ids=surface_ids,
            surface_BL=surface_BL,
        )

    def pull(self, store: Store, plan: Plan) -> dict[str, np.ndarray]:
        """The rows of a plan; may be repeated."""
        names = self.settings.tables
        ids = self.catalog.ids[plan.pulled]
        return store.pull({names.items: ids, names.actions: plan.action_ids, names.surfaces: plan.surface_ids})

    def predict(self, plan: Plan, rows: Mapping[str, np.ndarray]) -> Prediction:
        """Run the model over the batch's histories, with the rows of :meth:`pull`."""
        names, located = self.settings.tables, plan.located
        self.catalog.store_rows(plan.pulled, rows[names.items])
        used_N = np.zeros(len(self.catalog), bool)
        used_N[plan.candidates.numbers_C] = True
        used_N[located.history_BL[plan.window.valid()]] = True
        used_U = np.flatnonzero(used_N)
        place_N = np.zeros(len(self.catalog), np.int64)
        place_N[used_U] = np.arange(len(used_U))
        leaf_UD = self.catalog.rows[self._tensor(used_U)].requires_grad_(True)
        actions = self._tensor(rows[names.actions]).requires_grad_(True)
        surfaces = self._tensor(rows[names.surfaces]).requires_grad_(True)
        places_BL = place_N[np.maximum(located.history_BL, 0)]
        small = ((plan.action_BL, actions), (plan.surface_BL, surfaces))
        return Prediction(
            plan=plan,
            popularity_NK=self.catalog.popularity(plan.counts_NK),
            used_U=used_U,
            leaf_UD=leaf_UD,
            actions_AD=actions,
            surfaces_AD=surfaces,
            query_BD=self._query(plan.window, ((places_BL, leaf_UD), *small)),
        )

    def _query(self, window: Window, parts: tuple[tuple[np.ndarray, Tensor], ...]) -> Tensor:
        """The vectors of the histories, each event the sum of its rows; ``parts``: places [B, L] and their rows."""
        query_BD = torch.zeros(len(window.lengths), self.settings.model.dim, device=self.device)
        past = np.flatnonzero(window.lengths)
        if not len(past):
            return query_BD
        longest = int(window.lengths.max())
        events_QLD = torch.zeros(len(past), longest, self.settings.model.dim, device=self.device)
        for place_BL, rows in parts:
            events_QLD = events_QLD + nn.functional.embedding(self._tensor(place_BL[past, :longest]), rows)
        vectors_QD = self.model.sequence.last(events_QLD, self._tensor(window.lengths[past]))
        return query_BD.index_copy(0, self._tensor(past), vectors_QD)

    # -- score -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rank(self, prediction: Prediction, tests: np.ndarray) -> np.ndarray:
        """Rank of the target among all known items, for the events ``tests`` (int64 [T]); int64 [T].

        An item first met in this batch is known to the events after the one that brought it.
        """
        ranks = np.full(len(tests), RANK_MAX, np.int64)
        step = max(1, _SCORES_MAX // max(1, len(self.catalog)))
        for begin in range(0, len(tests), step):
            ranks[begin : begin + step] = self._rank_some(prediction, tests[begin : begin + step])
        ranks[~prediction.plan.located.target_known()[tests]] = RANK_MAX
        return ranks

    def _rank_some(self, prediction: Prediction, tests: np.ndarray) -> np.ndarray:
        located = prediction.plan.located
        query_TD = prediction.query_BD[self._tensor(tests)]
        scores_TN = self.model.scorer(query_TD, self.catalog.rows, prediction.popularity_NK)
        row_P, place_P = np.nonzero(located.distinct_BL[tests])
        self.model.scorer.add_history_(
            scores_TN,
            self._tensor(row_P),
            self._tensor(located.history_BL[tests][row_P, place_P]),
            self._tensor(located.latest_BL[tests][row_P, place_P]),
        )
        row_P, new_P = np.nonzero(located.first_M[None, :] >= tests[:, None])
        scores_TN[self._tensor(row_P), self._tensor(located.new_M[new_P])] = -torch.inf
        ranks: np.ndarray = competition_ranks(scores_TN, self._tensor(located.targets_B[tests])).cpu().numpy()
        return ranks

    # -- learn -------------------------------------------------------------------------------------------------------

    def learn(self, prediction: Prediction, queries: np.ndarray) -> Learnt:
        """Gradients of the events ``queries`` (int64 [Q]); the dense ones stay in the model for :meth:`step`."""
        loss: float | None = None
        self.optimizer.zero_grad()
        if len(queries):
            mean = self._loss(prediction, queries)
            torch.autograd.backward(mean)
            loss = float(mean.detach())
        pushes = self._pushes(prediction)
        finite = loss is None or (
            np.isfinite(loss)
            and bool(self.optimizer.gradient().isfinite().all())
            and all(np.isfinite(push.grads).all() for push in pushes.values())
        )
        return Learnt(loss, pushes) if finite else Learnt(float("nan"), {})

    def _loss(self, prediction: Prediction, queries: np.ndarray) -> Tensor:
        located, candidates = prediction.plan.located, prediction.plan.candidates
        numbers_C = candidates.numbers_C
        rows_CD = prediction.leaf_UD[self._tensor(np.searchsorted(prediction.used_U, numbers_C))]
        logits_QC = self.model.scorer(
            prediction.query_BD[self._tensor(queries)], rows_CD, prediction.popularity_NK[self._tensor(numbers_C)]
        )
        column_QL = candidates.column_N[np.maximum(located.history_BL[queries], 0)]
        row_P, place_P = np.nonzero(located.distinct_BL[queries] & (column_QL >= 0))
        self.model.scorer.add_history_(
            logits_QC,
            self._tensor(row_P),
            self._tensor(column_QL[row_P, place_P]),
            self._tensor(located.latest_BL[queries][row_P, place_P]),
        )
        weight_N = prediction.plan.counts_NK[:, self.settings.train.share_half_life]
        share_C = weight_N[numbers_C] / max(float(weight_N.sum()), 1.0)
        log_q_C = sampling_log_q(
            self._tensor(candidates.drawn_C), self._tensor(share_C.astype(np.float32)), len(prediction.plan.batch)
        )
        masked_QC = np.zeros(logits_QC.shape, bool)
        query, other = same_user_pairs(prediction.plan.batch.user_ids)
        row_B = np.full(len(prediction.plan.batch), -1, np.int64)
        row_B[queries] = np.arange(len(queries))
        keep = row_B[query] >= 0
        masked_QC[row_B[query[keep]], candidates.column_N[located.targets_B[other[keep]]]] = True
        target_Q = candidates.column_N[located.targets_B[queries]]
        return info_nce(logits_QC, self._tensor(target_Q), log_q_C, self._tensor(masked_QC)).mean()

    def _pushes(self, prediction: Prediction) -> dict[str, TablePush]:
        names, batch, used_U = self.settings.tables, prediction.plan.batch, prediction.used_U
        targets = prediction.plan.located.targets_B
        if prediction.leaf_UD.grad is None:
            used_U = np.unique(targets)
            grads_UD = np.zeros((len(used_U), self.settings.model.dim), np.float32)
        else:
            grads_UD = prediction.leaf_UD.grad.cpu().numpy()
        counts_N = np.bincount(targets, minlength=len(self.catalog))
        times_N = self.catalog.last_event_ms.copy()
        np.maximum.at(times_N, targets, batch.event_time_ms)
        pushes = {
            names.items: TablePush(
                self.catalog.ids[used_U],
                grads_UD,
                counts=counts_N[used_U].astype(np.uint32),
                event_times_ms=times_N[used_U],
            )
        }
        clock_ms = int(batch.event_time_ms.max(initial=0))
        for name, ids, leaf_AD, column in (
            (names.actions, prediction.plan.action_ids, prediction.actions_AD, batch.actions),
            (names.surfaces, prediction.plan.surface_ids, prediction.surfaces_AD, batch.surfaces),
        ):
            if leaf_AD.grad is not None:
                counts = (column[:, None] == ids[None, :]).sum(axis=0).astype(np.uint32)
                times = np.full(len(ids), clock_ms, np.int64)
                pushes[name] = TablePush(ids, leaf_AD.grad.cpu().numpy(), counts=counts, event_times_ms=times)
        return pushes

    def step(self) -> None:
        """Move the dense weights by the last :meth:`learn`'s gradients."""
        self.optimizer.step()

    # -- state -------------------------------------------------------------------------------------------------------

    def dense(self) -> dict[str, np.ndarray]:
        """The dense weights by name."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.model.state_dict().items()}

    def load_dense(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take these dense weights; InvalidArgumentError when they are another model's."""
        own = self.model.state_dict()
        for name in sorted(own.keys() | tensors.keys()):
            shapes = [tuple(side[name].shape) if name in side else None for side in (own, tensors)]
            if shapes[0] != shapes[1]:
                raise InvalidArgumentError(f"dense.{name}", f"has shape {shapes[1]}, this model's has {shapes[0]}")
        self.model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _places(ids_BL: np.ndarray, valid_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids of the valid places, and which of them each place has (0 where invalid)."""
    place_BL = np.zeros(ids_BL.shape, np.int64)
    unique, place_BL[valid_BL] = np.unique(ids_BL[valid_BL], return_inverse=True)
    return unique, place_BL
