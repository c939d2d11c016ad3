"""Muon (Jordan et al. 2024): momentum whose update is orthogonalised, for convolution weights.

`torch.optim.Muon` takes only matrices and works in bfloat16, which CPUs without bf16 units compute
a hundred times slower than float32; hence this one. Where bf16 is slow the Gram matrix is iterated
in the place of the whole weight, which is several times cheaper for wide matrices; in bf16 that
diverges, so there it is the weight itself, as in the reference implementation.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.train import parallel
from models.train.precision import has_fast_bf16

# Quintic Newton-Schulz coefficients of the reference implementation.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values near 1 (0.7 to 1.2), float32 `[M, N]`."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-12)
    made = _by_matrix(x.bfloat16()).float() if has_fast_bf16(x.device.type) else _by_gram(x)
    return made.T if tall else made


def _by_matrix(x: Tensor) -> Tensor:
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x


def _by_gram(x: Tensor) -> Tensor:
    gram = x @ x.T
    identity = torch.eye(len(gram), device=x.device)
    product = identity
    for _ in range(_ITERATIONS):
        # p(G) X = (aI + bG + cG²) X, and its Gram matrix is p(G) G p(G).
        polynomial = _A * identity + _B * gram + _C * (gram @ gram)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    made: Tensor = product @ x
    return made


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; a convolution is the matrix `[out, in x kernel]`.

    Updates have the RMS that AdamW's have (Liu et al. 2025, section 2.2), so that one learning rate
    fits both. Processes that train together share the work out and exchange the results.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update from the gradients; `closure` is not called."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            updates = self._updates(weights, group["momentum"])
            for weight, update in zip(weights, updates, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                rms = 0.2 * max(update.shape) ** 0.5
                weight.add_(update.reshape(weight.shape), alpha=-group["lr"] * rms)

    def _updates(self, weights: list[nn.Parameter], momentum: float) -> list[Tensor]:
        rank, size = parallel.rank(), parallel.world_size()
        updates = []
        for i, weight in enumerate(weights):
            nesterov = self._nesterov(weight, momentum).flatten(1)
            own = i % size == rank
            updates.append(orthogonalised(nesterov) if own else torch.zeros_like(nesterov))
        if size > 1:
            flat = torch.cat([update.flatten() for update in updates])
            dist.all_reduce(flat)
            parts = torch.split(flat, [update.numel() for update in updates])
            updates = [p.view_as(u) for p, u in zip(parts, updates, strict=True)]
        return updates

    def _nesterov(self, weight: nn.Parameter, momentum: float) -> Tensor:
        gradient: Tensor = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)
