"""A request of OpenAI's form, read as a job and as how its pictures are handed over."""

from dataclasses import dataclass

from pydantic import ValidationError

from app.json_body import JsonBody, pointer
from app.resolve import Draft, field_problem
from app.schemas.openai import GenerationOptions
from app.schemas.problems import FieldProblem

__all__ = ["Generation", "read_generation"]

_BACKGROUNDS = {"auto": None, "transparent": "transparent", "opaque": "white"}


@dataclass(frozen=True)
class Generation:
    """What is asked for; faults are noted in the draft, for all to be told at once."""

    draft: Draft
    options: GenerationOptions


def read_generation(body: JsonBody) -> Generation:
    """Take a body apart. Fields that are null are as good as absent, as OpenAI has it."""
    if not isinstance(body.value, dict):
        return Generation(Draft(body), GenerationOptions())
    given = {name: value for name, value in body.value.items() if value is not None}
    own = {name: given.pop(name) for name in GenerationOptions.model_fields if name in given}
    options, faults = _read_options(own)
    faults += _translate(given)
    draft = Draft(JsonBody(given, body.surrogates))
    draft.errors += faults
    return Generation(draft, options)


def _read_options(own: dict[str, object]) -> tuple[GenerationOptions, list[FieldProblem]]:
    try:
        options = GenerationOptions.model_validate(own)
    except ValidationError as error:
        return GenerationOptions(), [field_problem(entry) for entry in error.errors()]
    faults: list[FieldProblem] = []
    if options.stream and options.response_format == "url":
        message = "A stream carries its pictures itself; use b64_json"
        faults.append(FieldProblem(pointer="/response_format", message=message))
    if options.partial_images and not options.stream:
        message = "Partial images need stream = true"
        faults.append(FieldProblem(pointer="/partial_images", message=message))
    return options, faults


def _translate(given: dict[str, object]) -> list[FieldProblem]:
    """Put values that only OpenAI has into the words of a job."""
    if given.get("size") == "auto":
        del given["size"]
    background = given.pop("background", "auto")
    if not isinstance(background, str) or background not in _BACKGROUNDS:
        message = f"{background!r:.60} should be auto, transparent or opaque"
        return [FieldProblem(pointer=pointer("background"), message=message)]
    if (colour := _BACKGROUNDS[background]) is not None:
        given["background"] = colour
    return []
