"""Other ways to say what the reader of scenes knows, said in the way it knows.

"cat inside avocado" is "a cat inside an avocado", "a dog with a hat on its head" is "a dog wearing
a hat", "an elephant balancing on a ball" is "an elephant on a ball". Only what is sure to mean
that: "sun behind cloud", "person wearing turban" and "face with sunglasses" are names of drawings.
"""

import re
from typing import Final

from app.jobs.scene_words import (
    ARTICLE,
    CREATURES,
    LINK_WORDS,
    PAIR,
    PARTS,
    PLACE_WORDS,
    an,
    noun,
    singular,
)

__all__ = ["plainly"]

_OWN = r"(?:its|his|her|their)"
# What a thing does that is somewhere or has something; a small network has no picture of it.
_DOING: Final = re.compile(
    r"(?<=\S)(?<!man)(?<!men)(?<!person)(?<!people) (?:that is |which is |who is )?(?:happily )?"
    r"(?:balancing|bouncing|crawling|dancing|driving|flying|floating|hiding|hopping|hovering|"
    r"jumping|leaning|leaping|lounging|lying|perched|perching|playing|relaxing|resting|running|"
    r"sailing|seated|sleeping|sliding|smiling|standing|surfing|swimming|travelling|waiting|walking)"
    rf"(?= (?:{PLACE_WORDS}|with) )",
    re.I | re.A,
)
# "with a rose in its mouth": who has it, and where.
_AT: Final = re.compile(
    rf"\bwith (?P<what>(?:(?! with )[^,]){{1,60}}?) (?:(?P<inside>(?:in|inside)(?: of)? it)|"
    rf"(?P<worn>(?:on|on top of) {_OWN} head|(?:around|round) {_OWN} neck)|"
    rf"(?P<held>in {_OWN} (?:hands?|arms|mouth|beak|paws?|claws|trunk))|"
    rf"(?P<borne>(?:on|on top of) (?:{_OWN} back|it|top(?: of it)?)))(?=$|,| )",
    re.I | re.A,
)
_HAVING_AT: Final = {
    "inside": "containing",
    "worn": "wearing",
    "held": "holding",
    "borne": "bearing",
}
_ITS: Final = re.compile(
    rf"(?P<link>,| and| with| holding| wearing) {_OWN} (?P<next>\w)", re.I | re.A
)
# Behind these a noun is a thing though it has no article. Not "in", "on", "with", "behind".
_SURE: Final = re.compile(
    r"(?<=\w )(?:inside(?: of)?|in front of|on top of|next to|beside|riding|sitting (?:on|in)|"
    r"standing on|underneath|wearing|holding|carrying|eating|reading) "
    rf"(?!(?:{ARTICLE}|{_OWN}|my|your|our|it|me|you|us|him|them|each|this|that|"
    r"these|those|another|other|of)\b)(?=[a-z])",
    re.I | re.A,
)
_NEXT: Final = re.compile(rf",| (?:and|{LINK_WORDS}) ", re.I | re.A)
_PEOPLE: Final = frozenset({"man", "woman", "boy", "girl", "child", "kid", "baby", "person"})
_BEASTS: Final = "|".join(sorted(CREATURES - _PEOPLE))
_TWO_BEASTS: Final = re.compile(
    rf"^((?:[\w-]+ ){{0,2}}(?:{_BEASTS})) (?:and|&) ((?:[\w-]+ ){{0,2}}(?:{_BEASTS}))\b(?! face)",
    re.I | re.A,
)
_WEARING: Final = re.compile(
    rf"(?P<who>[\w-]+) (?P<how>with|in|wearing) (?:an? pair of )?(?P<what>{PAIR})", re.I | re.A
)
_FACES: Final = frozenset({"face", "smiley", "emoji", "emoticon"})
# A shelf may be with glasses and shoes, but not with these.
_ONLY_WORN: Final = ("sunglasses", "eyeglasses", "goggles", "headphones")
_OF_NAMES: Final = PARTS | {"turban"}  # "holding hands"
_IS_THING: Final = re.compile(rf"{ARTICLE} ", re.I | re.A)


def plainly(phrase: str) -> str:
    """The same in words that `read_scene` knows, or as it is."""
    said = _DOING.sub("", phrase)
    said = _AT.sub(_had, said)
    said = _WEARING.sub(_worn, said)
    said = _ITS.sub(lambda its: f"{its['link']} {an(its['next'])}", said)
    said = _TWO_BEASTS.sub(lambda two: " and ".join(map(_thing, two.groups())), said)
    return _articles(said)


def _had(found: re.Match[str]) -> str:
    word = next(word for name, word in _HAVING_AT.items() if found[name])
    return f"{word} {found['what']}"


def _worn(found: re.Match[str]) -> str:
    who, how, what = found["who"].lower(), found["how"].lower(), found["what"]
    creature = who in CREATURES or singular(who) in CREATURES
    sure = creature or (how == "with" and what.lower().endswith(_ONLY_WORN))
    if how != "wearing" and (who in _FACES or not sure):
        return found.group()
    return f"{found['who']} wearing {what}"


def _articles(said: str) -> str:
    """With an article for what certainly is a thing."""
    parts, at = list[str](), 0
    for found in _SURE.finditer(said):
        end = following.start() if (following := _NEXT.search(said, found.end())) else len(said)
        parts.append(said[at : found.end()])
        at = found.end()
        what = noun(f"a {said[at:end]}")
        if what not in _OF_NAMES and singular(what) is None:  # one, or it would say how many
            parts.append(an(said[at:end]).removesuffix(said[at:end]))
    return "".join([*parts, said[at:]])


def _thing(name: str) -> str:
    return name if _IS_THING.match(name) else an(name)
