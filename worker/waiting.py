"""What waits in the queues, read without taking it; whatever lies there, reading does not fail."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from app import keys
from app.jobs.record import JobRecord, RecordTooNew, from_hash
from worker.rq_json import GenerateJob, JSONSerializer, NotOurJob

__all__ = ["Newer", "Unfit", "Waiting", "read_job", "waiting"]

_SUSPENDED = "rq:suspended"  # set by `rq suspend`


@dataclass(frozen=True, eq=False)
class Waiting:
    """A job in a queue, as the API put it there."""

    queue: str
    job: GenerateJob
    record: JobRecord


@dataclass(frozen=True)
class Unfit:
    """An entry of a queue that no worker can run."""

    queue: str
    job_id: bytes
    reason: str
    record: JobRecord | None


@dataclass(frozen=True)
class Newer:
    """An entry that a later release made, for its own workers."""

    job_id: str
    reason: str


def waiting(redis: Redis, limit: int) -> list[Waiting | Unfit | Newer]:
    """The first `limit` entries of each queue, in the order to serve them; none if suspended."""
    pipe = redis.pipeline(transaction=False)
    pipe.exists(_SUSPENDED)
    for name in keys.QUEUES:
        pipe.lrange(keys.rq_queue(name), 0, limit - 1)
    suspended, *heads = pipe.execute()
    if suspended:
        return []
    return _read(
        redis, [(name, id_) for name, ids in zip(keys.QUEUES, heads, strict=True) for id_ in ids]
    )


def _read(redis: Redis, found: Sequence[tuple[str, bytes]]) -> list[Waiting | Unfit | Newer]:
    pipe = redis.pipeline(transaction=False)
    for _, job_id in found:
        text = job_id.decode("utf-8", "replace")
        pipe.hgetall(keys.job(text))
        pipe.hgetall(keys.rq_job(text))
    replies = pipe.execute(raise_on_error=False) if found else []
    return [
        _entry(redis, queue, job_id, *replies[2 * i : 2 * i + 2])
        for i, (queue, job_id) in enumerate(found)
    ]


def _entry(
    redis: Redis, queue: str, job_id: bytes, ours: Any, theirs: Any
) -> Waiting | Unfit | Newer:
    record = None
    try:
        record = from_hash(ours)
        job = read_job(redis, job_id.decode(), theirs)
        job.check()
    except RecordTooNew as fault:
        return Newer(job_id.decode(), str(fault))
    except NotOurJob as fault:
        return Unfit(queue, job_id, str(fault), record)
    except Exception as fault:  # anyone who can write to Redis could stop the worker otherwise
        return Unfit(queue, job_id, f"it is unreadable: {fault!r}", record)
    if record is None:
        return Unfit(queue, job_id, "it has no job record", None)
    return Waiting(queue, job, record)


def read_job(redis: Redis, job_id: str, fields: dict[bytes, bytes]) -> GenerateJob:
    """An RQ job from its hash.

    Raises:
        NotOurJob: the hash is empty.
        Exception: any, if its fields are not what RQ writes.
    """
    if not fields:
        raise NotOurJob("RQ has no such job")
    job = GenerateJob(job_id, connection=redis, serializer=JSONSerializer)
    job.restore(fields)
    return job
