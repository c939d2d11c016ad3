"""Training state on disk, so that a run killed at any moment goes on where it was."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from models.errors import ModelError
from models.train.progress import TrainingState


class Checkpoint:
    """Saves and loads modules, optimisers and step in one file, replaced atomically.

    The file is this project's own working state, read back with `weights_only=True`; a bundle
    never holds one.
    """

    def __init__(
        self,
        path: Path,
        optimizers: Sequence[torch.optim.Optimizer],
        *modules: nn.Module | None,
        every_s: float = 120.0,
    ) -> None:
        self.path, self.optimizers, self.every_s = path, optimizers, every_s
        self.modules = [module for module in modules if module is not None]
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether `every_s` seconds have passed since the last save."""
        return time.monotonic() - self._saved_at >= self.every_s

    def save(self, progress: TrainingState) -> None:
        """Write the state; a kill during the write leaves the former one."""
        state = {
            **progress._asdict(),
            "modules": [module.state_dict() for module in self.modules],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)
        self._saved_at = time.monotonic()

    def load_or_start_from(self, weights: Path) -> TrainingState:
        """`load`; without a checkpoint, start every module of the same form from `weights`.

        So that a run can go on from a bundle whose checkpoint was not kept.
        """
        if self.path.exists() or not weights.exists():
            return self.load()
        state = load_file(weights)
        for module in self.modules:
            if module.state_dict().keys() == state.keys():
                module.load_state_dict(state)
        return TrainingState()

    def load(self) -> TrainingState:
        """Restore the last save, if any, and return how far the run was then.

        Raises:
            ModelError: it is damaged, or of a run with other options.
        """
        if not self.path.exists():
            return TrainingState()
        state = self._read()
        try:
            for module, weights in zip(self.modules, state["modules"], strict=True):
                module.load_state_dict(weights)
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            return TrainingState(**{key: state[key] for key in TrainingState._fields})
        except (RuntimeError, ValueError, KeyError) as fault:
            first = str(fault).splitlines()[-1].strip()
            raise ModelError(
                f"{str(self.path)!r} is of a run with other sizes, or of another version "
                f"({first}); give the same options as before, another --out, or delete it"
            ) from None

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as fault:  # torch raises many kinds for a damaged file
            first = str(fault).splitlines()[0]
            raise ModelError(
                f"{str(self.path)!r} is damaged ({first}); delete it to start afresh"
            ) from None
        return state
