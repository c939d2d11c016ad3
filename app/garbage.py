"""What nobody can reach any more: images of no job, half-written files, jobs no queue holds.

A job's record is what counts. Each image is named by the execution that stored it, and no execution
ever writes another's names, so what is found to be of none is of none for ever.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from redis import Redis

from app import keys
from app.jobs.ids import is_job_id
from app.jobs.record import JobRecord, JobStatus, Problem
from app.jobs.store import JobStore
from app.storage.base import ImageStorage, StorageError, StoredFile

__all__ = ["Garbage", "WrongRedis", "collect"]

_SCANNED_AT_ONCE = 500
_EXECUTION = 8  # characters of it in an image's name
_ENTRY_LOST = Problem(
    type="/problems/queue-entry-invalid",
    title="The queue entry cannot be run",
    status=500,
    detail="The job's entry was removed from the queue, so it cannot be run; submit it again.",
)


class WrongRedis(Exception):
    """This Redis knows nothing of the images in this storage."""


@dataclass
class Garbage:
    """What was found, and removed unless it was a dry run."""

    images: list[StoredFile] = field(default_factory=list)
    half_written: int = 0
    jobs: list[str] = field(default_factory=list)  # closed as failed: their queue entry is gone
    kept_images: int = 0
    kept_bytes: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of the images found."""
        return sum(image.bytes for image in self.images)


def collect(
    redis: Redis, storage: ImageStorage, *, older_than_s: float, dry_run: bool, force: bool = False
) -> Garbage:
    """Find and remove garbage that is at least so old; may run beside the service.

    Raises:
        WrongRedis: it knows none of the images; not with `force`.
        StorageError: the images cannot be listed.
        RedisError: Redis is away; nothing was removed that it had not been asked about.
    """
    found, store, before = Garbage(), JobStore(redis), time.time() - older_than_s
    for image in storage.files():
        if image.written_at < before and not _wanted(redis, store, image.name):
            found.images.append(image)
        else:
            found.kept_images += 1
            found.kept_bytes += image.bytes
    if found.images and not found.kept_images and not force and not _knows_jobs(redis):
        raise WrongRedis(f"none of {len(found.images)} images is of a job that this Redis knows")
    if not dry_run:
        _delete(storage, found)
    found.half_written = storage.broken_off(before, remove=not dry_run)
    for record in _unfinished(redis, store):
        if record.created_at >= before or _held(redis, record):
            continue
        if dry_run or _close(store, record):
            found.jobs.append(record.id)
    return found


def _wanted(redis: Redis, store: JobStore, name: str) -> bool:
    """Whether a job has the image, or may be about to have it."""
    job_id, _, rest = name.partition("_")
    record = _record(store, job_id) if is_job_id(job_id) else None
    if record is not None and any(one.name == name for one in record.inputs):
        return True
    if record is not None and record.status.terminal:
        return any(image.name == name for image in record.images)
    if record is not None:  # only what runs now can still want what it stored
        return record.execution is not None and rest.startswith(record.execution[:_EXECUTION])
    # Of a job that is being answered from storage: noted before its record is written.
    expiry = redis.zscore(keys.IMAGE_EXPIRY, name)
    return expiry is not None and expiry > time.time()


def _close(store: JobStore, record: JobRecord) -> bool:
    return store.finish(record.id, record.execution, JobStatus.FAILED, error=_ENTRY_LOST)


def _record(store: JobStore, job_id: str) -> JobRecord | None:
    try:
        return store.get(job_id)
    except ValueError:  # not a record
        return None


def _knows_jobs(redis: Redis) -> bool:
    return next(redis.scan_iter(keys.job("*"), count=_SCANNED_AT_ONCE), None) is not None


def _delete(storage: ImageStorage, found: Garbage) -> None:
    deleted: list[StoredFile] = []
    for image in found.images:
        try:
            storage.delete(image.name)
        except StorageError as fault:
            found.faults.append(str(fault))
        else:
            deleted.append(image)
    found.images = deleted


def _unfinished(redis: Redis, store: JobStore) -> Iterator[JobRecord]:
    for key in redis.scan_iter(keys.job("*"), count=_SCANNED_AT_ONCE):
        record = _record(store, cast(bytes, key).decode().removeprefix(keys.job("")))
        if record is not None and not record.status.terminal:
            yield record


def _held(redis: Redis, record: JobRecord) -> bool:
    """Whether the job waits in a queue or is with a worker, or has moved on; seen at one moment."""
    pipe = redis.pipeline(transaction=True)
    for queue in keys.QUEUES:
        pipe.lpos(keys.rq_queue(queue), record.id)
        pipe.zscan(keys.rq_running(queue), match=f"{record.id}:*", count=1_000_000)
    pipe.hmget(keys.job(record.id), "status", "execution")
    *places, (status, execution) = pipe.execute()
    if (status or b"").decode() != record.status or (execution or b"").decode() != (
        record.execution or ""
    ):
        return True
    waits, runs = places[::2], places[1::2]
    return any(place is not None for place in waits) or any(entries for _, entries in runs)
