"""What a prompt of several things says: which they are, and how they stand to one another.

A denoiser that paints one thing well, and two never, can still paint a scene: each thing by itself,
laid together afterwards (models/layout.py). What is read here is part of the job, since it decides
what the job costs and what the worker draws.

A prompt is a chain: things, and links between them ("in", "wearing", "and"). It is read from left
to right. A phrase that is not sure to name two things is one.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from pydantic import BaseModel, ConfigDict

from app.jobs.scene_phrases import plainly
from app.jobs.scene_words import (
    ARTICLE,
    CARRIED,
    CREATURES,
    HAVING,
    LINK_WORDS,
    LOOKS,
    NEIGHBOURS,
    NOWHERE,
    PAIR,
    PARTS,
    PLACES,
    THE_PLACES,
    TURNED,
    WORN,
    Relation,
    an,
    noun,
    singular,
)

__all__ = ["MOST_LAYERS", "Relation", "Scene", "read_scene"]

MOST_LAYERS = 4  # things that are painted for one picture
_MOST_BESIDE = 3


class Scene(BaseModel):
    """`parts` in a relation: prompts of single things, or scenes themselves.

    `alone` is the one part as it is, without what else the prompt said.
    The second part is held by the first, or on its head; else the first is inside, on, … the
    second. Two or three are `beside` each other; `two` and `three` are so many of the one part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    relation: Relation
    parts: tuple["str | Scene", ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The prompts of all things, from the first part to the last."""
        found: list[str] = []
        for part in self.parts:
            found += [part] if isinstance(part, str) else part.layers
        return tuple(found)


# A thing has an article, for "face with tongue" and "sun behind cloud" are names of one drawing;
# what one wears comes in pairs, which have none. No letter but ASCII's is any of these.
_THING = rf"{ARTICLE} \S"
_JOIN = r",? (?:and|&)|,"
_LINK = re.compile(
    rf"(?P<join>{_JOIN})?(?: that| which| who)?(?: is| are)? (?P<word>{LINK_WORDS}) "
    rf"(?:(?={_THING})|(?<=wearing )(?={PAIR}))"
    rf"|(?P<list>{_JOIN}) (?={_THING}|{PAIR})",
    re.I | re.A,
)
_IS_THING = re.compile(_THING, re.I | re.A)
# "please draw an oil painting of", and ", highly detailed".
_DRESS = re.compile(
    r"^(?:(?:please|draw|paint|show|make|create|generate|give|me|i want|i would like|there is|"
    r"there are) )*"
    r"(?:(?:(?:an?|the) )?(?:(?!(?:an?|the|some) )[\w-]+ ){0,3}?(?:emoji|icon|drawing|sticker|"
    r"picture|image|illustration|cartoon|painting|sketch|photo|photograph|render|rendering|portrait|"
    r"logo|art|close-up) of )?",
    re.I | re.A,
)
_SUFFIX = re.compile(
    rf"(?:(?:[,;]|(?<=\w{{4}})\.)(?= )(?!\s*(?:(?:and|&|{LINK_WORDS}) )?(?:{_THING}|{PAIR}))"
    rf"| in (?:the |an? )?(?:[\w-]+ ){{0,3}}?style\b(?=,|$| of \S+$)).*$",
    re.I | re.A,
)
# A chain that has these says more than is read here.
_BEYOND = re.compile(
    r"\b(?:no|not|never|without|none|nothing|nobody)\b|n't\b|[;:!?\"“”]|\. | [-–—] ", re.I
)
_CHAINED = re.compile(rf"[,&]|\b(?:and|{LINK_WORDS}) ", re.I | re.A)
_SAID_MORE = re.compile(rf"(?:^| )(?:of|{LINK_WORDS})(?: |$)", re.I | re.A)
_COUNTS: dict[str, Relation] = {"two": "two", "three": "three", "2": "two", "3": "three"}
_COUNTED: Final = frozenset(_COUNTS.values())
_FACE: Final = "face"  # what has one has it inside: "an avocado with a smiling face"


def read_scene(prompt: str, styles: Collection[str] = ()) -> Scene | None:
    """The scene that a prompt describes; None where the prompt is to be painted as it stands.

    `styles` are those that the model knows. "a photo of a cat inside an avocado in the snow, flat
    style, 4k" is "a cat, flat style" inside "an avocado, flat style": a small network that has seen
    single things on nothing makes nothing good of other words about the picture.
    """
    said = " ".join(prompt.split()).strip(" .!?;:\"'")
    dress = found.group(0) if (found := _DRESS.match(said)) else ""
    suffix = found.group(0) if (found := _SUFFIX.search(said, len(dress))) else ""
    phrase = said[len(dress) : len(said) - len(suffix)]
    if _BEYOND.search(phrase):
        return None
    scene, place = _composed(phrase)
    style = _style(dress + place + suffix, styles)
    if isinstance(scene, str):
        if f"{scene}{suffix}" == said and _is_style(suffix, style):
            return None
        scene = Scene(relation="alone", parts=(scene,))
    if scene is None or len(scene.layers) > MOST_LAYERS:
        return None
    return _styled(scene, style)


def _composed(phrase: str) -> "tuple[str | Scene | None, str]":
    """What a phrase says, and its end about the place; in other words only where that helps."""
    if phrase and not _CHAINED.search(phrase):
        return _counted(phrase), ""
    for said in dict.fromkeys((plainly(phrase), phrase)):
        kept, links, place = _links(said)
        scene = _read(kept, links)
        if isinstance(scene, Scene):
            break
    return scene, place


def _style(said: str, styles: Collection[str]) -> str:
    """The longest style that words about a picture name."""
    named = (one for one in styles if said and _named(one).search(said))
    return max(named, key=len, default="")


@cache
def _named(style: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(style)}(?![\w-])", re.I)


def _is_style(suffix: str, style: str) -> bool:
    """Whether a suffix says no more than its style, as training's captions do."""
    return not suffix or suffix.lower() in (f", {style}", f", {style} style")


@dataclass(frozen=True)
class _Link:
    """Something that is said of what came before: `word` and `text`, from `start` to `end`.

    `word` is empty where a thing is only listed; `joined`: by "and" or a comma.
    """

    start: int
    end: int
    word: str
    joined: str
    text: str

    @property
    def noun(self) -> str:
        return noun(self.text)

    @property
    def is_part(self) -> bool:
        """Whether it says how a thing looks: "with a long tail"."""
        return self.word == "with" and self.noun in PARTS

    @property
    def is_place(self) -> bool:
        """Whether it says where all is: "in the snow", "with a white background"."""
        if self.word in PLACES:
            the = self.text.lower().startswith("the ")
            return self.noun in NOWHERE or (the and self.noun in THE_PLACES)
        return self.word == "with" and self.noun in LOOKS

    @property
    def is_plain(self) -> bool:
        """Whether it says no more: not "on the floor laughing"."""
        return self.text.lower().endswith(self.noun)

    @property
    def is_look(self) -> bool:
        """Whether it says how the picture looks: ", a flat illustration"."""
        return not self.word and self.joined == "," and self.noun in LOOKS

    @property
    def is_had(self) -> bool:
        """Whether it says what a thing has or wears, as "in a tuxedo" does."""
        return self.word in HAVING or (self.word == "in" and self.noun in WORN)


def _links(phrase: str) -> tuple[str, list[_Link], str]:
    """The phrase without its end about place and looks, its links, and that end."""
    found = [*_LINK.finditer(phrase)]
    ends = [*[match.start() for match in found][1:], len(phrase)]
    links = [
        _Link(
            match.start(),
            end,
            (match["word"] or "").lower(),
            (match["join"] or match["list"] or "").strip(),
            phrase[match.end() : end],
        )
        for match, end in zip(found, ends, strict=False)
    ]
    kept = next((i for i, link in enumerate(links) if link.is_look), len(links))
    while kept and links[kept - 1].is_place and links[kept - 1].is_plain:
        kept -= 1
    cut = links[kept].start if kept < len(links) else len(phrase)
    return phrase[:cut], links[:kept], phrase[cut:]


@dataclass
class _Thing:
    """A thing, and what it has: on itself, or inside."""

    name: str
    has: list[tuple[Relation, str]] = field(default_factory=list)

    def scene(self) -> "str | Scene":
        scene = _counted(self.name)
        for relation, name in self.has:
            if isinstance(scene, Scene) and scene.relation in _COUNTED and noun(name) in WORN:
                each = Scene(relation=relation, parts=(scene.parts[0], _counted(name)))
                scene = Scene(relation=scene.relation, parts=(each,))
            else:
                parts = (scene, _counted(name))
                carried = relation in ("inside", "on")  # by the thing
                scene = Scene(relation=relation, parts=parts[::-1] if carried else parts)
        return scene


@dataclass
class _Clause:
    """Things, and what they are all in, on, under, …, one after the other."""

    things: list[_Thing]
    places: list[tuple[str, list[_Thing]]] = field(default_factory=list)  # by which words

    def scene(self) -> "str | Scene | None":
        scene = _beside([thing.scene() for thing in self.things])
        for word, things in self.places:
            place = _beside([thing.scene() for thing in things])
            if scene is None or place is None:
                return None
            parts = (place, scene) if word in TURNED else (scene, place)
            scene = Scene(relation=PLACES[word], parts=parts)
        return scene


def _read(phrase: str, links: Sequence[_Link]) -> "str | Scene | None":
    """What a chain of links says; None where that is not sure."""
    first = phrase[: links[0].start] if links else phrase
    if not first or (links and not _IS_THING.match(first) and _is_name(links[0])):
        return None
    chain = _Chain(first)
    for link, after in zip(links, [*links[1:], None], strict=False):
        if not chain.add(link, after, phrase[link.start : link.end]):
            return None
    return _beside([clause.scene() for clause in chain.clauses])


def _is_name(link: _Link) -> bool:
    """Whether a first thing that has no article, with this, may be a name."""
    return not link.word or link.text.lower().startswith("the ")


class _Chain:
    """Reads links one by one. What is worn or held belongs to the creature that was named last."""

    def __init__(self, first: str) -> None:
        self._near = _Thing(first)  # the last one that was named, but for what another has
        self.clauses = [_Clause([self._near])]
        self._holder: _Thing | None = None  # where the last link said what one has
        self._word = ""  # by which

    def add(self, link: _Link, after: _Link | None, text: str) -> bool:
        """Take one in, which is `text`; False where it is not sure what it says."""
        if link.is_place:
            return link.is_plain  # then it is left out
        if link.is_part:
            self._near.name += text
            self._holder, self._word = self._near, "with"
        elif not link.word:
            return self._list(link, after)
        elif link.is_had:
            self._have(self._who(link), link.word, link.text)
        else:
            self._place(link.word, link.text)
        return True

    def _list(self, link: _Link, after: _Link | None) -> bool:
        """A thing more: one that somebody has, that somebody is at, or one with a clause."""
        has_article = _IS_THING.match(link.text) is not None
        is_worn = link.noun in WORN
        more = after if after is not None and not after.joined and not after.is_part else None
        if self._holder is not None:
            begins = link.noun in CREATURES or (more is not None and more.is_had)
            if is_worn or not begins:
                self._have(self._holder, self._word, link.text)
                return True
        if not has_article:
            return False
        clause, thing = self.clauses[-1], _Thing(link.text)
        begins = link.noun in CREATURES or (more is not None and bool(more.word))
        if not clause.places and self._holder is None and not clause.things[-1].has:
            clause.things.append(thing)
        elif clause.places and self._holder is None and not begins:
            clause.places[-1][1].append(thing)
        else:
            self.clauses.append(_Clause([thing]))
        self._near, self._holder = thing, None
        return True

    def _place(self, word: str, text: str) -> None:
        self._near, self._holder = _Thing(text), None
        self.clauses[-1].places.append((word, [self._near]))

    def _who(self, link: _Link) -> _Thing:
        """Who wears or holds what a link says."""
        clause = self.clauses[-1]
        if link.word in ("containing", "bearing"):
            return self._near
        if self._holder is not None and not link.joined:
            return self._holder
        if not clause.places or link.joined:
            return clause.things[-1]
        likely = PLACES[clause.places[-1][0]] in NEIGHBOURS or noun(self._near.name) in CREATURES
        return self._near if likely or link.word == "with" else clause.things[-1]

    def _have(self, who: _Thing, word: str, text: str) -> None:
        self._holder, self._word = who, word
        what = noun(text)
        if word == "containing" or (word == "with" and what == _FACE):
            who.has.append(("inside", text))
        elif word == "bearing":
            who.has.append(("on", text))
        elif word in ("wearing", "in") and what not in WORN:
            who.has.append(("holding" if what in CARRIED else "on_head", text))
        elif word in ("wearing", "in", "with"):
            who.has.append((WORN.get(what, "holding"), text))
        else:
            who.has.append(("holding", text))


def _beside(scenes: "Sequence[str | Scene | None]") -> "str | Scene | None":
    """Things side by side; the one where there is one, None where they are too many."""
    known = [scene for scene in scenes if scene is not None]
    if len(known) < len(scenes) or len(known) > _MOST_BESIDE:
        return None
    return known[0] if len(known) == 1 else Scene(relation="beside", parts=tuple(known))


def _counted(name: str) -> "str | Scene":
    """Two or three of one, where a name says that."""
    word, _, plural = name.partition(" ")
    if word.lower() not in _COUNTS or _SAID_MORE.search(plural):
        return name
    if (one := singular(plural)) is None:
        return name
    return Scene(relation=_COUNTS[word.lower()], parts=(an(one),))


def _styled(scene: Scene, style: str) -> Scene:
    """As training's captions name a style."""
    ending = f", {style} style" if style else ""
    parts = (
        f"{part}{ending}" if isinstance(part, str) else _styled(part, style) for part in scene.parts
    )
    return Scene(relation=scene.relation, parts=tuple(parts))
