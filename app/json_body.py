"""Reading JSON bodies strictly: what two readers could understand differently is refused."""

import json
from collections import Counter
from typing import Any, NamedTuple, NoReturn, cast

from app.errors import MalformedJson
from app.field_problems import pointer

__all__ = ["JsonBody", "read_json"]

MAX_DEPTH = 32
# Longer integers are out of every range here, as those of so many digits are.
_MOST_DIGITS = 300


class JsonBody(NamedTuple):
    """A parsed body, and pointers to texts that held lone surrogates (now `?`)."""

    value: object
    surrogates: list[str]


def read_json(raw: bytes) -> JsonBody:
    """Parse a body.

    Raises:
        MalformedJson: it is not UTF-8, not JSON, has NaN or Infinity, a key twice, or is nested
            deeper than 32 levels.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedJson(f"Byte {error.start} of the body is not UTF-8") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        what = error.msg.removesuffix(" at")
        raise MalformedJson(f"The body is not JSON: {what} at {where}") from None
    except RecursionError:
        raise MalformedJson(f"The body is nested deeper than {MAX_DEPTH} levels") from None
    if text.isascii() and "\\" not in text and text.count("{") + text.count("[") <= MAX_DEPTH:
        return JsonBody(value, [])  # nothing is escaped, and nothing can be nested deeper
    surrogates: list[str] = []
    return JsonBody(_clean(value, (), surrogates), surrogates)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise MalformedJson(f"The key {twice[:80]!r} comes twice in one object; give it once")
    return members


def _no_number(word: str) -> NoReturn:
    raise MalformedJson(f"{word} is not JSON; numbers are finite")


def _integer(digits: str) -> int:
    return int(digits[:_MOST_DIGITS])


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_number, parse_int=_integer
)


def _clean(value: object, path: tuple[str | int, ...], surrogates: list[str]) -> object:
    if len(path) > MAX_DEPTH:
        raise MalformedJson(f"The body is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return _clean_text(value, path, surrogates)
    if isinstance(value, list):
        return [_clean(item, (*path, at), surrogates) for at, item in enumerate(value)]
    if isinstance(value, dict):
        return {
            _clean_text(name, (*path, name), surrogates): _clean(item, (*path, name), surrogates)
            for name, item in cast(dict[str, Any], value).items()
        }
    return value


def _clean_text(text: str, path: tuple[str | int, ...], surrogates: list[str]) -> str:
    if text.isascii():
        return text
    # A pair of escapes is one character already; what is left alone stands for none.
    cleaned = text.encode("utf-8", "replace").decode()
    if any("\ud800" <= character <= "\udfff" for character in text):
        surrogates.append(pointer(*path).encode("utf-8", "replace").decode())
    return cleaned
