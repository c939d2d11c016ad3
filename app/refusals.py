"""What a submission for which there is no room is answered with, and when to come again.

`Retry-After` is when there is likely room, not when to ask: who waits so long is mostly taken in.
"""

import math
import time
from collections.abc import Awaitable
from typing import cast

from redis.exceptions import RedisError

from app import errors, keys
from app.api_keys import ALL_DAY_S
from app.auth import Caller
from app.deps import Services
from app.jobs import submit

__all__ = ["refused"]

_UNKNOWN_S = 5.0
_MOST_S = 60  # nobody waits for longer on one connection
_DELETED_WITHIN_S = 2.0  # workers look for expired images every second


async def refused(services: Services, caller: Caller, why: submit.Refusal) -> errors.ApiError:
    """The error that says why a submission of this caller was not taken in."""
    match why:
        case submit.QueueFull(waiting):
            return errors.QueueFull(
                f"{waiting} jobs wait already; try again soon",
                headers=_after(await _foreseen(services.outlooks.room_s())),
            )
        case submit.TooManyActive(active):
            return errors.QuotaExceeded(
                f"{active} of your jobs are queued or running, which is the most; let some end",
                headers=_after(await _foreseen(_next_end_s(services, caller.owner))),
                extra={"violated-policies": ["concurrency"]},
            )
        case submit.StorageFull(room_at):
            return _storage_full(services.settings.storage_quota_bytes, room_at)
        case submit.DaySpent(pictures):
            return _day_spent(pictures, caller.limits.per_day or 0)


async def _foreseen(asked: Awaitable[float | None]) -> float | None:
    try:
        return await asked
    except RedisError:  # the refusal stands all the same
        return None


async def _next_end_s(services: Services, owner: str) -> float | None:
    """Seconds until a job of the owner's ends."""
    asked = services.redis.smembers(keys.owner_active(owner))
    active = await cast(Awaitable[set[bytes]], asked)
    return await services.outlooks.next_end_s([job_id.decode() for job_id in active])


def _after(seconds: float | None) -> dict[str, str]:
    wanted = math.ceil(_UNKNOWN_S if seconds is None else seconds)
    return {"Retry-After": str(min(_MOST_S, max(1, wanted)))}


def _storage_full(quota: int, room_at: float | None) -> errors.StorageFull:
    """Without a time it is jobs that are to end: their promised room is more than they need."""
    left_s = None if room_at is None else room_at - time.time() + _DELETED_WITHIN_S
    when = "as jobs end" if left_s is None else f"in {math.ceil(left_s)} s, as pictures expire"
    return errors.StorageFull(
        f"Stored pictures and those of jobs under way may take all {quota} bytes that there are; "
        f"there will be room {when}",
        headers=_after(left_s),
    )


def _day_spent(pictures: int, most: int) -> errors.QuotaExceeded:
    left_s = math.ceil(ALL_DAY_S - time.time() % ALL_DAY_S)
    return errors.QuotaExceeded(
        f"{pictures} pictures were asked for today with this key, and this job would make them "
        f"more than it may have; the day ends in {left_s} s (UTC)",
        headers=_after(left_s) | {"RateLimit": f'"daily";r={max(0, most - pictures)};t={left_s}'},
        extra={"violated-policies": ["daily"]},
    )
