"""Scenes of two or three drawings, laid so that the words of their relation are true."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from models.layout import Box, over, paste
from models.train.captions import article

# Where a drawing stands: centre (x, y) and scale, as shares of the side.
Where = tuple[float, float, float]


@dataclass(frozen=True)
class Placement:
    """Where the first thing stands against the second; `ordered` if the words tell them apart."""

    words: tuple[str, ...]
    first: Where
    second: Where
    first_in_front: bool = True
    ordered: bool = True


PLACEMENTS = (
    Placement(("inside", "in"), (0.5, 0.54, 0.48), (0.5, 0.5, 1.0)),
    Placement(("on top of", "on", "riding"), (0.5, 0.27, 0.52), (0.5, 0.7, 0.62)),
    Placement(("wearing",), (0.5, 0.6, 0.8), (0.5, 0.22, 0.44), False),
    Placement(("under", "below"), (0.5, 0.73, 0.52), (0.5, 0.28, 0.56)),
    Placement(("next to", "beside", "and"), (0.27, 0.5, 0.54), (0.73, 0.5, 0.54), ordered=False),
    Placement(("with", "holding", "playing"), (0.42, 0.45, 0.85), (0.74, 0.72, 0.46), False),
    Placement(("behind",), (0.38, 0.4, 0.7), (0.62, 0.62, 0.66), False),
)
_TWO: tuple[Where, ...] = ((0.27, 0.5, 0.54), (0.73, 0.5, 0.54))
_THREE: tuple[Where, ...] = ((0.5, 0.27, 0.5), (0.26, 0.73, 0.5), (0.74, 0.73, 0.5))


@dataclass(frozen=True)
class Scene:
    """A composed picture, premultiplied `[4, S, S]` in [0, 1], and the words that are true of it.

    `things` names each drawing once; `swapped` is the phrase with its things exchanged, where that
    is false of the picture.
    """

    picture: Tensor
    phrase: str
    things: tuple[str, ...]
    swapped: str | None = None


def pair(pictures: Sequence[Tensor], names: Sequence[str], rng: random.Random) -> Scene:
    """Two drawings in one of the relations."""
    placement = rng.choice(PLACEMENTS)
    word = rng.choice(placement.words)
    phrase, swapped = (
        f"{first} {word} {article(second)}" for first, second in (names, reversed(names))
    )
    picture = compose(pictures[0], pictures[1], placement)
    tells_apart = placement.ordered and swapped != phrase
    return Scene(picture, phrase, tuple(names), swapped if tells_apart else None)


def trio(pictures: Sequence[Tensor], names: Sequence[str]) -> Scene:
    """Three drawings together."""
    phrase = f"{names[0]}, {article(names[1])} and {article(names[2])}"
    return Scene(lay(pictures, _THREE), phrase, tuple(names))


def several(picture: Tensor, name: str, count: int) -> Scene:
    """Two or three of one drawing."""
    places = {2: _TWO, 3: _THREE}[count]
    phrase = f"{('two', 'three')[count - 2]} {plural(name)}"
    return Scene(lay([picture] * count, places), phrase, (name,))


def plural(name: str) -> str:
    """The regular English plural; good enough for names of things ("fox" → "foxes").

    A name that ends in s ("glasses", "cherries") is left as it is.
    """
    if name.endswith("s"):
        return name
    if name.endswith(("x", "z", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def compose(first: Tensor, second: Tensor, placement: Placement) -> Tensor:
    """Lay two premultiplied `[4, S, S]` pictures in [0, 1] as `placement` says."""
    layers = [(second, placement.second), (first, placement.first)]
    if not placement.first_in_front:
        layers.reverse()
    pictures, places = zip(*layers, strict=True)
    return lay(pictures, places)


def lay(pictures: Sequence[Tensor], places: Sequence[Where]) -> Tensor:
    """Lay premultiplied `[4, S, S]` pictures over one another, the last on top."""
    return over([_place(*pair) for pair in zip(pictures, places, strict=True)])


def _place(picture: Tensor, where: Where) -> Tensor:
    x, y, scale = where
    side = picture.shape[-1]
    size = max(4, round(side * scale))
    left = min(max(round(x * side - size / 2), 0), side - size)
    top = min(max(round(y * side - size / 2), 0), side - size)
    return paste(picture, Box(left, top, size, size), side)
