"""OpenAI's Images API on the wire, as far as it has a meaning here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from app.jobs.record import OutputFormat
from app.schemas.jobs import JobCreate, Text

__all__ = [
    "CompletedEvent",
    "EditOptions",
    "ErrorAnswer",
    "ErrorDetails",
    "GeneratedImage",
    "GenerationOptions",
    "ImageEdit",
    "ImageGeneration",
    "ImageVariation",
    "Images",
    "PartialImageEvent",
]

MAX_PARTIAL_IMAGES = 3
_OUTSIDE = ("title", "description", "default")  # of a schema's choices
_IGNORED = "Accepted and ignored"

Background = Literal["transparent", "opaque"]


class GenerationOptions(BaseModel):
    """What a generation has beyond a job: how its pictures are handed over."""

    model_config = ConfigDict(strict=True)

    response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description="Pictures in the answer, or signed URLs of them"
    )
    stream: bool = Field(False, description="Server-sent events; needs b64_json")
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] = Field(
        0, description="With `stream`: previews of the first picture"
    )
    output_compression: Annotated[int, Field(ge=0, le=100)] = Field(
        100, description="Accepted and ignored: pictures are kept at the best quality"
    )
    user: str | None = Field(None, description=_IGNORED)
    safety_identifier: str | None = Field(None, description=_IGNORED)
    quality: str | None = Field(None, description=_IGNORED)
    style: str | None = Field(None, description=_IGNORED)
    moderation: str | None = Field(None, description=_IGNORED)
    complexity: str | None = Field(None, description=_IGNORED)


class EditOptions(GenerationOptions):
    """What an edit has beyond that."""

    input_fidelity: str | None = Field(None, description=_IGNORED)


def _document(schema: dict[str, Any]) -> None:
    """Every field but the prompt may be null."""
    schema["examples"] = [{"prompt": "a red apple", "size": "auto"}]
    for name, field in schema["properties"].items():
        choices = field.get("anyOf", [])
        if name != "prompt" and {"type": "null"} not in choices:
            kept = {key: field.pop(key) for key in _OUTSIDE if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **kept}


class _Look(GenerationOptions):
    """The fields of a job that have other values here."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_document)

    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None = Field(
        None, description="`auto`, or one of the model's sizes"
    )
    background: Literal["auto", "transparent", "opaque"] | None = Field(
        None, description="`opaque` is white; `auto`: the model's default"
    )


# For the OpenAPI document; what comes in is read as options and as a job.
ImageGeneration: type[BaseModel] = create_model(
    "ImageGeneration",
    __base__=_Look,
    __doc__="A request for images, with OpenAI's fields and those of a job. null: the default.",
    **{  # type: ignore[call-overload]  # fields made at run time
        name: (field.annotation, field)
        for name, field in JobCreate.model_fields.items()
        if name not in _Look.model_fields
    },
)


_Files = Annotated[list[bytes], Field(min_length=1, max_length=16)]
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
# What a form cannot carry, and what stands there as a file.
_NO_PART = {"init_image", "mask", "metadata", "guidance_interval", "compose", "prompt"}


def _document_form(schema: dict[str, Any]) -> None:
    """Parts are files or text, and none is null; each file under `image` or `image[]`."""
    for name, field in schema["properties"].items():
        kinds = [one for one in field.pop("anyOf", []) if one != {"type": "null"}]
        if len(kinds) == 1:
            field |= kinds[0]
        elif kinds:
            field["anyOf"] = kinds
        if field.get("default", "") is None:
            del field["default"]
        if name in ("image", "mask"):
            about = field.get("description", "")
            many = {"type": "array", "items": _FILE, "minItems": 1, "maxItems": 16}
            field.clear()
            field |= (many if name == "image" else _FILE) | {"description": about}


class _Form(EditOptions):
    """The parts of a form."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_document_form)

    image: _Files = Field(description="PNG, WebP or JPEG; further ones than the first are ignored")
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None = None
    background: Literal["auto", "transparent", "opaque"] | None = None


class _Edit(_Form):
    prompt: Text
    mask: bytes | None = Field(
        None, description="Of the first picture's size: what is transparent is drawn anew"
    )


def _form_of(name: str, base: type[BaseModel], doc: str) -> type[BaseModel]:
    kept = {
        field: (about.annotation, about)
        for field, about in JobCreate.model_fields.items()
        if field not in base.model_fields and field not in _NO_PART
    }
    return create_model(name, __base__=base, __doc__=doc, **kept)  # type: ignore[call-overload,no-any-return]


# For the OpenAPI document, as `ImageGeneration` is.
ImageEdit = _form_of("ImageEdit", _Edit, "A picture to draw over, by OpenAI's fields and a job's.")
ImageVariation = _form_of("ImageVariation", _Form, "A picture to draw others like.")


class GeneratedImage(BaseModel):
    """One picture; one of both is there."""

    b64_json: str | None = None
    url: str | None = None


class Images(BaseModel):
    """The pictures of one request, in the order of their seeds."""

    created: int
    data: list[GeneratedImage]
    background: Background
    output_format: OutputFormat
    size: str


class _ImageEvent(BaseModel):
    b64_json: str
    created_at: int
    size: str
    quality: Literal["auto"] = "auto"
    background: Background
    output_format: OutputFormat


class PartialImageEvent(_ImageEvent):
    """What the first picture would be if it ended now, in native size."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    partial_image_index: int


class _InputTokens(BaseModel):
    image_tokens: int = 0
    text_tokens: int = 0


class _Usage(BaseModel):
    """Nothing is counted here: there are no tokens to pay for."""

    input_tokens: int = 0
    input_tokens_details: _InputTokens = _InputTokens()
    output_tokens: int = 0
    total_tokens: int = 0


class CompletedEvent(_ImageEvent):
    """One finished picture."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    usage: _Usage = _Usage()


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str = Field(description="invalid_request_error, rate_limit_error, server_error …")
    param: str | None = Field(description="The first wrong field")
    code: str | None = Field(description="Stable: decide by this")


class ErrorAnswer(BaseModel):
    """Every error answer of OpenAI's routes."""

    error: ErrorDetails
