"""Compositions that training must never show, so that evaluation can ask for them."""

import re
from dataclasses import dataclass
from pathlib import Path

from models.errors import DatasetError

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
    return frozenset(re.findall(r"\w[\w'-]*", text.lower())) - _RELATIONS


@dataclass(frozen=True)
class HeldOut:
    """`prompts`: the content words of every held-out composition."""

    prompts: tuple[frozenset[str], ...] = ()

    def forbids(self, caption: str) -> bool:
        """Whether a *made* caption names everything that a held-out prompt names."""
        words = content_words(caption)
        return any(prompt <= words for prompt in self.prompts)


def read_heldout(path: Path | None) -> HeldOut:
    """Read `heldout.txt` (rows `prompt<TAB>text`); a missing file holds nothing out.

    Raises:
        DatasetError: the file cannot be read, or a prompt names nothing.
    """
    if path is None or not path.exists():
        return HeldOut()
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as fault:  # ValueError: not UTF-8
        raise DatasetError(f"{str(path)!r} cannot be read: {fault}") from None
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, 1)]
    asked = [(number, row[1:2]) for number, row in rows if row[0].split()[:1] == ["prompt"]]
    return HeldOut(tuple(_prompt(path, number, text) for number, text in asked))


def _prompt(path: Path, number: int, text: list[str]) -> frozenset[str]:
    words = content_words("".join(text))
    if not words:  # no words would forbid every caption
        raise DatasetError(
            f"{str(path)!r}, line {number}: the prompt names nothing; "
            "write 'prompt', a tab, and the words of a composition"
        )
    return words
