"""Calls that wait until a job has its pictures."""

from fastapi import Request

from app import errors
from app.deps import Services
from app.hang_up import ClientGone, while_connected
from app.jobs.record import JobRecord, JobStatus

__all__ = ["wait_for_pictures", "with_pictures"]

# OpenAI's client and ours would submit the same again, although the job had its tries or goes on.
_NO_RETRY = {"X-Should-Retry": "false"}


async def wait_for_pictures(request: Request, services: Services, made: JobRecord) -> JobRecord:
    """The record of a job just made, once it has its pictures; who hangs up cancels it.

    Raises:
        ClientGone: the client has hung up.
        ApiError: the job has no pictures, or not in time.
    """
    timeout_s = services.settings.sync_timeout_s
    waiting = services.events.wait_until_terminal(made.id, timeout_s)
    try:
        ended = await while_connected(request, waiting)
    except ClientGone:
        await services.submitter.cancel(made)
        raise
    return await with_pictures(services, made, ended)


async def with_pictures(services: Services, made: JobRecord, now: JobRecord | None) -> JobRecord:
    """The job's record `now`, if it has pictures.

    Raises:
        ApiError: it has none.
    """
    if now is None or (services.events.closed and not now.status.terminal):
        await services.submitter.cancel(made)  # the client will submit it again
        detail = "The server is about to restart; try again"
        raise errors.Unavailable(detail, headers={"Retry-After": "1"})
    match now.status:
        case JobStatus.SUCCEEDED:
            return now
        case JobStatus.FAILED:
            detail = now.error.detail if now.error is not None else "The job has failed"
            raise errors.JobFailed(detail, headers=_NO_RETRY)
        case JobStatus.CANCELED:
            raise errors.JobCanceled(f"The job {made.id} was canceled", headers=_NO_RETRY)
    raise errors.JobNotFinished(
        f"The job {made.id} has not ended within {services.settings.sync_timeout_s} s; "
        f"it goes on: see /v1/jobs/{made.id}",
        headers=_NO_RETRY,
    )
