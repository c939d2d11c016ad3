"""Batches of pictures and fresh captions, each a pure function of (seed, step)."""

import random
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from models.train.captions import article, dress, subject
from models.train.colour import HUES, colour_word, dominant_hue, recolour
from models.train.data import Captions, PictureSet
from models.train.heldout import HeldOut
from models.train.scenes import PLACEMENTS, compose, relation

# How often a group is drawn against the others: flags and people crowd the set, and animals and
# food are what people ask for first.
_GROUP_WEIGHT = {
    "flags": 0.03,
    "symbols": 0.15,
    "people & body": 0.2,
    "animals & nature": 2.0,
    "food & drink": 2.0,
}
_SCENE_GROUPS = ("animals & nature", "food & drink", "objects", "travel & places", "activities")
_HANDED = re.compile(r"left|right|arrow|flag|clock|text|letter|keycap|number|symbol", re.I)


@dataclass(frozen=True)
class Mix:
    """Shares of a batch that are recoloured, or composed of two drawings; the rest is as it is."""

    recolour: float = 0.12
    scenes: float = 0.1


class Batches:
    """Draws training batches; the same seed and step give the same batch."""

    def __init__(
        self, data: PictureSet, heldout: HeldOut, seed: int, mix: Mix | None = None
    ) -> None:
        self.data, self.heldout, self.seed, self.mix = data, heldout, seed, mix or Mix()
        weights = [_GROUP_WEIGHT.get(entry.group or "", 1.0) for entry in data.captions]
        self.weights = torch.tensor(weights)
        unit = data.pictures.float() / 255
        hues = [dominant_hue(picture) for picture in unit]
        self.paintable = [
            share > 0.45 and entry.group not in ("flags", "people & body", "symbols")
            for (_, share), entry in zip(hues, data.captions, strict=True)
        ]
        self.colours = [colour_word(picture) for picture in unit]
        self.scene_members = [
            i for i, entry in enumerate(data.captions) if entry.group in _SCENE_GROUPS
        ]

    def draw(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Pictures float32 `[size, 4, S, S]` in [-1, 1], premultiplied, and their captions."""
        rng = random.Random(f"{self.seed}:{step}")
        generator = torch.Generator().manual_seed(rng.randrange(2**62))
        rows = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        made = [self._sample(int(i), rng) for i in rows]
        pictures = torch.stack([picture for picture, _ in made]).clamp(0, 1)
        return pictures * 2 - 1, [text for _, text in made]

    def _sample(self, index: int, rng: random.Random) -> tuple[Tensor, str]:
        entry = self.data.captions[index]
        picture = self._picture(index, rng)
        fate = rng.random()
        if fate < self.mix.recolour:
            if self.paintable[index]:
                return self._recoloured(picture, entry, rng)
        elif fate < self.mix.recolour + self.mix.scenes and len(self.scene_members) > 1:
            scene = self._scene(rng)
            if scene is not None:
                return scene
        phrase = subject(entry, rng)
        colour = self.colours[index]
        if colour and entry.group != "flags" and colour not in phrase and rng.random() < 0.2:
            coloured = f"{colour} {phrase}"
            phrase = phrase if self.heldout.forbids(coloured) else coloured
        return picture, dress(phrase, entry.style, rng)

    def _picture(self, index: int, rng: random.Random) -> Tensor:
        picture = self.data.pictures[index].float() / 255
        entry = self.data.captions[index]
        plain = entry.group in ("animals & nature", "food & drink", "smileys & emotion")
        if plain and not _HANDED.search(entry.name) and rng.random() < 0.5:
            picture = picture.flip(-1)
        return picture

    def _recoloured(
        self, picture: Tensor, entry: Captions, rng: random.Random
    ) -> tuple[Tensor, str]:
        word = rng.choice(list(HUES))
        phrase = _without_colour(subject(entry, rng))
        if self.heldout.forbids(f"{word} {phrase}"):
            return picture, dress(subject(entry, rng), entry.style, rng)
        return recolour(picture, word), dress(f"{word} {phrase}", entry.style, rng)

    def _scene(self, rng: random.Random) -> tuple[Tensor, str] | None:
        first, second = rng.sample(self.scene_members, 2)
        one, two = self.data.captions[first], self.data.captions[second]
        if two.style != one.style:  # one drawing style in a scene, as a painter would
            matching = [rng.choice(self.scene_members) for _ in range(24)]
            fitting = [i for i in matching if self.data.captions[i].style == one.style]
            second = fitting[0] if fitting else second
            two = self.data.captions[second]
        names = subject(one, rng), subject(two, rng)
        if self.heldout.forbids(" ".join((*names, one.name, two.name))):
            return None
        placement = rng.choice(PLACEMENTS)
        phrase = f"{names[0]} {relation(placement, rng)} {article(names[1])}"
        picture = compose(self._picture(first, rng), self._picture(second, rng), placement)
        return picture, dress(phrase, one.style, rng)


def _without_colour(phrase: str) -> str:
    words = [w for w in phrase.split() if w not in HUES and w not in ("white", "black", "gray")]
    return " ".join(words) or phrase
