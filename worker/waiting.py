"""What waits in the queues, read without taking it; whatever lies there, reading does not fail."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from app import keys
from app.jobs.ids import made_at
from app.jobs.record import JobRecord, RecordTooNew, from_hash
from app.jobs.scripts import OLDEST
from worker.rq_json import GenerateJob, JSONSerializer, NotOurJob

__all__ = ["Heads", "Newer", "Unfit", "Waiting", "read_job", "waiting"]

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


@dataclass(frozen=True, eq=False)
class Heads:
    """The first entries of each queue, and since when the oldest of the others waits, or inf."""

    entries: Sequence[Sequence[Waiting | Unfit | Newer]]
    beyond: Sequence[float]


def waiting(redis: Redis, limit: int) -> Heads:
    """The first `limit` entries of each queue of `keys.QUEUES`; none if suspended."""
    lists = [keys.rq_queue(name) for name in keys.QUEUES]
    pipe = redis.pipeline(transaction=False)
    pipe.exists(_SUSPENDED)
    pipe.eval(OLDEST, len(lists), *lists, limit)
    for name in lists:
        pipe.lrange(name, 0, limit - 1)
    suspended, oldest, *heads = pipe.execute()
    if suspended:
        heads = [[] for _ in heads]
    found = [(name, id_) for name, ids in zip(keys.QUEUES, heads, strict=True) for id_ in ids]
    entries = iter(_read(redis, found))
    return Heads(
        [[next(entries) for _ in ids] for ids in heads],
        [made_at(job_id.decode("utf-8", "replace")) for job_id in oldest],
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
