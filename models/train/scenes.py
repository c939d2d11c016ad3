"""Scenes of two drawings, laid so that the words of their relation are true."""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """Where the first thing stands against the second; centres and scales as shares of the side."""

    words: tuple[str, ...]
    first: tuple[float, float, float]  # (x, y, scale)
    second: tuple[float, float, float]
    first_in_front: bool = True


PLACEMENTS = (
    Placement(("inside", "in"), (0.5, 0.54, 0.48), (0.5, 0.5, 1.0)),
    Placement(("on top of", "on"), (0.5, 0.27, 0.52), (0.5, 0.7, 0.62)),
    Placement(("under", "below"), (0.5, 0.73, 0.52), (0.5, 0.28, 0.56)),
    Placement(("next to", "beside", "and"), (0.27, 0.5, 0.54), (0.73, 0.5, 0.54)),
    Placement(("with", "holding"), (0.42, 0.45, 0.85), (0.74, 0.72, 0.46), False),
    Placement(("behind",), (0.38, 0.4, 0.7), (0.62, 0.62, 0.66), False),
)


def compose(first: Tensor, second: Tensor, placement: Placement) -> Tensor:
    """Lay two premultiplied `[4, S, S]` pictures in [0, 1] as `placement` says (over)."""
    layers = [_place(second, placement.second), _place(first, placement.first)]
    if not placement.first_in_front:
        layers.reverse()
    bottom, top = layers
    return top + bottom * (1 - top[3:])


def relation(placement: Placement, rng: random.Random) -> str:
    """One of the phrases that are true of the placement."""
    return rng.choice(placement.words)


def _place(picture: Tensor, where: tuple[float, float, float]) -> Tensor:
    x, y, scale = where
    side = picture.shape[-1]
    size = max(4, round(side * scale))
    small = F.interpolate(
        picture[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )[0]
    left = min(max(round(x * side - size / 2), 0), side - size)
    top = min(max(round(y * side - size / 2), 0), side - size)
    canvas = torch.zeros_like(picture)
    canvas[:, top : top + size, left : left + size] = small
    return canvas
