"""Adam over the dense weights as one vector: few long operations instead of many short ones.

torch's own optimizers import its compiler at their first use, seconds that a small trainer never gets back; here
weights and gradients are views of two flat vectors, and a step is a handful of operations on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from embedstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class FlatAdam:
    """Adam (Kingma & Ba 2015, algorithm 1) over groups of parameters, each with its learning rate.

    Takes the parameters over: their data and gradients become views of its vectors, so they must not be replaced,
    only written into. Used by one thread at a time.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Sequence[nn.Parameter], float]],
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        self._betas, self._eps = (beta1, beta2), eps
        parameters = [parameter for members, _ in groups for parameter in members]
        self._weights = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self._gradient = torch.zeros_like(self._weights)
        self._mean = torch.zeros_like(self._weights)
        self._square = torch.zeros_like(self._weights)
        self._rates = torch.cat([torch.full((sum(p.numel() for p in members),), lr) for members, lr in groups])
        self._rates = self._rates.to(self._weights.device)
        self._steps = 0
        begin = 0
        for parameter in parameters:
            end = begin + parameter.numel()
            parameter.data = self._weights[begin:end].view(parameter.shape)
            parameter.grad = self._gradient[begin:end].view(parameter.shape)
            begin = end

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._gradient.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights by the gradients gathered since :meth:`zero_grad`."""
        beta1, beta2 = self._betas
        self._steps += 1
        self._mean.lerp_(self._gradient, 1.0 - beta1)
        self._square.mul_(beta2).addcmul_(self._gradient, self._gradient, value=1.0 - beta2)
        scale = (self._square / (1.0 - beta2**self._steps)).sqrt_().add_(self._eps)
        self._weights.addcdiv_(self._mean * self._rates, scale, value=-1.0 / (1.0 - beta1**self._steps))

    def gradient(self) -> Tensor:
        """All gradients, one vector."""
        return self._gradient

    def state(self) -> dict[str, np.ndarray]:
        """Moments and number of steps, for a cut."""
        return {
            "mean": self._mean.cpu().numpy().copy(),
            "square": self._square.cpu().numpy().copy(),
            "steps": np.array(self._steps, np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from :meth:`state`; InvalidArgumentError when it is of other weights."""
        for name in ("mean", "square"):
            if state[name].shape != tuple(self._weights.shape):
                raise InvalidArgumentError(f"optimizer.{name}", f"has shape {state[name].shape}")
        self._mean.copy_(torch.from_numpy(state["mean"]))
        self._square.copy_(torch.from_numpy(state["square"]))
        self._steps = int(state["steps"])
