"""What `avocat evaluate` measures on painted pictures; each figure is one function."""

import itertools
import random
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.judge import Judge, Recall
from models.train.captions import article, style_words
from models.train.colour import COLOURS, colour_word
from models.train.data import Captions, PictureSet

# (prompts, first seed) → pictures float32 [B, C, H, W] in [-1, 1], seeds counting up.
Paint = Callable[[Sequence[str], int], Tensor]

SUBJECTS = """red apple, banana, strawberry, lemon, cherries, watermelon, grapes, pineapple,
carrot, mushroom, bread, pizza, hamburger, cheese wedge, doughnut, cookie, birthday
cake, ice cream, hot beverage, beer mug, cat face, dog face, mouse face, rabbit
face, fox, bear, panda, koala, tiger face, lion, cow face, pig face, frog, monkey
face, chicken, penguin, bird, owl, bat, horse face, bee, butterfly, snail, ladybug,
spider, fish, octopus, crab, dolphin, whale, turtle, snake, elephant, tulip,
sunflower, cherry blossom, cactus, palm tree, four leaf clover, maple leaf, sun,
crescent moon, star, cloud, rainbow, snowflake, fire, droplet, earth globe, volcano,
house, castle, tent, automobile, bus, bicycle, airplane, rocket, ship, train,
traffic light, alarm clock, umbrella, balloon, wrapped gift, trophy, basketball,
guitar, drum, camera, television, laptop, light bulb, book, key, hammer, scissors,
pencil, red heart, crown, ghost, robot, skull"""
# Twenty things whose colour is free, for the colour words.
COLOURED = """cat face, dog face, fish, bird, butterfly, octopus, star, balloon, umbrella, book,
automobile, heart, crown, guitar, house, key, cup, hat, t-shirt, tulip"""
# Scenes for people to look at.
SHOWN = """a cat inside an avocado, a penguin riding a bicycle, a dog wearing a crown, an octopus
playing a guitar, a red apple next to a blue car, a frog holding an umbrella, a cat wearing
sunglasses, a panda inside a cup, a fox on top of a house, two red hearts, a bear wearing a top hat,
a robot holding a red heart, a rabbit in a rocket, three strawberries, a mouse under a mushroom, a
pizza with a smiling face, a cat wearing a crown inside a banana, a pig in front of a tent, an owl
on top of a book, a snail riding a turtle, a dog and a cat, a lion behind a tree, a ghost wearing
glasses, a fish in a cup"""
_RELATION = re.compile(
    r" (?:inside|wearing|with|on top of|on|in|riding|holding|made of|playing|under|next to|behind) "
)
_COPY_RMS = 0.02
# Words of relations that two things of any kind can be in.
_RELATIONS = ("inside", "on top of", "next to", "under", "behind", "with")


def listed(names: str) -> list[str]:
    """The entries of a comma-separated list."""
    return [" ".join(name.split()) for name in names.split(",")]


def subjects() -> list[str]:
    """A hundred common things, as captions."""
    return listed(SUBJECTS)[:100]


def scenes(count: int = 60) -> list[str]:
    """Prompts of two of the common things, always the same ones, in all relations by turns."""
    rng = random.Random(0)  # noqa: S311 - no secret
    pairs = (rng.sample(subjects(), 2) for _ in range(count))
    relations = itertools.cycle(_RELATIONS)
    return [
        f"{article(first)} {relation} {article(second)}"
        for (first, second), relation in zip(pairs, relations, strict=False)
    ]


def styled(paint: Paint, judge: Judge, unseen: Sequence[Captions], seed: int) -> Recall:
    """Held-out subjects in styles that training never showed them in, among 100 captions."""
    names = list(dict.fromkeys(entry.name for entry in unseen))
    captions = [*names, *(name for name in subjects() if name not in names)][: max(100, len(names))]
    prompts = [f"{entry.name}, {style_words(entry.style or '')[0]} style" for entry in unseen]
    own = [captions.index(entry.name) for entry in unseen]
    return judge.recall(paint(prompts, seed), captions, own)


def parts(prompt: str) -> tuple[str, str] | None:
    """The two things that a composed prompt names, or None where it names one."""
    pieces = [re.sub(r"^(?:an?|the) ", "", piece) for piece in _RELATION.split(prompt)]
    return (pieces[0], pieces[1]) if len(pieces) == 2 else None


def composed(paint: Paint, judge: Judge, prompts: Sequence[str], seed: int) -> dict[str, float]:
    """Share of composed prompts of which the judge finds both things among its first five.

    The captions are the hundred subjects and all parts of the prompts.
    """
    pairs = {prompt: pair for prompt in prompts if (pair := parts(prompt)) is not None}
    captions = list(dict.fromkeys([*itertools.chain(*pairs.values()), *subjects()]))
    own = [[captions.index(name) for name in pair] for pair in pairs.values()]
    places = judge.places(paint(list(pairs), seed), captions, own)
    found = (places < 5).all(dim=1).float().mean()
    return {"both_found": float(found), "captions": len(captions), "pictures": len(pairs)}


def coloured(paint: Paint, things: Sequence[str], seed: int) -> dict[str, float]:
    """Share of pictures whose dominant colour is the one that was asked for."""
    asked = [(colour, thing) for colour in COLOURS for thing in things]
    pictures = paint([f"a {colour} {thing}" for colour, thing in asked], seed)
    unit = (pictures.clamp(-1, 1) + 1) / 2
    right = [
        colour_word(picture) == colour for picture, (colour, _) in zip(unit, asked, strict=True)
    ]
    return {"right": sum(right) / len(right), "pictures": len(right)}


def mean_distance(pictures: Tensor) -> float:
    """Mean RMS distance of all pairs of `[B, C, H, W]` in [-1, 1], as a share of the full range."""
    pairs = torch.pdist(pictures.flatten(1)) / pictures[0].numel() ** 0.5 / 2
    return float(pairs.mean())


def diversity(paint: Paint, things: Sequence[str], data: PictureSet, seed: int) -> dict[str, float]:
    """Distance over eight seeds, over that of the thing's training pictures in their styles."""
    shares = []
    for thing in things:
        known = [i for i, entry in enumerate(data.captions) if entry.name == thing]
        if len(known) > 1:
            drawn = data.pictures[known].float() / 127.5 - 1
            shares.append(mean_distance(paint([thing] * 8, seed)) / mean_distance(drawn))
    return {"share": sum(shares) / max(1, len(shares)), "subjects": len(shares)}


def copies(pictures: Tensor, data: PictureSet) -> dict[str, float]:
    """How many pictures are within 2 % RMS of a training picture, and the median distance."""
    known = (data.pictures.float() / 127.5 - 1).flatten(1)
    made = pictures.clamp(-1, 1).flatten(1)
    nearest = torch.cdist(made, known).amin(1) / made.shape[1] ** 0.5 / 2
    return {
        "copies": int((nearest < _COPY_RMS).sum()),
        "pictures": len(made),
        "median_rms": float(nearest.median()),
    }
