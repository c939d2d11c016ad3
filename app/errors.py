"""What can go wrong with a request, and the one table that maps it to problems on the wire."""

import http
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from redis import exceptions as redis_errors
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.field_problems import field_problem, not_valid
from app.jobs.record import RecordTooNew
from app.openai_errors import Form, form_of, openai_error
from app.schemas.problems import FieldProblem, ProblemDetails

__all__ = ["PROBLEMS", "ApiError", "Kind", "install", "problem_details", "problem_response"]

_log = structlog.get_logger()

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class ApiError(Exception):
    """A request that is not served; `detail` is for the client.

    Args:
        detail: one sentence; names what came and what would be right.
        errors: the wrong fields, with 422.
        headers: further headers of the answer.
        extra: further members of the problem.
    """

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


class MalformedJson(ApiError):
    """The body is not JSON, or JSON that readers disagree about."""


class MalformedForm(ApiError):
    """The body is not multipart/form-data, although it says so."""


class Unauthorized(ApiError):
    """No API key, or an unknown one."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(ApiError):
    """The API key may not do that."""


class SignatureInvalid(ApiError):
    """An image URL's signature is not ours for this image and time."""


class SignatureExpired(ApiError):
    """An image URL's time is over."""


class JobNotFound(ApiError):
    """No such job, or another key's."""


class ImageNotFound(ApiError):
    """No such image, or another key's."""


class ModelNotFound(ApiError):
    """No worker announced a model of this name."""


class ModelNotLoaded(ApiError):
    """The model that an operator asked for could not be loaded."""


class NotFound(ApiError):
    """No such page."""


class BodyTooLarge(ApiError):
    """More bytes than the server reads."""


class HeadersTooLarge(ApiError):
    """More headers, or longer ones, than the server reads."""


class AmbiguousRequest(ApiError):
    """Two readers would take it for two things."""


class UnsupportedMediaType(ApiError):
    """The body says it is something else than the route reads."""


class RangeNotSatisfiable(ApiError):
    """The image has no byte in the range asked for."""


class InvalidRequest(ApiError):
    """Fields are wrong; `errors` names all of them."""


class IdempotencyKeyReused(ApiError):
    """The Idempotency-Key came with another body before."""


class PolicyViolation(ApiError):
    """The prompt asks for what this service does not draw."""


class QuotaExceeded(ApiError):
    """The key's rate or number of active jobs is at its limit."""


class QueueFull(ApiError):
    """As many jobs wait as may."""


class StorageFull(ApiError):
    """The images of kept jobs, and those promised to others, leave no room."""


class JobFailed(ApiError):
    """The job behind a synchronous call has failed."""


class JobCanceled(ApiError):
    """The job behind a synchronous call was canceled by its owner."""


class JobNotFinished(ApiError):
    """A synchronous call ran out of time; its job goes on."""


class Unavailable(ApiError):
    """Something behind the API is away; worth another try."""


class NotReady(Unavailable):
    """The readiness probe's bad answer."""


@dataclass(frozen=True)
class Kind:
    """A kind of problem: what clients decide by."""

    status: int
    slug: str
    title: str

    @property
    def type(self) -> str:
        """The problem's `type`."""
        return f"/problems/{self.slug}"


PROBLEMS: Mapping[type[ApiError], Kind] = {
    AmbiguousRequest: Kind(400, "bad-request", "That is no HTTP request"),
    MalformedJson: Kind(400, "malformed-json", "The body is not JSON"),
    MalformedForm: Kind(400, "malformed-form", "The body is not a form"),
    Unauthorized: Kind(401, "unauthorized", "An API key is needed"),
    Forbidden: Kind(403, "forbidden", "The API key may not do that"),
    SignatureInvalid: Kind(403, "signature-invalid", "The signature does not fit"),
    SignatureExpired: Kind(403, "signature-expired", "The signed URL has expired"),
    NotFound: Kind(404, "not-found", "There is nothing here"),
    JobNotFound: Kind(404, "job-not-found", "No such job"),
    ImageNotFound: Kind(404, "image-not-found", "No such image"),
    ModelNotFound: Kind(404, "model-not-found", "No such model"),
    BodyTooLarge: Kind(413, "body-too-large", "The body is too large"),
    UnsupportedMediaType: Kind(415, "unsupported-media-type", "The body is of another kind"),
    RangeNotSatisfiable: Kind(416, "range-not-satisfiable", "No such range"),
    InvalidRequest: Kind(422, "invalid-request", "The request is not valid"),
    PolicyViolation: Kind(422, "content-policy-violation", "The prompt is not drawn here"),
    IdempotencyKeyReused: Kind(422, "idempotency-key-reused", "The Idempotency-Key is taken"),
    ModelNotLoaded: Kind(409, "model-not-loaded", "The model could not be loaded"),
    JobCanceled: Kind(409, "job-canceled", "The job was canceled"),
    HeadersTooLarge: Kind(431, "headers-too-large", "The headers are too large"),
    QuotaExceeded: Kind(429, "quota-exceeded", "A limit of the API key is reached"),
    JobFailed: Kind(500, "job-failed", "The job has failed"),
    QueueFull: Kind(503, "queue-full", "The queue is full"),
    StorageFull: Kind(503, "storage-full", "The storage of images is full"),
    Unavailable: Kind(503, "unavailable", "The service is not available now"),
    NotReady: Kind(503, "not-ready", "The service is not ready"),
    JobNotFinished: Kind(504, "job-not-finished", "The job has not ended in time"),
}
INTERNAL = Kind(500, "internal-error", "Something went wrong on the server")

# Redis answers that pass by themselves; any other error of Redis is a fault of ours.
_REDIS_AWAY = (
    redis_errors.ConnectionError,  # also: still loading, no connection free
    redis_errors.TimeoutError,
    redis_errors.ReadOnlyError,
    redis_errors.OutOfMemoryError,
    redis_errors.MasterDownError,
)
_REDIS_REFUSES = ("MISCONF", "NOREPLICAS", "READONLY", "OOM", "LOADING", "MASTERDOWN", "BUSY")


def problem_details(
    request: Request,
    kind: Kind,
    detail: str,
    *,
    errors: Sequence[FieldProblem] = (),
    extra: Mapping[str, Any] | None = None,
) -> ProblemDetails:
    """What went wrong; text that is no Unicode is replaced, so this cannot fail."""
    return ProblemDetails(
        type=kind.type,
        title=kind.title,
        status=kind.status,
        detail=_printable(detail),
        instance=request.scope.get("state", {}).get("request_id", ""),
        errors=[_printable_field(error) for error in errors] or None,
        **(extra or {}),
    )


def problem_response(
    request: Request,
    kind: Kind,
    detail: str,
    *,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """A problem on the wire, or an error of OpenAI's form where that is spoken."""
    details = problem_details(request, kind, detail, errors=errors, extra=extra)
    noted = request.scope.setdefault("state", {})  # for the metrics
    noted["problem"], noted["policies"] = kind.slug, (extra or {}).get("violated-policies", ())
    form = form_of(request.scope["path"])
    body: dict[str, Any] = {}
    if form is not Form.OPENAI:
        body = details.model_dump(mode="json", by_alias=True, exclude_none=True)
    if form is not Form.PROBLEM:
        body |= openai_error(details).model_dump(mode="json")
    return JSONResponse(
        body,
        status_code=kind.status,
        headers=dict(headers or {}),
        media_type=f"application/{'' if form is Form.OPENAI else 'problem+'}json",
    )


def install(app: FastAPI) -> None:
    """Answer every known exception with a problem."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_bad_parameters)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(redis_errors.RedisError, _on_redis_error)
    app.add_exception_handler(RecordTooNew, _on_newer_record)


async def _on_api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return problem_response(
        request,
        PROBLEMS[type(error)],
        error.detail,
        errors=error.errors,
        headers=error.headers,
        extra=error.extra,
    )


async def _on_bad_parameters(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = [_parameter_problem(entry) for entry in error.errors()]
    kind = PROBLEMS[InvalidRequest]
    return problem_response(request, kind, not_valid(errors), errors=errors)


def _parameter_problem(entry: Mapping[str, Any]) -> FieldProblem:
    place, *names = entry["loc"]
    problem = field_problem({**entry, "loc": names})
    return problem.model_copy(update={"place": "header" if place == "header" else "query"})


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What routing raises: no such path, no such method."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == http.HTTPStatus.NOT_FOUND:
        kind = PROBLEMS[NotFound]
        return problem_response(request, kind, "Nothing lives at this path; see /docs")
    phrase = http.HTTPStatus(error.status_code).phrase
    kind = Kind(error.status_code, phrase.lower().replace(" ", "-"), phrase)
    if error.status_code != http.HTTPStatus.METHOD_NOT_ALLOWED:
        return problem_response(request, kind, phrase, headers=error.headers)
    allowed = ", ".join(_allowed(request))
    detail = f"{request.method} has no meaning at this path; it knows {allowed}"
    return problem_response(request, kind, detail, headers={"Allow": allowed})


def _allowed(request: Request) -> list[str]:
    """The methods of all routes of this path; routing itself only names those of the first."""
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": "GET" if method == "HEAD" else method})[0]
            is Match.FULL
            for route in request.app.routes
        )
    ]


async def _on_redis_error(request: Request, error: Exception) -> Response:
    away = isinstance(error, _REDIS_AWAY) or str(error).startswith(_REDIS_REFUSES)
    if not away:
        raise error
    # As many lines as there are requests would bury the others; `Outage` tells of the outage.
    _log.debug("redis is away", reason=type(error).__name__)
    there = isinstance(error, redis_errors.ResponseError)
    what = "takes nothing in" if there else "cannot be reached"
    return problem_response(
        request,
        PROBLEMS[Unavailable],
        f"The job queue {what} at the moment; try again soon",
        headers={"Retry-After": "2"},
    )


async def _on_newer_record(request: Request, error: Exception) -> Response:
    _log.warning("a record of a later release", reason=str(error))
    return problem_response(
        request,
        PROBLEMS[Unavailable],
        "The job was made by a later release of this service, which is being upgraded; "
        "try again soon",
        headers={"Retry-After": "5"},
    )


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _printable_field(field: FieldProblem) -> FieldProblem:
    return field.model_copy(
        update={"pointer": _printable(field.pointer), "message": _printable(field.message)}
    )
