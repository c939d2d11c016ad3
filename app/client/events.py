"""What happens to a job, as its follower sees it."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from app.client.types import Job
from app.jobs.record import JobStatus

__all__ = ["Ended", "Event", "Preview", "Progressed", "StatusChanged", "changes", "read_event"]


@dataclass(frozen=True)
class StatusChanged:
    """The job is in another state, or at another place in line."""

    status: JobStatus
    queue_position: int | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True)
class Progressed:
    """Denoising steps done."""

    step: int
    total_steps: int

    @property
    def fraction(self) -> float:
        """The share done, 0 to 1."""
        return self.step / self.total_steps if self.total_steps else 0.0


@dataclass(frozen=True)
class Preview:
    """What picture `index` would be if it ended now."""

    index: int
    content_type: str
    data: bytes


@dataclass(frozen=True)
class Ended:
    """The job is in a final state; nothing follows."""

    job: Job


Event = StatusChanged | Progressed | Preview | Ended


def read_event(sent: ServerSentEvent) -> Event | None:
    """One event of the wire; None for kinds and forms that this client does not know."""
    try:
        data = json.loads(sent.data)
        if sent.event == "status":
            return StatusChanged(
                JobStatus(data["status"]), data.get("queue_position"), data.get("eta_seconds")
            )
        if sent.event == "progress":
            return Progressed(data["step"], data["total_steps"])
        if sent.event == "preview":
            return _preview(data)
        if sent.event in ("succeeded", "failed", "canceled"):
            return Ended(Job.model_validate(data))
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None
    return None


def changes(before: Job | None, now: Job) -> list[Event]:
    """The events between two looks at a job that has not ended."""
    found: list[Event] = []
    status = StatusChanged(now.status, now.queue_position, now.eta_seconds)
    if before is None or (before.status, before.queue_position) != (now.status, now.queue_position):
        found.append(status)
    if now.progress.step > (before.progress.step if before else 0):
        found.append(Progressed(now.progress.step, now.progress.total_steps))
    return found


def _preview(data: dict[str, Any]) -> Preview | None:
    header, _, encoded = str(data["data_url"]).partition(",")
    content_type = header.removeprefix("data:").partition(";")[0]
    try:
        return Preview(int(data.get("index", 0)), content_type, base64.b64decode(encoded))
    except binascii.Error:
        return None
