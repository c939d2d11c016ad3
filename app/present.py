"""From records to the job objects that clients get."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from app.deps import Services
from app.jobs.outlook import Outlook
from app.jobs.record import JobRecord, StoredImage
from app.schemas.jobs import ImageObject, JobError, JobObject, Progress

__all__ = ["job_objects", "poll_hint_s"]

_LONGEST_POLL_S = 10


async def job_objects(
    services: Services, records: Sequence[JobRecord], ahead: Mapping[str, int] | None = None
) -> list[JobObject]:
    """The wire form of records, with signed URLs, position in line and estimate.

    `ahead`: how many jobs are before each, if it is known already.
    """
    views = await services.outlooks.of(records, ahead)
    return [
        _job_object(record, outlook, await services.signer.urls(record))
        for record, outlook in zip(records, views, strict=True)
    ]


def poll_hint_s(job: JobObject) -> int:
    """Seconds after which looking again is worth while: half the estimate, 1 to 10."""
    return max(1, min(_LONGEST_POLL_S, math.ceil((job.eta_seconds or 0.0) / 2)))


def _job_object(record: JobRecord, outlook: Outlook, urls: Sequence[str]) -> JobObject:
    return JobObject(
        id=record.id,
        status=record.status,
        created_at=_rfc3339(record.created_at),
        started_at=_optional_time(record.started_at),
        finished_at=_optional_time(record.finished_at),
        expires_at=_rfc3339(record.expires_at),
        request=vars(record.request),  # read as the model it is of
        progress=Progress.of(record.step, record.total_steps),
        queue_position=outlook.queue_position,
        eta_seconds=outlook.eta_s,
        images=[_image(image, url) for image, url in zip(record.images, urls, strict=True)],
        attempts=record.attempts,
        cached=record.cached,
        warnings=list(record.warnings),
        error=JobError(**record.error.model_dump()) if record.error is not None else None,
        metadata=record.metadata,
    )


def _image(image: StoredImage, url: str) -> ImageObject:
    return ImageObject(url=url, **image.model_dump(exclude={"name"}))


def _optional_time(seconds: float | None) -> str | None:
    return None if seconds is None else _rfc3339(seconds)


def _rfc3339(seconds: float) -> str:
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_second(whole)}.{micros // 1000:03d}Z"


@lru_cache(16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")
