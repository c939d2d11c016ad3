"""The rate limit is exact, also for many at once."""

import asyncio

import pytest

from app.jobs.connection import connect_async
from app.limits import RateLimiter
from tests.app.service import Serve


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


async def test_a_limit_that_was_lowered_says_when_there_is_room(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect_async(redis_url)
    for now in (1000.0, 1010.0, 1020.0, 1030.0):
        monkeypatch.setattr("app.limits.time.time", lambda now=now: now)
        await RateLimiter(client, 9).take("ann")
    state = await RateLimiter(client, 2).take("ann")
    await client.aclose()
    assert state is not None
    assert (state.allowed, state.remaining, state.reset_s) == (False, 0, 50)


@pytest.mark.parametrize(
    ("body", "status"), [({"prompt": "a cat"}, 202), ({"prompt": ""}, 422), ({"model": "x"}, 404)]
)
async def test_every_answer_to_a_submission_tells_what_is_left(
    serve: Serve, body: dict[str, str], status: int
) -> None:
    async with serve(rate_limit_per_minute=2) as service:
        for left in (1, 0):
            answer = await service.client.post("/v1/jobs", json={"prompt": "a dog"} | body)
            assert answer.status_code == status
            assert answer.headers["RateLimit-Policy"] == '"default";q=2;w=60'
            assert answer.headers["RateLimit"].startswith(f'"default";r={left};t=')
        refused = await service.client.post("/v1/jobs", json=body)
        assert refused.status_code == 429
        seconds = int(refused.headers["Retry-After"])
        assert refused.headers["RateLimit"] == f'"default";r=0;t={seconds}'


async def test_no_limit(redis_url: str) -> None:
    client = connect_async(redis_url)
    assert await RateLimiter(client, 0).take("ann") is None
    await client.aclose()
