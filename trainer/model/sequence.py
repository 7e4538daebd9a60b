"""The sequence model: a causal Pre-LN transformer over what a user did.

``H = phi_out(M(phi_in(E + A + S)))``: item, action and surface rows are summed, phi are two-layer MLPs with L2
norm, M is a GPT-2 style decoder (Radford et al. 2019) with layer norm before each part (Xiong et al. 2020). The rows
live in embedstore; only the weights here are dense.

Shape suffixes: B events, L places of a history (oldest first), D dim, H heads, N candidates.
Modules are used by one thread at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedstore.errors import InvalidArgumentError


class CausalBlock(nn.Module):
    """One decoder layer: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``; no place sees a later one."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """float [B, L, D] to the same shape."""
        size_b, length, dim = x_BLD.shape
        qkv_BL3HK = self.qkv(self.attention_norm(x_BLD)).view(size_b, length, 3, self.heads, dim // self.heads)
        q_BHLK, k_BHLK, v_BHLK = qkv_BL3HK.permute(2, 0, 3, 1, 4)
        seen_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=True)
        x_BLD = x_BLD + self.attention_out(seen_BHLK.transpose(1, 2).reshape(size_b, length, dim))
        out_BLD: Tensor = x_BLD + self.mlp(self.mlp_norm(x_BLD))
        return out_BLD

    def last(self, x_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """What :meth:`forward` gives for place ``lengths_B - 1`` of each row, [B, D], and nothing of the others."""
        size_b, length, dim = x_BLD.shape
        split = (self.heads, dim // self.heads)
        x_BD = last_places(x_BLD, lengths_B)
        normed_BLD = self.attention_norm(x_BLD)
        weight, bias = self.qkv.weight, self.qkv.bias
        q_BHK = F.linear(last_places(normed_BLD, lengths_B), weight[:dim], bias[:dim]).view(size_b, *split)
        kv_BL2HK = F.linear(normed_BLD, weight[dim:], bias[dim:]).view(size_b, length, 2, *split)
        k_BHLK, v_BHLK = kv_BL2HK.permute(2, 0, 3, 1, 4)
        mask_B1L = torch.arange(length, device=x_BLD.device) < lengths_B.clamp_min(1)[:, None, None]
        seen_BH1K = F.scaled_dot_product_attention(q_BHK.unsqueeze(2), k_BHLK, v_BHLK, attn_mask=mask_B1L.unsqueeze(1))
        x_BD = x_BD + self.attention_out(seen_BH1K.reshape(size_b, dim))
        out_BD: Tensor = x_BD + self.mlp(self.mlp_norm(x_BD))
        return out_BD


class SequenceModel(nn.Module):
    """Histories to unit vectors: one for each place, which knows that place and all before it.

    ``dim`` is the rows' dim and a multiple of ``heads``; ``length`` the longest history.
    """

    def __init__(self, dim: int, *, length: int, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise InvalidArgumentError("SequenceModel.heads", f"{heads} does not divide dim {dim}")
        self.dim = dim
        self.length = length
        self.phi_in = nn.Sequential(nn.Linear(dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.places_LD = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.blocks: Sequence[CausalBlock] = nn.ModuleList(CausalBlock(dim, heads) for _ in range(layers))  # type: ignore[assignment]
        self.norm = nn.LayerNorm(dim)
        self.phi_out = nn.Sequential(nn.Linear(dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))

    def forward(self, events_BLD: Tensor) -> Tensor:
        """float [B, L, D] of summed rows, L <= length, to unit vectors [B, L, D]."""
        x_BLD = self._enter(events_BLD)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return F.normalize(self.phi_out(self.norm(x_BLD)), dim=-1)

    def last(self, events_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """What :meth:`forward` gives for the latest place of each history, [B, D]; the last layer and phi_out work on
        that place alone, which is a third of the work less."""
        x_BLD = self._enter(events_BLD)
        *context, final = self.blocks
        for block in context:
            x_BLD = block(x_BLD)
        x_BD = final.last(x_BLD, lengths_B)
        return F.normalize(self.phi_out(self.norm(x_BD)), dim=-1)

    def _enter(self, events_BLD: Tensor) -> Tensor:
        length = events_BLD.shape[1]
        return F.normalize(self.phi_in(events_BLD), dim=-1) * math.sqrt(self.dim) + self.places_LD[:length]


def last_places(hidden_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """The vector of each history's latest event, [B, D]; of an empty history, of its first place."""
    return hidden_BLD[torch.arange(len(lengths_B), device=lengths_B.device), (lengths_B - 1).clamp_min(0)]
