"""Exponential moving average of weights: what is sampled from and shipped."""

import copy

import torch
from torch import nn


class Ema:
    """Keeps `average`, a copy of a module that follows it slowly."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.average = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module`; early steps move faster, so that the start is soon forgotten."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        mine: list[torch.Tensor] = list(self.average.parameters())
        theirs: list[torch.Tensor] = list(module.parameters())
        torch._foreach_lerp_(mine, theirs, weight)
