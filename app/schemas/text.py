"""Which texts are accepted as prompts."""

import unicodedata

from pydantic_core import PydanticCustomError

__all__ = ["NEGATIVE_PATTERN", "PROMPT_PATTERN", "check_negative", "check_prompt"]

MAX_CHARACTERS = 1000

# For the OpenAPI document: something besides white space, no control characters inside, and so many
# characters at most; white space around them is not counted, as a `maxLength` would.
_INSIDE, _AT_ENDS = r"[^\x00-\x1f\x7f-\x9f]", r"[^\s\x00-\x1f\x7f-\x9f]"
_SAID = rf"{_AT_ENDS}({_INSIDE}{{0,{MAX_CHARACTERS - 2}}}{_AT_ENDS})?"
PROMPT_PATTERN = rf"^\s*{_SAID}\s*$"
NEGATIVE_PATTERN = rf"^\s*({_SAID})?\s*$"

# `str.isspace` also holds for these; as separators of records they are refused, not stripped.
_SEPARATORS = "\x1c\x1d\x1e\x1f\x85"
# Categories of what shows nothing: formats (zero width), spaces, line and paragraph separators.
_INVISIBLE = frozenset({"Cf", "Zs", "Zl", "Zp"})


def check_prompt(text: str) -> str:
    """The text without white space around it: 1 to 1000 characters, counted as code points.

    Raises:
        PydanticCustomError: it is blank, too long, or has a control character.
    """
    said = check_negative(text)
    if not said:
        raise PydanticCustomError("blank", "The text is blank; say what to draw")
    return said


def check_negative(text: str) -> str:
    """The same, but nothing need be said; "" for what shows nothing.

    Raises:
        PydanticCustomError: it is too long, or has a control character.
    """
    stripped = _strip(text)
    if stripped.isascii() and stripped.isprintable() and len(stripped) <= MAX_CHARACTERS:
        return stripped  # as nearly all are
    for at, character in enumerate(stripped):
        if unicodedata.category(character) == "Cc":
            raise PydanticCustomError(
                "control_character",
                "Character {at} is the control character U+{code}; use printable text",
                {"at": at, "code": f"{ord(character):04X}"},
            )
    if all(unicodedata.category(character) in _INVISIBLE for character in stripped):
        return ""
    if len(stripped) > MAX_CHARACTERS:
        raise PydanticCustomError(
            "too_long",
            "The text has {length} characters; the most is {most}",
            {"length": len(stripped), "most": MAX_CHARACTERS},
        )
    return stripped


def _strip(text: str) -> str:
    begin, end = 0, len(text)
    while begin < end and _is_space(text[begin]):
        begin += 1
    while end > begin and _is_space(text[end - 1]):
        end -= 1
    return text[begin:end]


def _is_space(character: str) -> bool:
    return character.isspace() and character not in _SEPARATORS
