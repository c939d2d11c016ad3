"""Submit, follow, list and cancel jobs."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from app.deps import CallerDep, ChangerDep, Services, ServicesDep, own_record
from app.documentation import header, problems
from app.errors import Forbidden, InvalidRequest, JobNotFound, Unauthorized
from app.jobs.reader import Position
from app.jobs.record import JobRecord
from app.present import job_objects, poll_hint_s
from app.schemas.jobs import JobList, JobListQuery, JobObject

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["Jobs"])

_JOB_ERRORS = problems(Unauthorized, Forbidden, JobNotFound, InvalidRequest)
_POLL = {"Retry-After": header("Poll hint in seconds, while the job is not terminal", "integer")}

JobId = Annotated[str, Path(description="The job's id")]


@router.get(
    "/jobs/{job_id}",
    summary="Follow a job",
    responses={200: {"headers": _POLL}, **_JOB_ERRORS},
)
async def get_job(
    job_id: JobId, response: Response, services: ServicesDep, caller: CallerDep
) -> JobObject:
    """The job as it is now."""
    return await _answer(services, await own_record(services, caller, job_id), response)


@router.get(
    "/jobs",
    summary="List jobs",
    responses=problems(Unauthorized, Forbidden, InvalidRequest),
)
async def list_jobs(
    query: Annotated[JobListQuery, Query()], services: ServicesDep, caller: CallerDep
) -> JobList:
    """The caller's jobs, newest first. Pages stay as they are while new jobs come in."""
    page = await services.reader.page(
        caller.owner,
        limit=query.limit,
        after=_read_cursor(query.cursor) if query.cursor is not None else None,
        status=query.status,
    )
    return JobList(
        data=await job_objects(services, page.records),
        next_cursor=_write_cursor(page.next) if page.next is not None else None,
    )


@router.post(
    "/jobs/{job_id}/cancel",
    summary="Cancel a job",
    responses={200: {"headers": _POLL}, **_JOB_ERRORS},
)
async def cancel_job(
    job_id: JobId, response: Response, services: ServicesDep, caller: ChangerDep
) -> JobObject:
    """A queued job never runs, a running one leaves within a step, an ended one stays as it is."""
    record = await own_record(services, caller, job_id)
    if not record.status.terminal:
        await services.submitter.cancel(record)
        record = await own_record(services, caller, job_id)
    return await _answer(services, record, response)


@router.delete(
    "/jobs/{job_id}",
    summary="Cancel a job",
    responses={200: {"headers": _POLL}, **_JOB_ERRORS},
)
async def delete_job(
    job_id: JobId, response: Response, services: ServicesDep, caller: ChangerDep
) -> JobObject:
    """The same as `POST /v1/jobs/{job_id}/cancel`: the job itself is there until it expires."""
    return await cancel_job(job_id, response, services, caller)


async def _answer(services: Services, record: JobRecord, response: Response) -> JobObject:
    [job] = await job_objects(services, [record])
    if not record.status.terminal:
        response.headers["Retry-After"] = str(poll_hint_s(job))
    return job


def _write_cursor(position: Position) -> str:
    """Microseconds and id: exact, for scores are written with six decimals."""
    return f"{round(position.created_at * 1e6)}-{position.job_id}"


def _read_cursor(cursor: str) -> Position:
    microseconds, _, job_id = cursor.partition("-")
    return Position(int(microseconds) / 1e6, job_id)
