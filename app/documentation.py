"""What the OpenAPI document says beyond what routes declare by themselves."""

from collections.abc import Collection
from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from app.errors import INTERNAL, PROBLEMS, ApiError, Kind
from app.errors import Unavailable as _Unavailable
from app.examples import EXAMPLES
from app.schemas.jobs import JobCreate
from app.schemas.models import ModelMove
from app.schemas.openai import ErrorAnswer, ImageEdit, ImageGeneration, ImageVariation
from app.schemas.problems import ProblemDetails

__all__ = [
    "form_body",
    "header",
    "install",
    "json_body",
    "openai_problems",
    "problems",
    "request_header",
    "with_sizes",
]

_SENT = (JobCreate, ImageGeneration, ImageEdit, ImageVariation)
_SCHEMAS = "#/components/schemas/"
_DESCRIPTION = """Text to image: submit a prompt as a job, follow it, fetch its pictures.

Errors are problem details (RFC 9457); decide by `type`. Every answer has `X-Request-Id`."""


def problems(*errors: type[ApiError]) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may end in these errors; 500 and 503 may happen to any."""
    by_status: dict[int | str, list[Kind]] = {}
    for kind in [*(PROBLEMS[error] for error in (*errors, _Unavailable)), INTERNAL]:
        kinds = by_status.setdefault(kind.status, [])
        if kind not in kinds:
            kinds.append(kind)
    return {status: _response(kinds) for status, kinds in by_status.items()}


def openai_problems(*errors: type[ApiError]) -> dict[int | str, dict[str, Any]]:
    """The same for a route that speaks OpenAI's form."""
    responses = problems(*errors)
    for response in responses.values():
        response["content"] = {"application/json": {"schema": _reference(ErrorAnswer)}}
    return responses


def header(description: str, schema: str = "string") -> dict[str, Any]:
    """A response header."""
    return {"description": description, "schema": {"type": schema}}


def request_header(name: str, description: str, **schema: str) -> dict[str, Any]:
    """A header that may come with a request: an entry of `parameters`."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "schema": {"type": "string", "title": name} | schema,
        "description": description,
    }


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its JSON body itself."""
    content = {"application/json": {"schema": _reference(model)}}
    return {"requestBody": {"required": True, "content": content}}


def form_body(model: type[BaseModel]) -> dict[str, Any]:
    """The same for a body of multipart/form-data."""
    content = {"multipart/form-data": {"schema": _reference(model)}}
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI, *, key_needed: bool) -> None:
    """Let `app.openapi()` give the whole contract."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, key_needed)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def with_sizes(document: dict[str, Any], sizes: Collection[str]) -> dict[str, Any]:
    """The document with the sizes ("WxH") that can be asked for here, instead of their form."""
    document = deepcopy(document)
    for model in _SENT:
        also = [] if model is JobCreate else ["auto"]
        none = [] if model in (ImageEdit, ImageVariation) else [None]
        size = document["components"]["schemas"][model.__name__]["properties"]["size"]
        for form in ("type", "pattern"):
            size.pop(form, None)
        size["anyOf"] = [{"enum": [*also, *sizes, *none]}]
    return document


def _build(app: FastAPI, key_needed: bool) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        description=_DESCRIPTION,
        routes=app.routes,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in (*_SENT, ProblemDetails, ErrorAnswer, ModelMove):
        schemas |= _definitions(model)
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own; never sent here
        schemas.pop(name, None)
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key"}
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _finish(operation, private=path.startswith("/v1/"), key_needed=key_needed)
    return document


def _finish(operation: dict[str, Any], *, private: bool, key_needed: bool) -> None:
    if private:
        operation["security"] = [{"key": []}] if key_needed else [{}, {"key": []}]
    for response in operation["responses"].values():
        if "HTTPValidationError" in str(response.get("content")):
            response["content"] = _problem_content()
        response.setdefault("headers", {})["X-Request-Id"] = header("The request's id")


def _definitions(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=_SCHEMAS + "{model}", by_alias=True)
    return {**schema.pop("$defs", {}), model.__name__: schema}


def _response(kinds: list[Kind]) -> dict[str, Any]:
    listed = ", ".join(f"{kind.title} (`{kind.type}`)" for kind in kinds)
    response: dict[str, Any] = {"description": listed, "content": _problem_content()}
    if kinds[0].status in (429, 503):
        response["headers"] = {"Retry-After": header("Seconds to wait, at most 60", "integer")}
    if kinds[0].status == 401:
        response["headers"] = {"WWW-Authenticate": header("`Bearer`")}
    return response


def _problem_content() -> dict[str, Any]:
    return {"application/problem+json": {"schema": _reference(ProblemDetails)}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"{_SCHEMAS}{model.__name__}"}
