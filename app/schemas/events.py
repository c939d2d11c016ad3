"""What the event stream of a job sends as `data`, besides the job object at its end."""

from pydantic import BaseModel, Field

from app.jobs.record import JobStatus

__all__ = ["MAX_PREVIEWS", "PreviewEvent", "StatusEvent"]

MAX_PREVIEWS = 20


class StatusEvent(BaseModel):
    """The job is in another state, in another attempt, or at another place in line."""

    status: JobStatus
    attempts: int
    queue_position: int | None
    eta_seconds: float | None


class PreviewEvent(BaseModel):
    """What a picture would be if it ended now, in native size."""

    index: int = Field(description="Of the job's pictures, by seed")
    step: int
    data_url: str
