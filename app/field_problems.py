"""pydantic's errors as clients see them: in the words of JSON, with what came."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.schemas.problems import FieldProblem

__all__ = ["field_problem", "not_valid", "pointer"]

_SHOWN_CHARACTERS = 60
# What a regular expression says to programs.
_FORMS = {
    "size": '"WxH" in pixels, as "64x64"',
    "background": '"transparent", "white" or "#rrggbb"',
    "cursor": "`next_cursor` of an answer, as it was given",
}


def pointer(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def field_problem(entry: Mapping[str, Any]) -> FieldProblem:
    """What is wrong with one field, and what would be right."""
    return FieldProblem(pointer=pointer(*entry["loc"]), message=_message(entry))


def not_valid(problems: Sequence[FieldProblem]) -> str:
    """One sentence that names all wrong fields."""
    names = dict.fromkeys(problem.pointer[:80] or "the body" for problem in problems)
    return f"Not valid: {', '.join(names)}"


def _message(entry: Mapping[str, Any]) -> str:
    path, context, message = entry["loc"], entry.get("ctx", {}), str(entry["msg"])
    match entry["type"]:
        case "extra_forbidden":
            return "No such field; check the spelling"
        case "missing":
            return "Is needed"
        case "model_type" if not path:
            return "The body should be a JSON object"
        case "too_long" if "max_length" in context:
            return f"Should have at most {context['max_length']} items"
        case "control_character" | "blank" | "too_long" | "too_large":
            return message
        case "model_type" | "dict_type":
            message = "Should be an object"
        case "list_type" | "tuple_type":
            message = "Should be an array"
        case "int_parsing":
            message = "Input should be a valid integer"
        case "string_pattern_mismatch" if path and path[-1] in _FORMS:
            message = f"Should be {_FORMS[path[-1]]}"
    return f"{message}, not {_shown(entry['input'])}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
