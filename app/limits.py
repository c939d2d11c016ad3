"""The rate limit: submissions of one key in any 60 seconds, counted in Redis."""

import secrets
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from app import keys

__all__ = ["RateLimiter", "RateState"]

WINDOW_S = 60

_RATE = """
-- KEYS[1] submissions of one key, scored by time
-- ARGV[1] now   ARGV[2] window in s   ARGV[3] most in any window   ARGV[4] unique member
-- Returns {allowed, left, seconds until one more is free}
local now, window, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
local used = redis.call('ZCARD', KEYS[1])
local allowed = 0
if used < most then
  redis.call('ZADD', KEYS[1], ARGV[1], ARGV[4])
  redis.call('EXPIRE', KEYS[1], window + 1)
  used, allowed = used + 1, 1
end
-- More than may be, where the limit has been lowered: so many must go before there is room.
local over = math.max(0, used - most)
local last = redis.call('ZRANGE', KEYS[1], over, over, 'WITHSCORES')
local reset = math.ceil(tonumber(last[2]) + window - now)
return {allowed, math.max(0, most - used), math.max(1, math.min(window, reset))}
"""


@dataclass(frozen=True)
class RateState:
    """What a key has left after a submission."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: int

    @property
    def headers(self) -> dict[str, str]:
        """The RateLimit fields of the IETF draft."""
        return {
            "RateLimit-Policy": f'"default";q={self.limit};w={WINDOW_S}',
            "RateLimit": f'"default";r={self.remaining};t={self.reset_s}',
        }


class RateLimiter:
    """Exact over all API processes: one atomic step in Redis per submission."""

    def __init__(self, redis: Redis, limit_per_minute: int) -> None:
        self._limit = limit_per_minute
        self._script = redis.register_script(_RATE)

    async def take(self, who: str, limit: int | None = None) -> RateState | None:
        """Count one submission of an owner or a key, against its own limit if there is one.

        None when there is no limit.
        """
        most = self._limit if limit is None else limit
        if most == 0:
            return None
        args: list[str | int] = [f"{time.time():.6f}", WINDOW_S, most, secrets.token_hex(8)]
        allowed, left, reset = await cast(
            Awaitable[list[int]], self._script(keys=[keys.rate(who)], args=args)
        )
        return RateState(bool(allowed), most, left, reset)
