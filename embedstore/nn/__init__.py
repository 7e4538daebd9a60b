"""PyTorch modules over a store: `Embedding` and `EmbeddingBag` pull, `Optimizer` pushes.

A forward pulls the distinct ids of its batch into a leaf tensor; backward adds to that leaf's gradient and does nothing
else; `Optimizer.step` sends the gradients of all tables of a model in one push and forgets them. Whatever acts on
gradients between backward and step (accumulation, clipping, loss scaling) works as it does anywhere in torch.

Modules and optimizers are used like any torch ones: by one training thread at a time. The stores behind them may be
shared by any number of threads and modules.
"""

from embedstore.nn.modules import Embedding, EmbeddingBag, prefetch
from embedstore.nn.optimizer import Optimizer

__all__ = ["Embedding", "EmbeddingBag", "Optimizer", "prefetch"]
