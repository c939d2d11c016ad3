"""Exponential moving average of weights: what is sampled from and shipped."""

import copy

import torch
from torch import nn

# A relative width of 0.10: the average reaches back over the last tenth of the run, roughly.
_GAMMA = 6.94


class Ema:
    """Keeps `average`, a copy of a module that follows it, the slower the longer the run is.

    The power function profile of Karras et al. 2024 (equation 2): it forgets the start whatever
    the length of the run, where a constant decay suits one length only.
    """

    def __init__(self, module: nn.Module) -> None:
        self.average = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module` after the update number `step`, which counts from 0."""
        decay = (1 - 1 / (step + 1)) ** (_GAMMA + 1)
        mine: list[torch.Tensor] = list(self.average.parameters())
        theirs: list[torch.Tensor] = list(module.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)
