"""Batches of pictures and fresh captions, each a pure function of (seed, step)."""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from models.train.captions import dress, subject
from models.train.colour import COLOURS, colour_word, dominant_hue, recolour
from models.train.data import Captions, PictureSet
from models.train.heldout import HeldOut
from models.train.scenes import Scene, pair, several, trio

# How often a group is drawn against the others: flags and people crowd the set, and animals and
# food are what people ask for first.
_GROUP_WEIGHT = {
    "flags": 0.03,
    "symbols": 0.4,
    "people & body": 0.4,
    "animals & nature": 1.3,
    "food & drink": 1.3,
}
# Common things have short names ("star", "red apple"), rare ones long ("Japanese post office").
_NAME_WEIGHT = {1: 2.2, 2: 1.4}
_LONG_NAME_WEIGHT = 1.0
_OTHER_STYLE = 0.1
_SCENE_GROUPS = ("animals & nature", "food & drink", "objects", "travel & places", "activities")
_HANDED = re.compile(r"left|right|arrow|flag|clock|text|letter|keycap|number|symbol", re.I)


@dataclass(frozen=True)
class Mix:
    """Shares of a batch that are recoloured, or composed of drawings; the rest is as it is.

    Drawings of the `favoured` styles, if any are named, come ten times as often as the others: a
    short run paints a few styles well before it paints many.
    """

    recolour: float = 0.12
    scenes: float = 0.1
    favoured: tuple[str, ...] = ()


class Batch(NamedTuple):
    """`pictures`: float32 `[B, 4, S, S]` in [-1, 1], premultiplied, with their captions.

    `swapped` holds, for a scene whose order matters, its caption with the two things exchanged,
    else None: what an order-sensitive CLIP is to tell from the caption. `things` names what is in
    each picture, one phrase per drawing, for a judge that finds each of them.
    """

    pictures: Tensor
    captions: list[str]
    swapped: list[str | None]
    things: list[tuple[str, ...]]


class _Sample(NamedTuple):
    picture: Tensor
    caption: str
    things: tuple[str, ...]
    swapped: str | None = None


class Batches:
    """Draws training batches; the same seed and step give the same batch."""

    def __init__(
        self,
        data: PictureSet,
        heldout: HeldOut,
        seed: int,
        mix: Mix | None = None,
        loaders: int = 0,
        echo: int = 1,
    ) -> None:
        """`loaders`: processes that draw ahead; `echo`: how often in a row each batch is given."""
        self.echo = echo
        self.data, self.heldout, self.seed, self.mix = data, heldout, seed, mix or Mix()
        self.loaders = loaders
        self.weights = torch.tensor([self._weight(entry) for entry in data.captions])
        # One at a time and thinned out: all as floats would be four times the data.
        thin = max(1, data.pictures.shape[-1] // 32)
        self.paintable: list[bool] = []
        self.colours: list[str | None] = []
        for picture, entry in zip(data.pictures[..., ::thin, ::thin], data.captions, strict=True):
            unit = picture.float() / 255
            _, share = dominant_hue(unit)
            steady = entry.group in ("flags", "people & body", "symbols")
            # A whole caption says by itself what has which colour.
            self.paintable.append(share > 0.45 and not steady and not entry.whole)
            self.colours.append(None if entry.whole else colour_word(unit))
        self.scene_members = [
            i
            for i, entry in enumerate(data.captions)
            if entry.group in _SCENE_GROUPS and not entry.whole
        ]

    def draw(self, step: int, size: int) -> Batch:
        """The batch of `size` samples that belongs to a step."""
        rng = random.Random(f"{self.seed}:{step}")
        generator = torch.Generator().manual_seed(rng.randrange(2**62))
        rows = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        made = [self._sample(int(i), rng) for i in rows]
        pictures = torch.stack([sample.picture for sample in made]).clamp(0, 1)
        return Batch(
            pictures * 2 - 1,
            [sample.caption for sample in made],
            [sample.swapped for sample in made],
            [sample.things for sample in made],
        )

    def stream(self, size: int, start: int, stride: int) -> Iterator[tuple[int, Batch]]:
        """The steps `start`, `start + stride`, … without end, each with its batch.

        With `loaders` they are drawn ahead in so many processes, which never changes what is drawn.
        With `echo` a batch serves so many steps (Choi et al. 2019), and numbers go on all the same:
        noise, timesteps and dropout go by them.
        """
        rank, turn = start % stride, start // stride
        left = self.echo - turn % self.echo  # a resumed run may begin amid a batch's echoes
        for _, batch in self._drawn(size, turn // self.echo * stride + rank, stride):
            for _ in range(left):
                yield turn * stride + rank, batch
                turn += 1
            left = self.echo

    def _drawn(self, size: int, start: int, stride: int) -> Iterator[tuple[int, Batch]]:
        options: dict[str, Any] = {"prefetch_factor": 4} if self.loaders else {}
        draws = DataLoader(
            _Draws(self, size),
            sampler=_Every(start, stride),
            batch_size=None,
            num_workers=self.loaders,
            pin_memory=torch.cuda.is_available(),
            **options,
        )
        return iter(draws)

    def _weight(self, entry: Captions) -> float:
        words = len(entry.name.removesuffix(" face").split())
        weight = _GROUP_WEIGHT.get(entry.group or "", 1.0)
        weight *= _NAME_WEIGHT.get(words, _LONG_NAME_WEIGHT)
        favoured = self.mix.favoured
        return weight * _OTHER_STYLE if favoured and entry.style not in favoured else weight

    def _sample(self, index: int, rng: random.Random) -> _Sample:
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
        phrase = thing = subject(entry, rng)
        colour = self.colours[index]
        if colour and entry.group != "flags" and colour not in phrase and rng.random() < 0.2:
            coloured = f"{colour} {phrase}"
            phrase = phrase if self.heldout.forbids(f"{coloured} {entry.name}") else coloured
        caption = dress(phrase, entry.style, rng, whole=entry.whole)
        return _Sample(picture, caption, (thing,))

    def _picture(self, index: int, rng: random.Random) -> Tensor:
        picture = self.data.pictures[index].float() / 255
        entry = self.data.captions[index]
        plain = entry.group in ("animals & nature", "food & drink", "smileys & emotion")
        if plain and not _HANDED.search(entry.name) and rng.random() < 0.5:
            picture = picture.flip(-1)
        return picture

    def _recoloured(self, picture: Tensor, entry: Captions, rng: random.Random) -> _Sample:
        word = rng.choice(COLOURS)
        phrase = _without_colour(subject(entry, rng))
        # A keyword ("kitten") hides what a held-out prompt calls by its name ("cat").
        if self.heldout.forbids(f"{word} {phrase} {entry.name}"):
            phrase = subject(entry, rng)
            return _Sample(picture, dress(phrase, entry.style, rng), (phrase,))
        caption = dress(f"{word} {phrase}", entry.style, rng)
        return _Sample(recolour(picture, word), caption, (phrase,))

    def _scene(self, rng: random.Random) -> _Sample | None:
        """Two drawings in a relation, mostly; else three together, or several of one."""
        first = rng.choice(self.scene_members)
        style = self.data.captions[first].style
        count = rng.choices((2, 3), (0.85, 0.15))[0]
        others = [self._companion(style, rng) for _ in range(count - 1)]
        members = [first, *others]
        names = [subject(self.data.captions[i], rng) for i in members]
        if self.heldout.forbids(" ".join((*names, *(self.data.captions[i].name for i in members)))):
            return None
        pictures = [self._picture(i, rng) for i in members]
        scene: Scene
        if rng.random() < 0.15:
            scene = several(pictures[0], names[0], rng.choice((2, 3)))
        else:
            scene = pair(pictures, names, rng) if count == 2 else trio(pictures, names)
        # One draw of the dress for both, so that only the order tells them apart.
        look = rng.randrange(2**32)
        caption = dress(scene.phrase, style, random.Random(look))
        if scene.swapped is None:
            return _Sample(scene.picture, caption, scene.things)
        swapped = dress(scene.swapped, style, random.Random(look))
        return _Sample(scene.picture, caption, scene.things, swapped)

    def _companion(self, style: str | None, rng: random.Random) -> int:
        """Another drawing, of the same style if a few draws find one, as a painter would choose."""
        drawn = [rng.choice(self.scene_members) for _ in range(24)]
        fitting = [i for i in drawn if self.data.captions[i].style == style]
        return (fitting or drawn)[0]


class _Draws(Dataset[tuple[int, Batch]]):
    """Batches by number, as a DataLoader asks for them."""

    def __init__(self, batches: Batches, size: int) -> None:
        self.batches, self.size = batches, size

    def __getitem__(self, step: int) -> tuple[int, Batch]:
        return step, self.batches.draw(step, self.size)


class _Every(Sampler[int]):
    """Every `stride`-th number from `start`, without end."""

    def __init__(self, start: int, stride: int) -> None:
        self.start, self.stride = start, stride

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start, self.stride)


def _without_colour(phrase: str) -> str:
    words = [w for w in phrase.split() if w not in COLOURS]
    return " ".join(words) or phrase
