"""`POST /v1/jobs`: validate, admit, enqueue, and wait where the client prefers so."""

import hashlib
import json
import time
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from app import errors
from app.deps import Services, ServicesDep, SubmitterDep
from app.documentation import header, json_body, problems
from app.jobs import submit
from app.jobs.ids import new_job_id
from app.jobs.models import ModelCard
from app.jobs.record import JobRecord, JobRequest
from app.json_body import read_json
from app.present import job_objects, poll_hint_s
from app.request_headers import (
    KEY_PATTERN,
    MAX_WAIT_S,
    idempotency_key,
    preferred_wait_s,
    require_json,
)
from app.resolve import Draft, resolve
from app.schemas.jobs import JobCreate, JobObject

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["Jobs"])

_FULL_RETRY_S = "5"
_ANSWER_HEADERS = {
    "Location": header("Path of the job"),
    "Preference-Applied": header("`wait=N` where the server waited"),
    "RateLimit-Policy": header("The key's limit, where there is one"),
    "RateLimit": header("What the key has left, where there is a limit"),
}
_REPLAY_HEADERS = {"Idempotency-Replayed": header("`true`: this job was made before")}
_POLL = {"Retry-After": header("Poll hint in seconds, while the job is not terminal", "integer")}


@router.post(
    "/jobs",
    status_code=202,
    summary="Submit a job",
    openapi_extra=json_body(JobCreate),
    responses={
        202: {"description": "The job is queued", "headers": _ANSWER_HEADERS | _POLL},
        200: {
            "description": "The job ended within `Prefer: wait`, or was made before",
            "model": JobObject,
            "headers": _ANSWER_HEADERS | _REPLAY_HEADERS | _POLL,
        },
        **problems(
            *(errors.MalformedJson, errors.Unauthorized, errors.Forbidden, errors.ModelNotFound),
            *(errors.BodyTooLarge, errors.UnsupportedMediaType, errors.InvalidRequest),
            *(errors.IdempotencyKeyReused, errors.QuotaExceeded, errors.QueueFull),
        ),
    },
)
async def submit_job(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: SubmitterDep,
    idempotency: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="≤ 255 printable characters, bare or quoted: makes a retry safe",
            json_schema_extra={"pattern": KEY_PATTERN},
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        Header(alias="Prefer", description=f"`wait=N`: wait up to N ≤ {MAX_WAIT_S} s for the end"),
    ] = None,
) -> JobObject:
    """Ask for images. The answer names the job; its images come when it has succeeded."""
    headers = request.headers
    require_json(headers)
    key = idempotency_key(headers.getlist("idempotency-key"))
    draft = Draft(read_json(await request.body()))
    resolved = resolve(draft, await _card(services, draft))
    caller.require_priority(resolved.priority)
    record = _new_record(services, caller.owner, resolved, draft.fields.metadata)
    unique = None if key is None else submit.Idempotency(key, _fingerprint(draft.fields))
    outcome = await services.submitter.submit(record, unique)
    wait_s = preferred_wait_s(headers.getlist("prefer"))
    current = await _current(services, record, _admitted(outcome), wait_s)
    replayed = isinstance(outcome, submit.Replayed)
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    if wait_s is not None:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    response.status_code = 200 if replayed or current.status.terminal else 202
    return await _answer(services, current, response)


async def _current(
    services: Services, record: JobRecord, job_id: str, wait_s: int | None
) -> JobRecord:
    """The job as the answer shows it: just made, made before, or ended within the wait."""
    if not wait_s and job_id == record.id:
        return record
    current = await services.events.wait_until_terminal(job_id, wait_s or 0)
    if current is None:  # expired just now
        raise errors.Unavailable(
            "The job has just expired; submit again", headers={"Retry-After": "1"}
        )
    return current


async def _answer(services: Services, record: JobRecord, response: Response) -> JobObject:
    [job] = await job_objects(services, [record])
    response.headers["Location"] = f"/v1/jobs/{record.id}"
    if not record.status.terminal:
        response.headers["Retry-After"] = str(poll_hint_s(job))
    return job


async def _card(services: Services, draft: Draft) -> ModelCard:
    name = draft.fields.model
    cards = await services.cards.all()
    card = await services.cards.default() if name is None else cards.get(name)
    if card is not None:
        return card
    draft.check()
    if not cards:
        raise errors.Unavailable(
            "No worker has announced a model yet; try again soon", headers={"Retry-After": "5"}
        )
    known = ", ".join(repr(known) for known in cards)
    raise errors.ModelNotFound(f"There is no model {name!r}; known: {known}")


def _new_record(
    services: Services, owner: str, resolved: JobRequest, metadata: dict[str, str]
) -> JobRecord:
    now, retention_s = round(time.time(), 6), services.settings.retention_s  # as stored
    return JobRecord(
        id=new_job_id(now),
        owner=owner,
        created_at=now,
        expires_at=round(now + retention_s, 6),
        retention_s=retention_s,
        request=resolved,
        total_steps=resolved.steps,
        metadata=metadata,
    )


def _fingerprint(fields: JobCreate) -> str:
    """The same for bodies that say the same, however they are spaced and ordered."""
    given = fields.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _admitted(outcome: submit.Outcome) -> str:
    retry = {"Retry-After": _FULL_RETRY_S}
    match outcome:
        case submit.Accepted(job_id) | submit.Replayed(job_id):
            return job_id
        case submit.IdempotencyMismatch():
            raise errors.IdempotencyKeyReused(
                "This Idempotency-Key came with another body; use a new key for a new request"
            )
        case submit.QueueFull(waiting):
            raise errors.QueueFull(f"{waiting} jobs wait already; try again soon", headers=retry)
        case submit.TooManyActive(active):
            raise errors.QuotaExceeded(
                f"{active} of your jobs are queued or running, which is the most; let some end",
                headers=retry,
                extra={"violated-policies": ["concurrency"]},
            )
