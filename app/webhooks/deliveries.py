"""Webhooks that are still to be delivered, in Redis: nothing is forgotten when a process ends.

The script that ends a job also notes its webhook (`app.jobs.scripts`), so there is no moment at
which one could be lost. Who takes a delivery holds it for a while; if it is heard of no more, it is
due again, for any process.
"""

import time
from collections.abc import Awaitable, Sequence
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

_PARK = """
-- KEYS[1] due deliveries   KEYS[2] attempts of each   KEYS[3] deliveries parked for one share
-- ARGV[1] job id   ARGV[2] when it is due all the same   ARGV[3] seconds until that
-- Returns 1; 0 where it was forgotten meanwhile.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HINCRBY', KEYS[2], ARGV[1], -1)
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
redis.call('EXPIRE', KEYS[3], 2 * math.ceil(tonumber(ARGV[3])))
return 1
"""

_UNPARK = """
-- KEYS[1] due deliveries   KEYS[2] attempts of each   KEYS[3] deliveries parked for one share
-- ARGV[1] until when it is held
-- Returns job id, attempts before; or nothing. Those that were taken otherwise are left out.
while true do
  local first = redis.call('ZPOPMIN', KEYS[3])
  if #first == 0 then return {} end
  if redis.call('ZSCORE', KEYS[1], first[1]) == first[2] then
    redis.call('ZADD', KEYS[1], ARGV[1], first[1])
    return {first[1], redis.call('HINCRBY', KEYS[2], first[1], 1) - 1}
  end
end
"""

_AGAIN = """
-- KEYS[1] due deliveries   KEYS[2] attempts of each
-- ARGV[1] job id   ARGV[2] when it is due   ARGV[3] attempts to add; as text, for Lua has a -0
-- Returns 1; 0 where it was forgotten meanwhile.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HINCRBY', KEYS[2], ARGV[1], ARGV[3])
return 1
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
        self._again = redis.register_script(_AGAIN)
        self._park = redis.register_script(_PARK)
        self._unpark = redis.register_script(_UNPARK)

    async def take(self, most: int, hold_s: float) -> list[Due]:
        """Deliveries that are due, held for so long: nobody else is given them meanwhile."""
        taken = await cast(
            Awaitable[list[bytes]],
            self._take(
                keys=[keys.WEBHOOKS_DUE, keys.WEBHOOK_ATTEMPTS], args=[time.time(), most, hold_s]
            ),
        )
        return _dues(taken)

    async def park(self, job_id: str, share: str, most_s: float) -> None:
        """Put off a delivery whose attempt never began until `unpark`, or for so long.

        `share`: of the calls at a time, that it has no place in.
        """
        await cast(
            Awaitable[int],
            self._park(
                keys=[keys.WEBHOOKS_DUE, keys.WEBHOOK_ATTEMPTS, keys.webhooks_parked(share)],
                args=[job_id, time.time() + most_s, most_s],
            ),
        )

    async def unpark(self, share: str, hold_s: float) -> list[Due]:
        """Take the one that was parked first for a share, if any, as `take` does."""
        taken = await cast(
            Awaitable[list[bytes]],
            self._unpark(
                keys=[keys.WEBHOOKS_DUE, keys.WEBHOOK_ATTEMPTS, keys.webhooks_parked(share)],
                args=[time.time() + hold_s],
            ),
        )
        return _dues(taken)

    async def again(self, job_id: str, in_s: float, *, tried: bool = True) -> None:
        """Try a delivery later; `tried=False` where this attempt never began."""
        await cast(
            Awaitable[int],
            self._again(
                keys=[keys.WEBHOOKS_DUE, keys.WEBHOOK_ATTEMPTS],
                args=[job_id, time.time() + in_s, 0 if tried else -1],
            ),
        )

    async def done(self, job_id: str) -> None:
        """Forget a delivery: it has arrived, or is given up."""
        pipe = self._redis.pipeline()
        pipe.zrem(keys.WEBHOOKS_DUE, job_id)
        pipe.hdel(keys.WEBHOOK_ATTEMPTS, job_id)
        await pipe.execute()


def _dues(taken: Sequence[bytes]) -> list[Due]:
    pairs = zip(taken[::2], taken[1::2], strict=True)
    return [Due(job_id.decode(), int(attempts)) for job_id, attempts in pairs]
