"""The rate limit: submissions of one key in any 60 seconds, counted in Redis."""

import secrets
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from app import keys
from app.jobs import scripts

__all__ = ["RateLimiter", "RateState"]

WINDOW_S = 60


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
        self._script = redis.register_script(scripts.RATE)

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
