"""What a client may raise.

AvocatError
├── Unreachable             no answer, or one that is not Avocat's
├── ProblemError            the service refused; `problem` says why
│   ├── BadRequest          400, 413, 415, 422: the request is wrong
│   ├── Unauthorized        401: no API key, or an unknown one
│   ├── Forbidden           403: the key may not do that
│   ├── NotFound            404: no such job, image or model, or another key's
│   ├── TooManyRequests     429: a limit of the key is reached
│   └── ServerError         5xx: the service is full, away or at fault
├── JobFailed               the job ended without pictures; `job` has the reason
│   └── JobCanceled         somebody canceled it
└── JobTimeout              the job has not ended in the time given, and goes on
"""

import httpx
from pydantic import ValidationError

from app.client.types import Job, Problem

__all__ = [
    "AvocatError",
    "BadRequest",
    "Forbidden",
    "JobCanceled",
    "JobFailed",
    "JobTimeout",
    "NotFound",
    "ProblemError",
    "ServerError",
    "TooManyRequests",
    "Unauthorized",
    "Unreachable",
    "problem_error",
]


class AvocatError(Exception):
    """Anything that goes wrong between a client and its service."""


class Unreachable(AvocatError):
    """No answer came, or one that is not Avocat's."""


class ProblemError(AvocatError):
    """The service refused. Decide by `problem.type`."""

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        fields = "; ".join(f"{error.pointer}: {error.message}" for error in problem.errors or ())
        super().__init__(f"{fields or problem.detail} ({problem.status})")
        self.problem = problem
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status


class BadRequest(ProblemError):
    """The request is wrong; `problem.errors` names the fields."""


class Unauthorized(ProblemError):
    """No API key, or an unknown one."""


class Forbidden(ProblemError):
    """The API key may not do that."""


class NotFound(ProblemError):
    """No such job, image or model, or another key's."""


class TooManyRequests(ProblemError):
    """A limit of the API key is reached, and was still after all retries."""


class ServerError(ProblemError):
    """The service is full, away or at fault, and was still after all retries."""


class JobFailed(AvocatError):
    """The job ended without pictures."""

    def __init__(self, job: Job) -> None:
        reason = job.error.detail if job.error else "no reason given"
        super().__init__(f"job {job.id} {job.status}: {reason}")
        self.job = job


class JobCanceled(JobFailed):
    """The job was canceled."""


class JobTimeout(AvocatError, TimeoutError):
    """The job has not ended in the time given; it goes on, and `job_id` finds it."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} has not ended in the time given; it goes on")
        self.job_id = job_id


_BY_STATUS: dict[int, type[ProblemError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    429: TooManyRequests,
}


def problem_error(response: httpx.Response, retry_after_s: float | None) -> ProblemError:
    """The error of an answer; one without a problem in it (a proxy's) gets one made up."""
    status = response.status_code
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        title = response.reason_phrase or "Error"
        problem = Problem(type="about:blank", title=title, status=status, detail=title, instance="")
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else BadRequest)
    return kind(problem, retry_after_s)
