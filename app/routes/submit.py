"""`POST /v1/jobs`: validate, admit, enqueue, and wait where the client prefers so."""

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from redis.exceptions import RedisError
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from app import errors
from app.admission import Admission, admit
from app.auth import Caller
from app.bodies import job_body, read_job
from app.deps import Services, services_of, submitting_caller
from app.documentation import header, json_body, problems, request_header
from app.hang_up import HUNG_UP, ClientGone
from app.jobs.record import JobRecord
from app.present import job_objects, poll_hint_s
from app.request_headers import (
    KEY_PATTERN,
    MAX_WAIT_S,
    idempotency_key,
    preferred_wait_s,
    require_json,
)
from app.resolve import Draft
from app.schemas.jobs import JobCreate, JobObject

__all__ = ["PATH", "router"]

PATH = "/v1/jobs"


class _Plain(APIRoute):
    """A route of the document whose function is called as it is, with nothing but the request.

    It is the busiest: what FastAPI would do around it takes as long as the submission itself.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["path"] != self.path or scope.get("method") != "POST":
            return super().matches(scope)
        return Match.FULL, {"endpoint": self.endpoint, "path_params": {}, "route": self}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        response: Response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


router = APIRouter(tags=["Jobs"], route_class=_Plain)

# Read by the route itself, since each may come more than once.
_HEADERS = [
    request_header(
        "Idempotency-Key",
        "≤ 255 printable characters, bare or quoted: makes a retry safe",
        pattern=KEY_PATTERN,
    ),
    request_header("Prefer", f"`wait=N`: wait up to N ≤ {MAX_WAIT_S} s for the end"),
]
_ANSWER_HEADERS = {
    "Location": header("Path of the job"),
    "Preference-Applied": header("`wait=N` where the server waited"),
    "RateLimit-Policy": header("The key's limit, where there is one"),
    "RateLimit": header("What the key has left, where there is a limit"),
}
_REPLAY_HEADERS = {"Idempotency-Replayed": header("`true`: this job was made before")}
_POLL = {"Retry-After": header("Poll hint in seconds, while the job is not terminal", "integer")}


@router.post(
    PATH,
    status_code=202,
    summary="Submit a job",
    response_model=JobObject,
    openapi_extra=json_body(JobCreate) | {"parameters": _HEADERS},
    responses={
        202: {"description": "The job is queued", "headers": _ANSWER_HEADERS | _POLL},
        200: {
            "description": "The job ended within `Prefer: wait`, was answered from storage, "
            "or was made before",
            "model": JobObject,
            "headers": _ANSWER_HEADERS | _REPLAY_HEADERS | _POLL,
        },
        **problems(
            *(errors.MalformedJson, errors.Unauthorized, errors.Forbidden, errors.ModelNotFound),
            *(errors.BodyTooLarge, errors.UnsupportedMediaType, errors.InvalidRequest),
            *(
                errors.IdempotencyKeyReused,
                errors.PolicyViolation,
                errors.QuotaExceeded,
                errors.QueueFull,
                errors.StorageFull,
            ),
        ),
    },
)
async def submit_job(request: Request) -> Response:
    """Ask for images. The answer names the job; its images come when it has succeeded."""
    services, caller = services_of(request), await submitting_caller(request)
    headers = request.headers
    try:
        async with job_body(request, services) as raw:
            admission = await _admitted(request, services, caller, raw)
    except ClientGone:
        return Response(status_code=HUNG_UP)
    wait_s = preferred_wait_s(headers.getlist("prefer"))
    current = await _current(services, admission, wait_s)
    ahead = {current.id: admission.ahead} if current is admission.record else None
    [job] = await job_objects(services, [current], ahead)
    return Response(
        job.model_dump_json(),
        200 if admission.replayed or job.status.terminal else 202,
        _headers(job, wait_s, replayed=admission.replayed),
        "application/json",
    )


async def _admitted(request: Request, services: Services, caller: Caller, raw: bytes) -> Admission:
    require_json(request.headers)
    key = idempotency_key(request.headers.getlist("idempotency-key"))
    draft = Draft(read_job(raw, services.settings.max_body_bytes))
    if services.audit.prompts:
        request.scope["state"]["prompt"] = draft.fields.prompt
    return await admit(services, caller, draft, idempotency_key=key)


def _headers(job: JobObject, wait_s: int | None, *, replayed: bool) -> dict[str, str]:
    headers = {"Location": f"/v1/jobs/{job.id}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
    if not job.status.terminal:
        headers["Retry-After"] = str(poll_hint_s(job))
    return headers


async def _current(services: Services, admission: Admission, wait_s: int | None) -> JobRecord:
    """The job as the answer shows it: just made, made before, or ended within the wait."""
    made = admission.record
    if not admission.replayed and (not wait_s or made.status.terminal):
        return made
    try:
        current = await services.events.wait_until_terminal(admission.job_id, wait_s or 0)
    except RedisError:
        if admission.replayed:
            raise
        return made  # it is in the queue, and its id must not be lost
    if current is None:  # expired just now
        raise errors.Unavailable(
            "The job has just expired; submit again", headers={"Retry-After": "1"}
        )
    return current
