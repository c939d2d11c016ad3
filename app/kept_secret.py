"""Secrets that all processes of a service share: drawn once, and kept in Redis."""

from collections.abc import Awaitable
from typing import cast

from redis.asyncio import Redis

__all__ = ["kept_secret"]


async def kept_secret(redis: Redis, name: str, fresh: bytes) -> bytes:
    """What Redis has under `name`; `fresh`, if no process has drawn one yet."""
    # Read first: a Redis whose memory is full takes in nothing, but has it.
    if (kept := await _read(redis, name)) is None:
        await redis.set(name, fresh, nx=True)
        kept = await _read(redis, name)
    return cast(bytes, kept)


async def _read(redis: Redis, name: str) -> bytes | None:
    return await cast(Awaitable[bytes | None], redis.get(name))
