"""What a CLIP knows, measured on real drawings: retrieval, synonyms, the order of two things.

A bundle's CLIP makes the contexts, a judge says what a picture shows: neither can be better at it
on painted pictures than it is here.
"""

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from models.context import ContextEncoder
from models.figures import listed, subjects
from models.judge import Judge, Recall
from models.train.captions import article, style_words
from models.train.data import PictureSet
from models.train.scenes import PLACEMENTS, compose

# Words that no caption of the bundle's pictures holds, each with the name of what it means.
SYNONYMS = dict(
    row.split(": ")
    for row in listed(
        """feline: cat face, puppy: dog face, canine: dog face, hare: rabbit, hog: pig,
        swine: pig, pony: horse, stallion: horse, calf: cow, tortoise: turtle, toad: frog,
        cobra: snake, viper: snake, primate: monkey, hen: chicken, falcon: eagle, mallard: duck,
        goldfish: fish, trout: fish, orca: whale, wasp: honeybee, bumblebee: honeybee,
        spectacles: glasses, motorcar: automobile, sedan: automobile, spacecraft: rocket,
        airliner: airplane, yacht: sailboat, moped: motor scooter, cottage: house,
        fortress: castle, brolly: umbrella, parasol: umbrella, tiara: crown, diadem: crown,
        sneakers: running shoe, trousers: jeans, goblet: wine glass, lager: beer mug,
        cappuccino: hot beverage, cheeseburger: hamburger, clementine: tangerine, inferno: fire,
        blaze: fire, blizzard: snowflake, raindrop: droplet, dictionary: open book,
        textbook: open book, cellphone: mobile phone, smartphone: mobile phone, fiddle: violin,
        phantom: ghost, spectre: ghost, cyborg: robot, android: robot, cranium: skull,
        oak: deciduous tree, spruce: evergreen tree, weeping: crying face, furious: angry face,
        drowsy: sleepy face"""
    )
)


def retrieval(judge: Judge, drawings: PictureSet) -> Recall:
    """Caption → its drawing among all of them: how often it is the first, or in the first five."""
    captions = [
        f"{entry.name}, {style_words(entry.style)[0]} style" if entry.style else entry.name
        for entry in drawings.captions
    ]
    likeness = judge.similarity(drawings.pictures.float() / 127.5 - 1, captions).T
    place = (likeness > likeness.diagonal()[:, None]).sum(1)
    return {
        "r@1": float((place < 1).float().mean()),
        "r@5": float((place < 5).float().mean()),
        "drawings": len(captions),
    }


def naming(judge: Judge, drawings: PictureSet) -> Recall:
    """Drawing → its name among a hundred: the most that painted pictures could reach."""
    names = list(dict.fromkeys(entry.name for entry in drawings.captions))
    others = [name for name in subjects() if name not in names]
    captions = [*names, *others][: max(100, len(names))]
    own = [captions.index(entry.name) for entry in drawings.captions]
    return judge.recall(drawings.pictures.float() / 127.5 - 1, captions, own)


def synonyms(encoder: ContextEncoder) -> dict[str, float]:
    """How often the context of a word that no caption holds is nearest to the name it means.

    The names to choose from are those of all synonyms and the hundred subjects.
    """
    names = list(dict.fromkeys([*SYNONYMS.values(), *subjects()]))
    near = encoder.encode(list(SYNONYMS)) @ encoder.encode(names).T
    found = [names[i] == name for i, name in zip(near.argmax(1), SYNONYMS.values(), strict=True)]
    return {"right": sum(found) / len(found), "words": len(found), "names": len(names)}


def order_pairs(
    judge: Judge, drawings: PictureSet, count: int = 200, seed: int = 0
) -> dict[str, float]:
    """Two drawings in a relation that has an order, and the same exchanged.

    `right`: how often a scene is nearer to its own caption than to the exchanged one (chance: 0.5);
    `context_cosine`: how alike the two captions' contexts are, for which 1 would mean that no
    denoiser can tell them apart.
    """
    rng = random.Random(seed)
    ordered = [placement for placement in PLACEMENTS if placement.ordered]
    scenes, captions = [], []
    for _ in range(count):
        places = rng.sample(range(len(drawings)), 2)
        placement = rng.choice(ordered)
        word = rng.choice(placement.words)
        for first, second in (places, places[::-1]):
            one, other = (drawings.pictures[i].float() / 255 for i in (first, second))
            scenes.append(compose(one, other, placement) * 2 - 1)
            names = (article(drawings.captions[i].name) for i in (first, second))
            captions.append(f" {word} ".join(names))
    likeness = judge.similarity(torch.stack(scenes), captions).reshape(count, 2, count, 2)
    of_pair = likeness[torch.arange(count), :, torch.arange(count), :]  # [count, scene, caption]
    right = torch.stack([of_pair[:, i, i] > of_pair[:, i, 1 - i] for i in range(2)])
    contexts = judge.encoder.encode(captions).reshape(count, 2, -1)
    cosine = F.cosine_similarity(contexts[:, 0], contexts[:, 1])
    return {
        "right": float(right.float().mean()),
        "context_cosine": float(cosine.mean()),
        "scenes": 2 * count,
    }


def both_found(judge: Judge, drawings: PictureSet, count: int = 200, seed: int = 0) -> Recall:
    """Scenes of two real drawings of which the judge finds both names among its first five.

    The captions are the hundred subjects and the two names. This is the most that painted
    compositions could reach with this judge.
    """
    rng = random.Random(seed)
    found = 0
    for _ in range(count):
        first, second = rng.sample(range(len(drawings)), 2)
        one, other = (drawings.pictures[i].float() / 255 for i in (first, second))
        names = [drawings.captions[i].name for i in (first, second)]
        captions = list(dict.fromkeys([*names, *subjects()]))
        scene = compose(one, other, rng.choice(PLACEMENTS)) * 2 - 1
        own: Sequence[int] = [captions.index(name) for name in names]
        found += int((judge.places(scene[None], captions, [own]) < 5).all())
    return {"both_found": found / count, "scenes": count}
