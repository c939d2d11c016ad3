"""Captions, sampled anew each time from what is known of a picture."""

import random
from collections.abc import Iterable

from models.train.data import Captions

_STYLE_WORDS = {
    "fluent-3d": ("fluent 3d", "3d"),
    "fluent-flat": ("fluent flat", "flat"),
    "fx": ("fx",),
}
# Keywords that name how a thing is used or where it belongs, not what is seen.
_VAGUE = frozenset(
    {
        "animal",
        "nature",
        "food",
        "photo",
        "emotion",
        "face",
        "symbol",
        "button",
        "sign",
        "object",
        "person",
        "people",
        "human",
        "tool",
        "green-square",
        "blue-square",
        "red-square",
        "drink",
        "place",
        "travel",
        "color",
        "colour",
        "shape",
        "activity",
    }
)
_TEMPLATES = ("{}",) * 8 + (
    "a picture of {}",
    "{} emoji",
    "an emoji of {}",
    "a drawing of {}",
    "{} icon",
    "an icon of {}",
)


def article(phrase: str) -> str:
    """`phrase` with "a" or "an" before it."""
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


def subject(entry: Captions, rng: random.Random) -> str:
    """One short phrase for what the picture shows: its name, mostly, or a trusted keyword."""
    words = [w for w in entry.keywords[:2] if w not in _VAGUE and len(w) > 2]
    if words and entry.group not in ("people & body", "flags") and rng.random() < 0.15:
        return rng.choice(words)
    name = entry.name
    if name.endswith(" face") and entry.group == "animals & nature" and rng.random() < 0.4:
        name = name.removesuffix(" face")
    return name


def style_words(style: str) -> tuple[str, ...]:
    """What captions call a style, the usual word first."""
    return _STYLE_WORDS.get(style, (style,))


def known_styles(entries: Iterable[Captions]) -> tuple[str, ...]:
    """What captions call the styles of a set: those that prompts may name."""
    styles = sorted({entry.style for entry in entries if entry.style})
    return tuple(word for style in styles for word in style_words(style))


def dress(phrase: str, style: str | None, rng: random.Random, *, whole: bool = False) -> str:
    """Turn a subject phrase into a prompt: article, template, style, case, and rarely a typo.

    A `whole` caption gets neither article nor template.
    """
    caption = phrase
    if not whole:
        if rng.random() < 0.55:
            phrase = article(phrase)
        caption = rng.choice(_TEMPLATES).format(phrase)
    if style is not None and rng.random() < 0.4:
        word = rng.choice(style_words(style))
        styled = (f"{caption}, {word} style", f"{word} {phrase}", f"{caption} {word}")
        caption = styled[0] if whole else rng.choice(styled)
    if rng.random() < 0.85:
        caption = caption.lower()
    return _typo(caption, rng) if rng.random() < 0.02 else caption


def _typo(caption: str, rng: random.Random) -> str:
    at = rng.randrange(max(1, len(caption) - 1))
    return caption[:at] + caption[at + 1 : at + 2] + caption[at : at + 1] + caption[at + 2 :]
