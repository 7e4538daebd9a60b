"""Next-item InfoNCE over sampled candidates.

Shape suffixes: B queries, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(logits_BC: Tensor, target_B: Tensor, log_q_C: Tensor, masked_BC: Tensor) -> Tensor:
    """Cross-entropy of each query's target against the other candidates, [B].

    ``target_B`` int64: the column of the query's positive. ``log_q_C``: log of the chance that the candidate is in
    the sample; taking it off each negative's logit makes the sum over negatives an unbiased estimate of the sum over
    all items (sampled softmax, Jean et al. 2015; logQ correction, Yi et al. 2019). The positive is in every sample and
    is not corrected. ``masked_BC`` bool: candidates that are no negatives of a query (positives of the same user).
    A query without any negative costs 0.
    """
    rows_B = torch.arange(len(target_B), device=logits_BC.device)
    positive_B = logits_BC[rows_B, target_B]
    excluded_BC = masked_BC.clone()
    excluded_BC[rows_B, target_B] = True
    negatives_BC = (logits_BC - log_q_C).masked_fill(excluded_BC, -torch.inf)
    return torch.logaddexp(torch.logsumexp(negatives_BC, dim=1), positive_B) - positive_B


def sampling_log_q(drawn_C: Tensor, share_C: Tensor, batch_size: int) -> Tensor:
    """Log of the chance that a candidate is in the sample: drawn as a negative, or brought by an event of the batch.

    ``drawn_C``: chance of being drawn; ``share_C``: share of recent events that are of this item.
    """
    absent_C = (1.0 - drawn_C) * (1.0 - share_C).clamp_min(0.0) ** batch_size
    return torch.log((1.0 - absent_C).clamp_min(1e-6))
