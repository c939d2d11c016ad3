"""Lays the things of a scene together: pictures with alpha, each painted by itself, into one.

What a picture shows is found by its alpha, so that a thing stands *on* another and not above it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["VERSION", "Box", "Scene", "lay", "over", "paste"]

VERSION = 2  # of where things are laid, and their noise: part of fingerprints
_SEEN = 0.25  # alpha from which on a pixel is part of what is shown
_ROOM = 0.96  # share of the side that a scene fills at most
# What is worn has this width and height at most, and its middle there; shares of the wearer's.
_WORN = {
    "on_head": (0.85, 0.6, 0.0),
    "on_eyes": (0.9, 0.5, 0.42),
    "on_neck": (0.65, 0.45, 0.75),
    "on_body": (0.9, 0.5, 0.75),
    "on_feet": (0.7, 0.35, 0.95),
}


class Scene(Protocol):
    """Things in a relation (app/jobs/scene.py), each a prompt or a scene itself.

    `layers`: the prompts of all things in it, from the first part to the last.
    """

    @property
    def relation(self) -> str: ...
    @property
    def parts(self) -> Sequence["str | Scene"]: ...
    @property
    def layers(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: left, top, width and height."""

    x: float
    y: float
    w: float
    h: float

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.w / 2, self.y + self.h / 2


@dataclass(frozen=True, eq=False)
class _Cut:
    """What a picture shows, cut out: premultiplied `[4, h, w]` in [0, 1], and where it stands."""

    pixels: Tensor
    box: Box

    def at(self, x: float, y: float) -> "_Cut":
        """With its middle there."""
        return _Cut(
            self.pixels, Box(x - self.box.w / 2, y - self.box.h / 2, self.box.w, self.box.h)
        )

    def scaled(self, factor: float) -> "_Cut":
        b = self.box
        return _Cut(self.pixels, Box(b.x * factor, b.y * factor, b.w * factor, b.h * factor))

    def moved(self, x: float, y: float) -> "_Cut":
        b = self.box
        return _Cut(self.pixels, Box(b.x + x, b.y + y, b.w, b.h))

    def fitted(self, width: float, height: float) -> "_Cut":
        """As large as fits into a rectangle, about its middle."""
        factor = min(width / self.box.w, height / self.box.h)
        w, h = self.box.w * factor, self.box.h * factor
        x, y = self.box.middle
        return _Cut(self.pixels, Box(x - w / 2, y - h / 2, w, h))


def lay(scene: Scene | None, pictures: Sequence[Tensor]) -> Tensor:
    """The picture of a scene from those of its things, on CPU.

    Args:
        scene: what is to be seen; None: the one picture as it is, of whatever form.
        pictures: premultiplied `[4, S, S]` in [-1, 1], in the order of `scene.layers`.

    Returns:
        premultiplied float32 `[4, S, S]` in [-1, 1].

    Raises:
        ValueError: other pictures, or not as many as the scene has layers.
    """
    if scene is None:
        [whole] = pictures
        return whole
    shapes, wanted = {tuple(one.shape) for one in pictures}, len(scene.layers)
    side = pictures[0].shape[-1] if pictures else 0
    if shapes != {(4, side, side)} or len(pictures) != wanted:
        raise ValueError(
            f"the scene takes {wanted} pictures [4, S, S], not {len(pictures)} of {shapes}"
        )
    if scene.relation == "alone":
        return pictures[0].float().cpu()
    return _laid(scene, ((one.float().cpu() + 1) / 2 for one in pictures), side) * 2 - 1


def _laid(scene: Scene, pictures: Iterator[Tensor], side: int) -> Tensor:
    """The same in [0, 1]."""
    cuts = [
        _cut(next(pictures) if isinstance(part, str) else _laid(part, pictures, side))
        for part in scene.parts
    ]
    arranged = _centred(_arrange(scene.relation, cuts), side)
    return over([paste(cut.pixels, cut.box, side) for cut in arranged]).clamp(0, 1)


def _arrange(relation: str, cuts: list[_Cut]) -> list[_Cut]:
    """The things where they stand, from back to front; the whole is centred afterwards."""
    if relation in ("two", "three"):
        return _row([cuts[0]] * (2 if relation == "two" else 3))
    if relation == "beside":
        return _row(cuts)
    first, second = cuts
    match relation:
        case "inside":
            return _inside(first, second)
        case "on":
            return [second, _stacked(first, second)]
        case "under":
            return [first, _stacked(second, first)]
        case "behind":
            return _behind(first, second)
        case "before":
            return _behind(second, first)
        case "holding":
            return _held(first, second)
    if relation not in _WORN:
        raise ValueError(f"there is no relation {relation!r}")
    return _worn(first, second, _WORN[relation])


def _inside(thing: _Cut, room: _Cut) -> list[_Cut]:
    x, y, extent = _mass(room)
    return [room, thing.fitted(0.78 * extent, 0.78 * extent).at(x, y)]


def _stacked(upper: _Cut, lower: _Cut) -> _Cut:
    """The upper one, standing on the lower one."""
    b = lower.box
    upper = upper.fitted(1.1 * max(b.w, b.h), 1.1 * max(b.w, b.h))
    return upper.at(b.middle[0], b.y + 0.1 * b.h - upper.box.h / 2)


def _behind(far: _Cut, near: _Cut) -> list[_Cut]:
    b = far.box
    size = 0.8 * max(b.w, b.h)
    return [far, near.fitted(size, size).at(b.x + 0.9 * b.w, b.y + 0.9 * b.h)]


def _held(holder: _Cut, thing: _Cut) -> list[_Cut]:
    b = holder.box
    size = 0.75 * max(b.w, b.h)
    return [holder, thing.fitted(size, size).at(b.x + b.w, b.y + 0.7 * b.h)]


def _worn(wearer: _Cut, thing: _Cut, place: tuple[float, float, float]) -> list[_Cut]:
    b = wearer.box
    width, height, y = place
    worn = thing.fitted(width * b.w, height * b.h)
    if y <= 0:  # it goes by its lower edge, which sits a little below the top
        return [wearer, worn.at(b.middle[0], b.y + 0.12 * b.h - 0.38 * worn.box.h)]
    return [wearer, worn.at(b.middle[0], b.y + y * b.h)]


def _row(cuts: list[_Cut]) -> list[_Cut]:
    """Side by side on one ground; a third one stands behind, above the two."""
    cuts = [cut.fitted(1.0, 1.0) for cut in cuts]
    gap = 0.06
    placed, x = [], 0.0
    for cut in cuts[:2]:
        placed.append(cut.at(x + cut.box.w / 2, -cut.box.h / 2))
        x += cut.box.w + gap
    if len(cuts) == 3:
        top = min(cut.box.y for cut in placed)
        placed.insert(0, cuts[2].at((x - gap) / 2, top + 0.12 - cuts[2].box.h / 2))
    return placed


def _centred(cuts: list[_Cut], side: int) -> list[_Cut]:
    """All together as large as the picture has room for, and in its middle."""
    left, top = min(c.box.x for c in cuts), min(c.box.y for c in cuts)
    right = max(c.box.x + c.box.w for c in cuts)
    bottom = max(c.box.y + c.box.h for c in cuts)
    factor = _ROOM * side / max(right - left, bottom - top)
    x = (side - factor * (right - left)) / 2 - factor * left
    y = (side - factor * (bottom - top)) / 2 - factor * top
    return [cut.scaled(factor).moved(x, y) for cut in cuts]


def _cut(picture: Tensor) -> _Cut:
    """Cut out what a picture in [0, 1] shows; all of it where nothing is seen."""
    unit = picture.clamp(0, 1)
    unit = torch.cat([torch.minimum(unit[:3], unit[3:]), unit[3:]])
    rows = (unit[3] > _SEEN).any(1).nonzero()[:, 0].tolist() or [0, unit.shape[1] - 1]
    columns = (unit[3] > _SEEN).any(0).nonzero()[:, 0].tolist() or [0, unit.shape[2] - 1]
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return _Cut(unit[:, top:bottom, left:right], Box(left, top, right - left, bottom - top))


def _mass(cut: _Cut) -> tuple[float, float, float]:
    """Where the middle of what is shown lies, and the side of a square of its area."""
    alpha = cut.pixels[3]
    height, width = alpha.shape
    total = float(alpha.sum().clamp(min=1e-6))
    x = float((alpha.sum(0) * (torch.arange(width) + 0.5)).sum()) / total
    y = float((alpha.sum(1) * (torch.arange(height) + 0.5)).sum()) / total
    per = cut.box.w / width
    return cut.box.x + x * per, cut.box.y + y * per, total**0.5 * per


def paste(pixels: Tensor, box: Box, side: int) -> Tensor:
    """`pixels` `[4, h, w]` in a box, scaled, on an empty canvas `[4, side, side]`."""
    w, h = max(1, round(box.w)), max(1, round(box.h))
    small = F.interpolate(
        pixels[None], size=(h, w), mode="bilinear", antialias=True, align_corners=False
    )[0]
    x, y = round(box.x), round(box.y)
    left, top = max(0, x), max(0, y)
    seen = small[:, top - y : side - y, left - x : side - x]
    canvas = pixels.new_zeros(len(pixels), side, side)
    canvas[:, top : top + seen.shape[1], left : left + seen.shape[2]] = seen
    return canvas


def over(layers: Sequence[Tensor]) -> Tensor:
    """Premultiplied `[4, S, S]` layers in [0, 1] over one another, the last on top.

    Porter & Duff 1984, "Compositing digital images": A over B.
    """
    canvas = torch.zeros_like(layers[0])
    for top in layers:
        canvas = top + canvas * (1 - top[3:])
    return canvas
