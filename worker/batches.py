"""A call of the network about rows, and the step of those that then know enough, as batches.

Whichever thread makes the call takes the step, too: where several do, that is theirs to share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.guidance import guide
from models.samplers import NOISE, PREVIOUS, step
from worker.rows import Row, lone
from worker.transfers import fetch, send

__all__ = ["Stepped", "answer"]


@dataclass(frozen=True, eq=False)
class Stepped:
    """Rows of one lane and where their step leads: `x` and `denoised`, `[B, C, H, W]`.

    `totals`, `[B]` in the host's memory (once there, see `fetch`), are numbers where all that the
    network said of a row is.
    """

    rows: list[Row]
    x: Tensor
    denoised: Tensor
    totals: Tensor

    def each(self) -> Iterator[tuple[Row, Tensor, Tensor]]:
        """Each row with its own x and denoised, `[1, C, H, W]`."""
        if (size := len(self.rows)) == 1:
            return iter([(self.rows[0], self.x, self.denoised)])
        return zip(self.rows, self.x.chunk(size), self.denoised.chunk(size), strict=True)


def answer(
    asked: Sequence[tuple[Row, int]], size: int, clip: float | None, alone: bool
) -> Stepped | None:
    """Ask the network about some contexts of rows of one lane.

    Args:
        asked: rows, and about which of their contexts.
        size: rows of the batch, at least.
        clip: as of `models.samplers.step`.
        alone: whether no other call is made meanwhile.

    Returns:
        The step of the rows for which that was the last answer; None if there are none.
    """
    padded = [*asked, *[asked[-1]] * (size - len(asked))]
    adapters = [row.spec.adapters for row, _ in padded]
    named = {"adapters": adapters} if any(adapters) else {}
    denoiser = asked[0][0].denoiser
    said = (lone(denoiser) if alone else denoiser)(*_arguments(padded), **named)
    parts = (said,) if len(padded) == 1 else said.chunk(len(padded))
    ready = [row for (row, which), part in zip(asked, parts, strict=False) if row.told(which, part)]
    return _stepped(ready, clip) if ready else None


def _arguments(asked: Sequence[tuple[Row, int]]) -> tuple[Tensor, ...]:
    """Of one call of the network with these (row, which context) pairs."""
    if len(asked) == 1:
        [(row, which)] = asked
        return row.x, row.timestep, *row.contexts[which]
    every = ((row.x, row.timestep, *row.contexts[which]) for row, which in asked)
    return tuple(_together(parts) for parts in zip(*every, strict=True))


def _stepped(rows: list[Row], clip: float | None) -> Stepped:
    said, terms = _predicted(rows), 0
    for row in rows:
        terms |= row.terms
    x, denoised = step(
        _together([row.x for row in rows]),
        said,
        _together([row.denoised for row in rows]) if terms & PREVIOUS else None,
        _noise(rows, said.device) if terms & NOISE else None,
        rows[0].columns if len(rows) == 1 else _together([row.coefficients for row in rows]),
        clip,
        terms,
    )
    # One number that is none makes the sum none.
    return Stepped(rows, x, denoised, fetch(said.sum(dim=(1, 2, 3))))


def _together(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _predicted(rows: Sequence[Row]) -> Tensor:
    """What the network said of rows, guided where they are to be: `[B, C, H, W]`."""
    out = _together([row.answers[0] for row in rows])
    guided = [i for i, row in enumerate(rows) if row.guided]
    if not guided:
        return out
    scale = _together([rows[i].scale for i in guided])
    unconditional = _together([rows[i].answers[1] for i in guided])
    if len(guided) == len(rows):
        return guide(out, unconditional, scale)
    at = send(torch.tensor(guided), out.device)
    return out.index_copy_(0, at, guide(out.index_select(0, at), unconditional, scale))


def _noise(rows: Sequence[Row], device: torch.device) -> Tensor:
    """Each row's own fresh noise `[B, C, H, W]`, zeros where it needs none."""
    none = torch.zeros(1, *rows[0].spec.shape) if len(rows) > 1 else None
    drawn = [row.draw() if none is None or row.terms & NOISE else none for row in rows]
    return send(_together(drawn), device)
