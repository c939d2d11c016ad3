"""Webhooks that are still to be delivered, in Redis: nothing is forgotten when a process ends.

The script that ends a job also notes its webhook (`app.jobs.scripts`), so there is no moment at
which one could be lost. Who takes a delivery holds it for a while; if it is heard of no more, it is
due again, for any process.
"""

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from app import keys

__all__ = ["Deliveries", "Due"]

_TAKE = """
-- KEYS[1] due deliveries   KEYS[2] attempts of each
-- ARGV[1] now   ARGV[2] most to take   ARGV[3] seconds for which they are held
-- Returns job id, attempts before, job id, attempts before …
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])) do
  redis.call('ZADD', KEYS[1], tonumber(ARGV[1]) + tonumber(ARGV[3]), id)
  taken[#taken + 1] = id
  taken[#taken + 1] = redis.call('HINCRBY', KEYS[2], id, 1) - 1
end
return taken
"""


@dataclass(frozen=True)
class Due:
    """A delivery to be tried now, and how often it was before."""

    job_id: str
    attempts: int


class Deliveries:
    """The list of what is due, shared by all API processes."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)

    async def take(self, most: int, hold_s: float) -> list[Due]:
        """Deliveries that are due, held for so long: nobody else is given them meanwhile."""
        taken = await cast(
            Awaitable[list[bytes]],
            self._take(
                keys=[keys.WEBHOOKS_DUE, keys.WEBHOOK_ATTEMPTS], args=[time.time(), most, hold_s]
            ),
        )
        pairs = zip(taken[::2], taken[1::2], strict=True)
        return [Due(job_id.decode(), int(attempts)) for job_id, attempts in pairs]

    async def again(self, job_id: str, in_s: float, *, tried: bool = True) -> None:
        """Try a delivery later; `tried=False` where this attempt never began."""
        pipe = self._redis.pipeline()
        pipe.zadd(keys.WEBHOOKS_DUE, {job_id: time.time() + in_s}, xx=True)
        if not tried:
            pipe.hincrby(keys.WEBHOOK_ATTEMPTS, job_id, -1)
        await pipe.execute()

    async def done(self, job_id: str) -> None:
        """Forget a delivery: it has arrived, or is given up."""
        pipe = self._redis.pipeline()
        pipe.zrem(keys.WEBHOOKS_DUE, job_id)
        pipe.hdel(keys.WEBHOOK_ATTEMPTS, job_id)
        await pipe.execute()
