"""Reads what the live workers wrote of themselves."""

from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from app import keys
from app.jobs.fleet import Fleet, ModelState, Placement, Standing

__all__ = ["read_fleet", "read_fleet_async"]


def read_fleet(redis: Redis) -> Fleet:
    """Ask for all registered workers, in two round trips."""
    workers = cast(set[bytes], redis.smembers(keys.RQ_WORKERS))
    pipe = redis.pipeline(transaction=False)
    for worker in workers:
        pipe.hmget(worker, keys.WORKER_STANDING, keys.WORKER_MODEL)
    return _fleet(dict(zip(workers, pipe.execute() if workers else [], strict=True)))


async def read_fleet_async(redis: AsyncRedis) -> Fleet:
    """The same, for the API."""
    workers = await cast(Awaitable[set[bytes]], redis.smembers(keys.RQ_WORKERS))
    pipe = redis.pipeline(transaction=False)
    for worker in workers:
        pipe.hmget(worker.decode(), keys.WORKER_STANDING, keys.WORKER_MODEL)
    replies = await cast(Awaitable[list[Any]], pipe.execute()) if workers else []
    return _fleet(dict(zip(workers, replies, strict=True)))


def _fleet(told: Mapping[bytes, list[bytes | None]]) -> Fleet:
    found = []
    for worker, (text, model) in told.items():
        name = worker.decode("utf-8", "replace").removeprefix(keys.RQ_WORKER_PREFIX)
        with suppress(ValueError):
            if text is not None:
                found.append(Standing.model_validate_json(text))
            elif model is not None:  # of the release before, which had one model
                only = Placement(model=model.decode(), state=ModelState.LOADED)
                found.append(Standing(worker=name, device="", free_bytes=0, models=(only,)))
    return Fleet(found)
