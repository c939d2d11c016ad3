"""Commands that are asked for at the same time go together, and nobody notices."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from app.jobs.connection import connect, connect_async
from app.jobs.together import Together


@pytest.fixture
async def together(redis_url: str) -> AsyncIterator[Together]:
    client = connect_async(redis_url)
    assert isinstance(client, Together)
    yield client
    await client.aclose()


async def test_every_command_gets_its_own_answer(together: Together) -> None:
    answers = await asyncio.gather(*(together.incr("count") for _ in range(300)))
    assert sorted(answers) == list(range(1, 301))
    await together.hset("hash", mapping={"a": "1"})
    found = await asyncio.gather(together.hgetall("hash"), together.get("count"))
    assert found == [{b"a": b"1"}, b"300"]  # each by the rules of its own command


async def test_what_is_asked_at_once_takes_few_round_trips(
    together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    exchange = together._exchange

    async def counting(batch: list[object]) -> None:
        batches.append(len(batch))
        await exchange(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(together, "_exchange", counting)
    await together.ping()
    await asyncio.gather(*(together.incr("count") for _ in range(100)))
    assert batches == [1, 64, 36]


async def test_an_error_is_that_of_its_command_alone(together: Together) -> None:
    await together.set("text", "abc")
    answers = await asyncio.gather(
        together.incr("text"), together.incr("count"), return_exceptions=True
    )
    assert isinstance(answers[0], ResponseError)
    assert answers[1] == 1
    with pytest.raises(NoScriptError):
        await together.evalsha("0" * 40, 0)
    script = together.register_script("return {KEYS[1], ARGV[1]}")
    assert await script(keys=["k"], args=["v"]) == [b"k", b"v"]


async def test_a_lost_redis_is_told_to_everyone_and_found_again(
    together: Together, redis_url: str
) -> None:
    await together.ping()
    with connect(redis_url) as other:
        other.client_kill_filter(_type="normal", skipme=True)
    # The pool's connection is dead: one more try finds the server.
    assert await asyncio.gather(*(together.incr("count") for _ in range(5))) == [1, 2, 3, 4, 5]
    gone = connect_async("redis://127.0.0.1:1")
    answers = await asyncio.gather(*(gone.get("a") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisConnectionError] * 3
    assert len({id(answer) for answer in answers}) == 3
    await gone.aclose()


async def test_a_silent_redis_is_waited_for_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it listens, and accepts nobody
        client = connect_async(f"redis://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        first = asyncio.create_task(client.get("a"))  # type: ignore[arg-type]
        await asyncio.sleep(0.2)
        later = [client.get("b") for _ in range(100)]
        answers = await asyncio.gather(first, *later, return_exceptions=True)
        took_s = time.monotonic() - began
        await client.aclose()
    assert {type(answer) for answer in answers} == {RedisTimeout}
    assert took_s < 6


async def test_who_gives_up_holds_nobody_up(together: Together) -> None:
    impatient = asyncio.create_task(together.incr("count"))
    patient = asyncio.create_task(together.incr("count"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == 2  # both were sent
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert await together.incr("count") == 3


def test_it_works_again_in_another_loop(redis_url: str) -> None:
    client = connect_async(redis_url)

    async def ask() -> int:
        answer = int(await client.incr("count"))
        await client.aclose()
        return answer

    assert [asyncio.run(ask()) for _ in range(2)] == [1, 2]


def test_a_loop_that_ends_amid_a_batch_leaves_nobody_waiting(client: redis.Redis) -> None:
    path = client.connection_pool.connection_kwargs["path"]
    together = connect_async(f"unix://{path}")

    async def leave() -> asyncio.Task[int]:
        task = asyncio.create_task(together.incr("count"))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return task

    assert asyncio.run(leave()).cancelled()
    assert together._sending is None


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return connect(redis_url)
