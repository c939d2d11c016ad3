"""Training state on disk, so that a run killed at any moment goes on where it was."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn


class Checkpoint:
    """Saves and loads modules, optimiser and step in one file, replaced atomically.

    The file is this project's own working state, read back with `weights_only=True`; a bundle
    never holds one.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *others: nn.Module | None,
        every_s: float = 120.0,
    ) -> None:
        self.path, self.optimizer, self.every_s = path, optimizer, every_s
        self.modules = [model, *(m for m in others if m is not None)]
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether `every_s` seconds have passed since the last save."""
        return time.monotonic() - self._saved_at >= self.every_s

    def save(self, step: int, spent_s: float) -> None:
        """Write the state; a kill during the write leaves the former one."""
        state = {
            "step": step,
            "spent_s": spent_s,
            "modules": [module.state_dict() for module in self.modules],
            "optimizer": self.optimizer.state_dict(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)
        self._saved_at = time.monotonic()

    def load_or_start_from(self, weights: Path) -> tuple[int, float]:
        """`load`; without a checkpoint, start every module of the same form from `weights`.

        So that a run can go on from a bundle whose checkpoint was not kept.
        """
        if self.path.exists() or not weights.exists():
            return self.load()
        state = load_file(weights)
        for module in self.modules:
            if module.state_dict().keys() == state.keys():
                module.load_state_dict(state)
        return 0, 0.0

    def load(self) -> tuple[int, float]:
        """Restore the last save, if any. Returns its `(step, spent_s)`, else `(0, 0.0)`."""
        if not self.path.exists():
            return 0, 0.0
        state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        for module, weights in zip(self.modules, state["modules"], strict=True):
            module.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), float(state["spent_s"])
