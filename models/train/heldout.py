"""Compositions that training must never show, so that evaluation can ask for them."""

import re
from dataclasses import dataclass
from pathlib import Path

# Words that say how things stand together, not what they are.
_RELATIONS = frozenset(
    {
        "a",
        "an",
        "the",
        "in",
        "on",
        "of",
        "with",
        "and",
        "to",
        "inside",
        "under",
        "top",
        "next",
        "wearing",
        "riding",
        "holding",
        "playing",
        "made",
        "face",
    }
)


def content_words(text: str) -> frozenset[str]:
    """The words of a caption that name things and colours."""
    return frozenset(re.findall(r"[a-z][a-z'-]*", text.lower())) - _RELATIONS


@dataclass(frozen=True)
class HeldOut:
    """`prompts`: the content words of every held-out composition."""

    prompts: tuple[frozenset[str], ...] = ()

    def forbids(self, caption: str) -> bool:
        """Whether a *made* caption names everything that a held-out prompt names."""
        words = content_words(caption)
        return any(prompt <= words for prompt in self.prompts)


def read_heldout(path: Path | None) -> HeldOut:
    """Read `heldout.txt` (rows `prompt<TAB>text`); a missing file holds nothing out."""
    if path is None or not path.exists():
        return HeldOut()
    rows = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    return HeldOut(tuple(content_words(row[1]) for row in rows if row[0] == "prompt"))
