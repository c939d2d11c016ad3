"""Where a job stands in line, and how long it may take."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from app import keys
from app.jobs.record import JobRecord, JobStatus

__all__ = ["Outlook", "outlooks"]


@dataclass(frozen=True)
class Outlook:
    """Both are None where they are not known or have no meaning."""

    queue_position: int | None = None  # jobs that will be taken first
    eta_s: float | None = None  # seconds until the job is likely done


async def outlooks(redis: Redis, records: Sequence[JobRecord]) -> list[Outlook]:
    """The outlook of each record, all in one round trip."""
    pipe = redis.pipeline(transaction=False)
    for record in records:
        if not record.status.terminal:
            _ask(pipe, record)
    replies = iter(await pipe.execute() if len(pipe) else [])
    return [
        Outlook() if record.status.terminal else _read(record, [next(replies) for _ in range(5)])
        for record in records
    ]


def _ask(pipe: Redis, record: JobRecord) -> None:
    own = record.request.priority
    pipe.hget(keys.STATS, record.request.model)
    pipe.lpos(keys.rq_queue(own), record.id)
    for queue in keys.QUEUES:
        pipe.llen(keys.rq_queue(queue))


def _read(record: JobRecord, replies: list[bytes | int | None]) -> Outlook:
    stats, place, *lengths = replies
    ahead: int | None = None
    if record.status is JobStatus.QUEUED:
        higher = keys.QUEUES.index(record.request.priority)
        # Not in the list: a worker is just taking it.
        ahead = 0 if place is None else int(place) + sum(int(n or 0) for n in lengths[:higher])
    return Outlook(ahead, _eta_s(record, ahead or 0, stats))


def _eta_s(record: JobRecord, ahead: int, stats: bytes | int | None) -> float | None:
    """Row-steps left, times what one costs; jobs ahead are taken to be like this one."""
    if not isinstance(stats, bytes):
        return None
    try:
        seconds = float(json.loads(stats)["seconds_per_row_step"])
    except (ValueError, KeyError, TypeError):
        return None
    rows = max(record.request.n, record.request.best_of)
    left = rows * (record.total_steps - record.step) + ahead * rows * record.total_steps
    return round(left * seconds, 3)
