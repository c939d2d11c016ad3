"""`Retry-After` of refusals is when there will be room, and not the same for all."""

import json
from typing import Any

import pytest

from app import keys
from tests.app.service import Serve, Service

# 20 steps, each with and without the prompt, a tenth of a second for two calls: 2 s a job.
SPEED = {"slots": 1, "micro_batch": 2, "seconds_per_call": 0.1}


def worker(service: Service) -> None:
    service.redis.sadd(keys.RQ_WORKERS, "rq:worker:w")
    fields = {keys.WORKER_MODEL: "tiny", keys.worker_speed("tiny"): json.dumps(SPEED)}
    service.redis.hset("rq:worker:w", mapping=fields)


async def put_off(service: Service, headers: dict[str, str] | None = None) -> tuple[Any, int]:
    """The problem of a refused submission, and the seconds it names."""
    answer = await service.client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers)
    assert answer.status_code in (429, 503), answer.text
    return answer.json(), int(answer.headers["retry-after"])


async def test_each_is_told_a_time_of_its_own_while_the_queue_is_full(serve: Serve) -> None:
    async with serve(queue_cap=5) as service:
        worker(service)
        for _ in range(5):
            await service.submit()
        told = [(await put_off(service))[1] for _ in range(8)]
        # One job is taken each 2 s; after 10 s nothing waits any more.
        assert told[:4] == pytest.approx([2, 4, 6, 8], abs=1)
        assert told[4:] == pytest.approx([10, 10, 10, 10], abs=1)


async def test_nobody_is_put_off_for_more_than_a_minute(serve: Serve) -> None:
    async with serve(queue_cap=50) as service:
        worker(service)
        for _ in range(50):
            await service.submit()
        told = [(await put_off(service))[1] for _ in range(50)]
        assert max(told) == 60
        assert told == sorted(told)


async def test_too_many_of_ones_own_wait_for_the_first_to_end(serve: Serve) -> None:
    async with serve(api_keys="ann:a,bob:b", max_active_jobs_per_key=3) as service:
        worker(service)
        ann, bob = ({"authorization": f"Bearer {secret}"} for secret in "ab")
        for _ in range(3):
            await service.submit(bob)
        for _ in range(3):
            await service.submit(ann)
        problem, seconds = await put_off(service, bob)
        assert problem["violated-policies"] == ["concurrency"]
        assert seconds in (2, 3)
        _, seconds = await put_off(service, ann)
        assert seconds in (4, 5)  # they take turns, and bob was first


async def test_without_a_worker_nothing_is_known(serve: Serve) -> None:
    async with serve(queue_cap=1) as service:
        await service.submit()
        assert (await put_off(service))[1] == 5
