"""The rate limit is exact, also for many at once."""

import asyncio

import pytest

from app.jobs.connection import connect_async
from app.limits import RateLimiter


async def test_exact_under_a_rush(redis_url: str) -> None:
    clients = [connect_async(redis_url) for _ in range(2)]
    limiters = [RateLimiter(client, 30) for client in clients]
    states = await asyncio.gather(*(limiters[i % 2].take("ann") for i in range(100)))
    assert sum(state is not None and state.allowed for state in states) == 30
    other = await limiters[0].take("bob")
    assert other is not None
    assert (other.allowed, other.remaining) == (True, 29)
    for client in clients:
        await client.aclose()


async def test_the_window_slides(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, seen = connect_async(redis_url), []
    limiter = RateLimiter(client, 2)
    for now in (1000.0, 1030.0, 1059.0, 1060.5, 1061.0, 1090.5):
        monkeypatch.setattr("app.limits.time.time", lambda now=now: now)
        state = await limiter.take("ann")
        assert state is not None
        seen.append((state.allowed, state.remaining, state.reset_s))
    await client.aclose()
    assert seen == [
        (True, 1, 60),
        (True, 0, 30),
        (False, 0, 1),
        (True, 0, 30),
        (False, 0, 29),
        (True, 0, 30),
    ]


async def test_no_limit(redis_url: str) -> None:
    client = connect_async(redis_url)
    assert await RateLimiter(client, 0).take("ann") is None
    await client.aclose()
