"""What a webhook is sent."""

from pydantic import BaseModel, Field

from app.schemas.jobs import JobObject, Time

__all__ = ["WebhookMessage"]


class WebhookMessage(BaseModel):
    """The body of a webhook call, in the form of Standard Webhooks."""

    type: str = Field(description="job.succeeded, job.failed or job.canceled")
    timestamp: Time = Field(description="When it was sent")
    data: JobObject
