"""What a prompt of several things says: which they are, and how they stand to one another.

A denoiser that paints one thing well, and two never, can still paint a scene: each thing by itself,
laid together afterwards (models/layout.py). What is read here is part of the job, since it decides
what the job costs and what the worker draws.
"""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["MOST_LAYERS", "Relation", "Scene", "read_scene"]

MOST_LAYERS = 4  # things that are painted for one picture

# As models/layout.py knows them.
Relation = Literal[
    "inside", "on", "under", "beside", "behind", "before", "holding", "two", "three",
    "on_head", "on_eyes", "on_neck", "on_body", "on_feet",
]  # fmt: skip


class Scene(BaseModel):
    """`parts` in a relation: prompts of single things, or scenes themselves.

    The second part is held by the first, or on its head; else the first is inside, on, … the
    second. Two or three are `beside` each other; `two` and `three` are so many of the one part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    relation: Relation
    parts: tuple["str | Scene", ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The prompts of all things, in the order in which they are named."""
        found: list[str] = []
        for part in self.parts:
            found += [part] if isinstance(part, str) else part.layers
        return tuple(found)


# Where something is: read last, for what is worn or held belongs to the one thing that has it.
_PLACES: dict[str, Relation] = {
    "inside of": "inside",
    "inside": "inside",
    "in front of": "before",
    "in": "inside",
    "on top of": "on",
    "on": "on",
    "above": "on",
    "over": "on",
    "riding": "on",
    "sitting on": "on",
    "standing on": "on",
    "sitting in": "inside",
    "under": "under",
    "underneath": "under",
    "below": "under",
    "next to": "beside",
    "beside": "beside",
    "near": "beside",
    "behind": "behind",
}
_HAVING: dict[str, Relation] = {
    "wearing": "on_head",
    "with": "holding",
    "holding": "holding",
    "playing": "holding",
    "eating": "holding",
}
_COUNTS: dict[str, Relation] = {"two": "two", "three": "three"}
_THING = r"(?:an?|the|one|two|three|some) \S"
# A thing has an article, for "face with tongue" and "sun behind cloud" are names of one drawing;
# what one wears comes in pairs, which have none.
_WORN_PAIRS = r"(?:\w+ )?(?:sun|eye)?(?:glasses|goggles|boots|shoes|headphones)\b"
# No things that could be painted alone: places, times and weather, parts and looks.
_NO_THING = re.compile(
    r"^(?:the (?:ground|air|floor|left|right|top|bottom|middle|center|background|foreground|front|"
    r"side|corner|world|rain|snow|wind|sun|sunshine|dark|night|morning|evening|distance)|"
    r"(?:an?|the|one|two|three|some)\b.*\b(?:style|eyes?|nose|mouth|smile|grin|beard|mustache|"
    r"moustache|tails?|ears?|hair|horns?|wings?|legs?|arms?|hands?|feet|fur|skin|tongue|teeth|"
    r"stripes|spots|dots?|expression|colou?rs?))(?: \w+ing)?$"
)
# Where it is worn, by the last word; of these "with" and "in" say, too, that they are worn.
_WORN_WORDS: dict[Relation, str] = {
    "on_head": "hat cap crown helmet beanie tiara turban wig bow halo",
    "on_eyes": "glasses sunglasses eyeglasses goggles spectacles monocle mask",
    "on_neck": "scarf tie necktie necklace medal lei stethoscope collar",
    "on_body": "suit tuxedo dress coat jacket kimono shirt t-shirt vest",
    "on_feet": "boots shoes sneakers sandals skates socks slippers",
}
_WORN = {word: place for place, words in _WORN_WORDS.items() for word in words.split()}
_PLACE = re.compile(rf" ({'|'.join(sorted(_PLACES, key=len, reverse=True))}) (?={_THING})", re.I)
_AND = re.compile(rf"(?:,? and |, )(?={_THING})", re.I)
_HAS = re.compile(rf" ({'|'.join(_HAVING)}) (?:(?={_THING})|(?<=wearing )(?={_WORN_PAIRS}))", re.I)
_IS_THING = re.compile(_THING, re.I)
_RELATED = frozenset([*_PLACES, *_HAVING])
_DRESS = re.compile(
    r"^(?:an? |the )?(?:\w+ )?(?:emoji|icon|drawing|sticker|picture|image|illustration|cartoon|"
    r"painting|sketch|photo) of ",
    re.I,
)
_STYLE = re.compile(rf",(?!\s*(?:and )?{_THING}).*$", re.I)


def read_scene(prompt: str) -> Scene | None:
    """The scene that a prompt describes; None where it names one thing, or too many.

    "an icon of a cat inside an avocado, flat style" is "an icon of a cat, flat style" inside "an
    icon of an avocado, flat style". A phrase that is not sure to name two things is one.
    """
    dress = found.group(0) if (found := _DRESS.match(prompt)) else ""
    style = found.group(0) if (found := _STYLE.search(prompt)) else ""
    phrase = prompt[len(dress) : len(prompt) - len(style)].strip()
    scene = _read(phrase)
    if isinstance(scene, str) or len(scene.layers) > MOST_LAYERS:
        return None
    return _dressed(scene, dress, style)


def _worn(thing: str) -> Relation | None:
    """Where a thing is worn, if it is one that is."""
    return _WORN.get(thing.split()[-1].lower())


def _read(phrase: str) -> Scene | str:
    """The parts of a phrase; itself where it has none."""
    return _placed(phrase) or _listed(phrase) or _having(phrase) or _counted(phrase) or phrase


def _placed(phrase: str) -> Scene | None:
    for found in reversed([*_PLACE.finditer(phrase)]):
        first, second = phrase[: found.start()], phrase[found.end() :]
        word = found[1].lower()
        somewhere = word in ("in", "on") and second.lower().startswith("the ")  # "in the forest"
        if _are_things(first, second) and not somewhere:
            worn = _worn(second) if word == "in" else None  # "a bear in a tuxedo"
            parts = (_read(first), _read(second))
            return Scene(relation=worn or _PLACES[word], parts=parts)
    return None


def _listed(phrase: str) -> Scene | None:
    """Two or three things side by side."""
    things = _AND.split(phrase)
    if len(things) not in (2, 3) or not all(map(_IS_THING.match, things)):
        return None
    also_worn = _worn(things[-1]) and _HAS.search(things[0])  # "a cat wearing a hat and a scarf"
    if also_worn or not _are_things(*things):
        return None
    return Scene(relation="beside", parts=tuple(map(_read, things)))


def _having(phrase: str) -> Scene | None:
    if (found := _HAS.search(phrase)) is None:
        return None
    first, second = phrase[: found.start()], phrase[found.end() :]
    if not _are_things(first, second):
        return None
    word, scene = found[1].lower(), _read(first)
    if word == "with" and second.split()[-1].lower() == "face":  # "an avocado with a smiling face"
        return Scene(relation="inside", parts=(_read(second), scene))
    worn = [*map(_worn, things := _AND.split(second))] if word in ("with", "wearing") else [None]
    if not all(worn):
        return Scene(relation=_HAVING[word], parts=(scene, _read(second)))
    for place, thing in zip(worn, things, strict=True):
        scene = Scene(relation=place or "on_head", parts=(scene, thing))
    return scene if isinstance(scene, Scene) else None


def _counted(phrase: str) -> Scene | None:
    word, _, plural = phrase.partition(" ")
    one = singular(plural)
    if word.lower() not in _COUNTS or one is None or _RELATED.intersection(plural.split()):
        return None
    article = "an" if one[0].lower() in "aeiou" else "a"
    return Scene(relation=_COUNTS[word.lower()], parts=(f"{article} {one}",))


def singular(plural: str) -> str | None:
    """One of a regular English plural ("red foxes" → "red fox"); None where it is none."""
    for ending, one in (("ies", "y"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss")):
        if plural.endswith(ending):
            return plural.removesuffix(ending) + one
    return plural[:-1] if re.search(r"[^\W\d_]{2}s$", plural) and plural[-2] != "s" else None


def _are_things(first: str, *others: str) -> bool:
    """Whether all can be painted alone; a first thing without an article needs no "the" after."""
    if not _IS_THING.match(first) and others[0].lower().startswith("the "):
        return False
    return bool(first.strip()) and not any(_NO_THING.match(one.lower()) for one in (first, *others))


def _dressed(scene: Scene, dress: str, style: str) -> Scene:
    parts = (
        f"{dress}{part}{style}" if isinstance(part, str) else _dressed(part, dress, style)
        for part in scene.parts
    )
    return Scene(relation=scene.relation, parts=tuple(parts))
