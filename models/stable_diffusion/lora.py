"""LoRA (Hu et al. 2022): low-rank updates of a model's layers, each row of a batch with its own.

Weights stay as they are, and are shared. A layer adds to each row what that row's LoRAs say,
scale · up(down(x)), and computes it for the row alone: always the same shapes, so the row's bits
do not depend on its neighbours.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.model import Adapters

__all__ = ["Delta", "Lora", "LoraAdapters", "adaptable", "applied"]


@dataclass(frozen=True, eq=False)
class Delta:
    """The update of one layer: `down` `[R, in, …]` and `up` `[out, R, …]`, R its rank.

    `scale` is α / R.
    """

    down: Tensor
    up: Tensor
    scale: float

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What is added to the layer's output for the input `x`, both of one row."""
        if isinstance(layer, nn.Conv2d):
            shape: Any = (layer.stride, layer.padding, layer.dilation)
            return F.conv2d(F.conv2d(x, self.down, None, *shape), self.up)
        return F.linear(F.linear(x, self.down), self.up)


@dataclass(frozen=True, eq=False)
class Lora:
    """One file, on the device: updates by layer, by component."""

    parts: Mapping[str, Mapping[str, Delta]]

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        deltas = (delta for layers in self.parts.values() for delta in layers.values())
        return sum(one.down.nbytes + one.up.nbytes for one in deltas)


@dataclass(frozen=True, eq=False)
class LoraAdapters:
    """The LoRAs of one row with their weights; `key` has the files' hashes."""

    key: tuple[tuple[str, float], ...]
    loras: tuple[tuple[Lora, float], ...]

    def of(self, part: str, layer: str) -> Iterator[tuple[Delta, float]]:
        """Updates of a layer, each with its factor."""
        for lora, weight in self.loras:
            delta = lora.parts.get(part, {}).get(layer)
            if delta is not None:
                yield delta, weight * delta.scale


class _Active(threading.local):
    """What each row of the call that this thread makes is drawn with."""

    rows: Sequence[Adapters | None] = ()


_active = _Active()


@contextmanager
def applied(rows: Sequence[Adapters | None]) -> Iterator[None]:
    """Within this, in this thread: batches whose row i has the LoRAs of `rows[i]`."""
    _active.rows = rows
    try:
        yield
    finally:
        _active.rows = ()


def adaptable(part: str, network: nn.Module) -> None:
    """Let the layers of a component take LoRAs; not while it is called."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(partial(_adapt, part, name))


def _adapt(part: str, name: str, layer: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
    for i, row in enumerate(_active.rows):
        if isinstance(row, LoraAdapters):
            for delta, factor in row.of(part, name):
                out[i : i + 1].add_(delta(layer, args[0][i : i + 1]), alpha=factor)
