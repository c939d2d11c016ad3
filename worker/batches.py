"""What rows need for a call of the network and for a step, put together as batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.guidance import guide
from models.model import Adapters
from models.samplers import NOISE
from worker.rows import Row
from worker.transfers import send

__all__ = ["ask", "batch", "noise", "predicted", "together"]

_ALIGNED = 64  # bytes, as torch's own memory on CPU; at others, sums may have other last bits


def together(parts: Sequence[Tensor]) -> Tensor:
    """One batch of batches, in memory that is aligned alike for every batch of that size."""
    if len(parts) == 1 and parts[0].data_ptr() % _ALIGNED == 0:
        return parts[0]
    return torch.cat(list(parts))


def batch(asked: Sequence[tuple[Row, int]]) -> tuple[Any, ...]:
    """The arguments of one call of the network with these (row, which context) pairs."""
    adapters = [row.spec.adapters for row, _ in asked]
    adapters = adapters if any(adapters) else []
    x = together([row.x for row, _ in asked])
    timesteps = together([row.timestep for row, _ in asked])
    contexts = zip(*(row.contexts[which] for row, which in asked), strict=True)
    return adapters, x, timesteps, *(together(parts) for parts in contexts)


def ask(
    denoiser: Callable[..., Tensor], adapters: Sequence[Adapters | None], *batch: Tensor
) -> Tensor:
    """Ask the network; `adapters` are those of each row, where one of them has any."""
    return denoiser(*batch, adapters=adapters) if adapters else denoiser(*batch)


def predicted(rows: Sequence[Row]) -> Tensor:
    """What the network said of rows, guided where they are to be: `[B, C, H, W]`."""
    out = together([row.answers[0] for row in rows])
    guided = [i for i, row in enumerate(rows) if row.guided]
    if not guided:
        return out
    scale = together([rows[i].scale for i in guided])
    unconditional = together([rows[i].answers[1] for i in guided])
    if len(guided) == len(rows):
        return guide(out, unconditional, scale)
    at = send(torch.tensor(guided), out.device)
    return out.index_copy_(0, at, guide(out.index_select(0, at), unconditional, scale))


def noise(rows: Sequence[Row], device: torch.device) -> Tensor:
    """Each row's own fresh noise `[B, C, H, W]`, zeros where it needs none."""
    none = torch.zeros(rows[0].spec.shape)
    drawn = [row.draw() if row.terms & NOISE else none for row in rows]
    return send(drawn[0][None] if len(rows) == 1 else torch.stack(drawn), device)
