"""How much waits and runs, as the metrics tell it."""

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from app import keys

__all__ = ["STORAGE", "Queue", "Queues", "read_queues"]

STORAGE = ("stored", "promised")


@dataclass(frozen=True)
class Queue:
    """One priority. `oldest_s`: how long the job that is taken next has waited; 0 without one."""

    waiting: int
    running: int
    oldest_s: float


@dataclass(frozen=True)
class Queues:
    """All queues by priority, the workers whose heartbeat came in time, and what images take."""

    by_priority: dict[str, Queue]
    workers: int
    storage: dict[str, int]  # bytes: `stored` in images, `promised` to jobs under way


async def read_queues(redis: Redis) -> Queues:
    """Look at all queues, in two round trips.

    Raises:
        RedisError: Redis could not be asked.
    """
    pipe = redis.pipeline(transaction=False)
    pipe.smembers(keys.RQ_WORKERS)
    pipe.hmget(keys.STORAGE_USE, *STORAGE)
    for queue in keys.QUEUES:
        pipe.llen(keys.rq_queue(queue))
        pipe.zcard(keys.rq_running(queue))
        pipe.lindex(keys.rq_queue(queue), 0)
    workers, use, *replies = await cast(Awaitable[list[Any]], pipe.execute())
    counts = [replies[at : at + 3] for at in range(0, len(replies), 3)]
    pipe = redis.pipeline(transaction=False)
    for _, _, first in counts:
        pipe.hget(keys.job((first or b"").decode("utf-8", "replace")), "created_at")
    if workers:  # without a name it would ask for a key that an ACL user may not see
        pipe.exists(*workers)
    answers = await cast(Awaitable[list[Any]], pipe.execute())
    since = answers[: len(counts)]
    now = time.time()
    return Queues(
        by_priority={
            queue: Queue(waiting, running, max(0.0, now - float(at)) if at else 0.0)
            for queue, (waiting, running, _), at in zip(keys.QUEUES, counts, since, strict=True)
        },
        workers=sum(answers[len(counts) :]),
        storage={kind: int(found or 0) for kind, found in zip(STORAGE, use, strict=True)},
    )
