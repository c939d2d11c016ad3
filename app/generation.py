"""A request of OpenAI's form, read as a job and as how its pictures are handed over."""

import json
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from app.field_problems import field_problem, pointer
from app.json_body import JsonBody
from app.resolve import Draft
from app.schemas.openai import EditOptions, GenerationOptions
from app.schemas.problems import FieldProblem

__all__ = ["Generation", "Kind", "read_form", "read_generation"]

Kind = Literal["edit", "variation"]

_BACKGROUNDS = {"auto": None, "transparent": "transparent", "opaque": "white"}
# Of the parts of a form, which are all texts.
_WHOLE = {"n", "seed", "steps", "best_of", "partial_images", "output_compression"}
_NUMBERS = {"guidance_scale", "strength"}
_YES_OR_NO = {"stream", "cache"}
# Fields of a job that a form has not; its name of a picture, and that of the job's field.
_NO_PARTS: dict[Kind, set[str]] = {
    "edit": {"init_image", "metadata", "guidance_interval", "compose"},
    "variation": {"init_image", "metadata", "guidance_interval", "compose", "mask", "prompt"},
}
_FILES: dict[Kind, dict[str, str]] = {
    "edit": {"image": "init_image", "mask": "mask"},
    "variation": {"image": "init_image"},
}


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
    options, faults = _take_options(given, GenerationOptions)
    faults += _translate(given)
    draft = Draft(JsonBody(given, body.surrogates))
    draft.errors += faults
    return Generation(draft, options)


async def read_form(form: FormData, kind: Kind) -> Generation:
    """Take a form apart; empty texts are as good as absent, as OpenAI has it."""
    given, files, faults = await _parts(form, kind)
    options, wrong = _take_options(given, EditOptions)
    faults += wrong + _translate(given)
    if "init_image" not in files:
        faults.append(FieldProblem(pointer="/image", message="Is needed, as a file"))
    draft = Draft(JsonBody(given, []), files, transparent_mask=True, variation=kind == "variation")
    draft.errors += faults
    return Generation(draft, options)


async def _parts(
    form: FormData, kind: Kind
) -> tuple[dict[str, object], dict[str, bytes], list[FieldProblem]]:
    """Texts as the values that they stand for, the first file of each name, and what is wrong."""
    given: dict[str, object] = {}
    files: dict[str, bytes] = {}
    faults: list[FieldProblem] = []

    def refuse(name: str, message: str) -> None:
        faults.append(FieldProblem(pointer=pointer(name), message=message))

    for part, value in form.multi_items():
        name = part.removesuffix("[]")
        field = _FILES[kind].get(name)
        if isinstance(value, UploadFile):
            if field is None:
                refuse(name, "No such file; check the spelling")
            elif field not in files:  # one picture is started from
                files[field] = await value.read()
        elif field is not None:
            refuse(name, "Should be a file")
        elif name in _NO_PARTS[kind]:
            refuse(name, "No such field; check the spelling")
        elif name in given:
            refuse(name, "Comes twice; give it once")
        elif value != "":
            given[name] = _value(name, value)
    return given, files, faults


def _value(name: str, text: str) -> object:
    """What a text stands for; one that stands for nothing stays, and is refused as such."""
    try:
        if name in _WHOLE:
            return int(text)
        if name in _NUMBERS:
            return float(text)
    except ValueError:
        return text
    if name == "lora":
        return _json(text)
    if name in _YES_OR_NO:
        return {"true": True, "false": False}.get(text.lower(), text)
    return text


def _json(text: str) -> object:
    """A list, written as JSON; other texts stay."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _take_options(
    given: dict[str, object], kind: type[GenerationOptions]
) -> tuple[GenerationOptions, list[FieldProblem]]:
    own = {name: given.pop(name) for name in kind.model_fields if name in given}
    try:
        options = kind.model_validate(own)
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
