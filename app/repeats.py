"""Answering a request from storage: a new job with the pictures of an earlier one."""

import hashlib
from collections.abc import Sequence

import structlog
from anyio import to_thread

from app import keys
from app.deps import Services
from app.jobs.record import JobRecord, JobStatus, StoredImage
from app.jobs.submit import Accepted, Idempotency, Outcome, Quota, Repeats
from app.storage.base import ImageStorage, StorageError

__all__ = ["submit_or_answer"]

_log = structlog.get_logger()


async def submit_or_answer(
    services: Services,
    record: JobRecord,
    idempotency: Idempotency | None,
    repeats: str | None,
    quota: Quota,
) -> tuple[Outcome, JobRecord]:
    """Enqueue the job, unless an earlier one, found under the key `repeats`, has its pictures.

    Returns:
        What came of it, and the record as it is now.
    """
    outcome = await services.submitter.submit(record, idempotency, repeats, quota)
    if repeats is None or not isinstance(outcome, Accepted | Repeats):
        return outcome, record
    if isinstance(outcome, Accepted):
        services.metrics.looked_up(hit=False)
        return outcome, record
    answered = await _with_pictures_of(services, record, outcome.job_id)
    services.metrics.looked_up(hit=answered is not None)
    if answered is None:
        return await services.submitter.submit(record, idempotency, quota=quota), record
    outcome = await services.submitter.answer(answered, idempotency, repeats)
    if outcome != Accepted(record.id):  # no room, or the same idempotency key came meanwhile
        await to_thread.run_sync(_discard, services.storage, answered.images)
    return outcome, answered


async def _with_pictures_of(
    services: Services, record: JobRecord, earlier_id: str
) -> JobRecord | None:
    """The record as succeeded, its images stored; None where the earlier ones are not whole."""
    [earlier] = await services.reader.many([earlier_id])
    if earlier is None or earlier.status is not JobStatus.SUCCEEDED:
        return None
    # Names of its own, so that neither job's end touches the other's images.
    images = tuple(
        image.model_copy(update={"name": image.name.replace(earlier.id, record.id)})
        for image in earlier.images
    )
    expiry = {image.name: record.expires_at for image in images}
    await services.redis.zadd(keys.IMAGE_EXPIRY, expiry)  # first: what is copied never stays
    if not await to_thread.run_sync(_copy, services.storage, earlier.images, images):
        return None
    changes = {
        "status": JobStatus.SUCCEEDED,
        "finished_at": record.created_at,
        "step": record.total_steps,
        "cached": True,
        "images": images,
        "warnings": earlier.warnings,
    }
    return record.model_copy(update=changes)


def _copy(
    storage: ImageStorage, earlier: Sequence[StoredImage], images: Sequence[StoredImage]
) -> bool:
    try:
        for one, image in zip(earlier, images, strict=True):
            if hashlib.sha256(storage.read(one.name)).hexdigest() != one.sha256:
                raise StorageError(f"image {one.name!r} is damaged")
            storage.copy(one.name, image.name)
    except (OSError, StorageError) as fault:
        _log.warning("a repeat is drawn again", reason=str(fault) or type(fault).__name__)
        _discard(storage, images)
        return False
    return True


def _discard(storage: ImageStorage, images: Sequence[StoredImage]) -> None:
    for image in images:
        try:
            storage.delete(image.name)
        except StorageError as fault:  # it is deleted when it has expired
            _log.warning("image stays", reason=str(fault))
