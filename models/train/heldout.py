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
    """What the prompts of a `heldout.txt` name; a missing file holds nothing out.

    Raises:
        DatasetError: as of `held_out_prompts`.
    """
    prompts = [] if path is None else held_out_prompts(path)
    return HeldOut(tuple(content_words(prompt) for prompt in prompts))


def held_out_prompts(path: Path) -> list[str]:
    """The texts of its rows `prompt<TAB>text`; none where there is no such file.

    Raises:
        DatasetError: the file cannot be read, or a prompt names nothing.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as fault:  # ValueError: not UTF-8
        raise DatasetError(f"{str(path)!r} cannot be read: {fault}") from None
    prompts: list[str] = []
    for number, line in enumerate(lines, 1):
        kind, _, text = line.partition("\t")
        if kind.split()[:1] != ["prompt"]:
            continue
        prompts.append(text.partition("\t")[0])
        if not content_words(prompts[-1]):  # no words would forbid every caption
            raise DatasetError(
                f"{str(path)!r}, line {number}: the prompt names nothing; "
                "write 'prompt', a tab, and the words of a composition"
            )
    return prompts
