"""Training state on disk, so that a run killed at any moment goes on where it was."""

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import ModelError
from models.replacing import replacing
from models.train import parallel
from models.train.progress import TrainingState

# What a run is of: options and hashes, by the names that refusals call them.
RunOf = Mapping[str, str | int | float]


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
        of: RunOf,
        stale: str | None = None,
        every_s: float = 120.0,
    ) -> None:
        """`of`: what the state must be of to be resumed; one that differs in what `stale` names
        is passed over, one that differs in anything else refused."""
        self.path, self.optimizers, self.every_s = path, optimizers, every_s
        self.of, self.stale = dict(of), stale
        self.modules = [module for module in modules if module is not None]
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether `every_s` seconds have passed since the last save."""
        return time.monotonic() - self._saved_at >= self.every_s

    def save(self, progress: TrainingState) -> None:
        """Write the state; a kill during the write leaves the former one.

        Raises:
            ModelError: it cannot be written, or the weights are no numbers any more.
        """
        weights = [weight for module in self.modules for weight in module.parameters()]
        if not all(weight.isfinite().all() for weight in weights):
            raise ModelError(
                f"the weights are not finite after step {progress.step}, so nothing was saved: "
                f"train with a lower learning rate, or on other pictures"
            )
        state = {
            **progress._asdict(),
            "of": self.of,
            "modules": [module.state_dict() for module in self.modules],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with replacing(self.path) as file:
            torch.save(state, file)
        self._saved_at = time.monotonic()

    def load_or_start_from(self, weights: Path | None) -> TrainingState:
        """`load`; without a checkpoint, start every module of the same form from `weights`.

        So that a run can go on from a bundle whose checkpoint was not kept.

        Raises:
            ModelError: see `load`; or the weights are damaged, or of other sizes than the first
                module's.
        """
        if weights is None or self.path.exists() or not weights.exists():
            return self.load()
        try:
            state = load_file(weights)
        except (SafetensorError, OSError, ValueError) as fault:
            raise ModelError(
                f"{str(weights)!r} is damaged ({fault}); delete it to start afresh"
            ) from None
        if differs := _difference(self.modules[0].state_dict(), state):
            raise ModelError(
                f"{str(weights)!r} holds weights of other sizes ({differs}); give the options "
                f"that it was trained with, another --out, or delete it"
            )
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
        if (differs := self._differs(state.get("of", {}))) is not None:
            name, before = differs
            if name == self.stale:
                if parallel.rank() == 0:
                    print(f"{str(self.path)!r} is of another {name}: begun afresh", file=sys.stderr)
                return TrainingState()
            raise ModelError(
                f"{str(self.path)!r} is of a run with {name} {before}, not {self.of[name]}; "
                f"give the same as before, another --out, or delete it"
            )
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

    def _differs(self, before: RunOf) -> tuple[str, str | int | float] | None:
        """What the saved run was of, where it is not what this one is of; the stale one first.

        States of before this was kept say nothing, and are taken as they are.
        """
        names = [name for name in self.of if before.get(name, self.of[name]) != self.of[name]]
        names.sort(key=lambda name: name != self.stale)
        return (names[0], before[names[0]]) if names else None

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as fault:  # torch raises many kinds for a damaged file
            first = str(fault).splitlines()[0]
            raise ModelError(
                f"{str(self.path)!r} is damaged ({first}); delete it to start afresh"
            ) from None
        if not isinstance(state, dict):
            raise ModelError(f"{str(self.path)!r} is no checkpoint; delete it to start afresh")
        return state


def fingerprint(module: nn.Module) -> str:
    """The first twelve digits of the sha256 of a module's weights."""
    digest = hashlib.sha256()
    for _, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _difference(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The first way in which weights are not of the form that is wanted, or ""."""
    if lacking := sorted(wanted.keys() - found.keys()):
        return f"it has no {lacking[0]}"
    if more := sorted(found.keys() - wanted.keys()):
        return f"it has {more[0]}, which is not wanted"
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            there, here = tuple(found[name].shape), tuple(tensor.shape)
            return f"{name} is {there} there and {here} here"
    return ""
