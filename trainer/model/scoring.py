"""From a history's vector to one logit for each candidate item.

Shape suffixes: B queries, N candidates, D dim, K popularity windows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RANK_MAX = 2**62


class CandidateScorer(nn.Module):
    """``logit = exp(log_scale) * cos(h, item) + w . popularity(item) + v_seen [+ v_latest]``.

    The scale is the learnable inverse temperature. ``popularity`` are logs of decayed event counts, one for each
    half-life. ``v_seen`` applies to items of the query's own history, ``v_latest`` also to its latest item.
    """

    def __init__(self, num_windows: int, *, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.popularity_K = nn.Parameter(torch.full((num_windows,), 1.0 / max(num_windows, 1)))
        self.seen = nn.Parameter(torch.zeros(()))
        self.latest = nn.Parameter(torch.zeros(()))

    def forward(self, query_BD: Tensor, rows_ND: Tensor, popularity_NK: Tensor) -> Tensor:
        """Logits [B, N] without the terms of the history; ``query_BD`` has unit rows, ``rows_ND`` any."""
        scale = self.log_scale.exp()
        unit_ND = F.normalize(rows_ND, dim=-1)
        return torch.addmm(popularity_NK @ self.popularity_K, query_BD, (unit_ND * scale).T)

    def add_history_(self, logits_BN: Tensor, query_P: Tensor, column_P: Tensor, latest_P: Tensor) -> Tensor:
        """Add the terms of the history in place. Each of P triples says: query, column of an item it has seen, whether
        that is its latest; a pair of query and column occurs at most once."""
        terms_P = self.seen + self.latest * latest_P.to(logits_BN.dtype)
        return logits_BN.index_put_((query_P, column_P), terms_P, accumulate=True)


def competition_ranks(scores_BN: Tensor, target_B: Tensor) -> Tensor:
    """Rank of each query's target column, 1 is best, int64 [B]; ties and NaN count against the target."""
    target_score_B1 = scores_BN.gather(1, target_B[:, None])
    ranks_B = scores_BN.shape[1] - (scores_BN < target_score_B1).sum(dim=1)
    return ranks_B.masked_fill(target_score_B1.squeeze(1).isnan(), RANK_MAX)
