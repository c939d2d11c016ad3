"""Progress is told often enough, and not too often."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from app import keys
from app.jobs.store import Wishes
from models.bundle import Bundle
from tests.worker.conftest import wait_for
from tests.worker.parts import slowed
from worker.progress import Progress, Speed


class Told:
    """A store that notes what it is told."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[str, str, int]]] = []

    def progress(self, rows: list[tuple[str, str, int]]) -> Wishes:
        self.rows.append(list(rows))
        return Wishes(evict=["evict"])


def test_ten_times_a_second_while_it_moves() -> None:
    told = Told()
    progress = Progress(told)  # type: ignore[arg-type]
    answers = [progress.tell([("job", "execution", i)], i / 1000) for i in range(1000)]
    assert len(told.rows) == 10
    assert [one for answer in answers for one in answer.evict] == ["evict"] * 10


def test_once_a_second_while_nothing_moves() -> None:
    told = Told()
    progress = Progress(told)  # type: ignore[arg-type]
    for i in range(3000):
        progress.tell([("job", "execution", 1)], i / 1000)
    assert len(told.rows) == 3


def told_of(client: redis.Redis) -> dict[str, float]:
    told: dict[str, float] = json.loads(
        client.hget("rq:worker:w", keys.worker_speed("tiny")) or "{}"
    )
    return told


def test_the_speed_is_what_was_measured_at_start_until_there_is_work(client: redis.Redis) -> None:
    speed = Speed(client, "rq:worker:w", "tiny", 16, 2, 0.25)
    for i in range(5000):
        speed.tell(0, busy=False, now=i / 1000)
    assert told_of(client) == {"slots": 16, "micro_batch": 2, "seconds_per_call": 0.25}


def test_the_speed_is_wall_time_over_calls_while_there_are_jobs(client: redis.Redis) -> None:
    speed = Speed(client, "rq:worker:w", "tiny", 16, 2, 0.25)
    calls = 0
    for i in range(2000):
        busy = i % 1000 < 500  # half of the time nobody wants anything
        calls += busy and i % 2 == 0  # five calls a second, and what lies between them
        speed.tell(calls, busy=busy, now=i / 10)
    assert speed.seconds_per_call == pytest.approx(0.2, rel=0.02)
    for i in range(2000, 2600):
        calls += 1
        speed.tell(calls, busy=True, now=i / 10)
    assert told_of(client)["seconds_per_call"] == pytest.approx(0.1, rel=0.1)


def test_short_jobs_count_too(client: redis.Redis) -> None:
    speed = Speed(client, "rq:worker:w", "tiny", 16, 2, 0.25)
    for i in range(3000):
        now = i * 10.0
        speed.tell(i, busy=True, now=now)
        speed.tell(i + 1, busy=False, now=now + 0.04)
    assert speed.seconds_per_call == pytest.approx(0.04, rel=0.05)


def test_one_message_tells_of_all_running_jobs(
    jobs: Any, start_worker: Callable[..., Any], shared_bundle: Bundle, client: redis.Redis
) -> None:
    start_worker(slowed(shared_bundle, 0.02))
    running = {jobs.submit(steps=900, guidance_scale=1.0) for _ in range(2)}  # fill a call
    for job in running:
        jobs.running(job)
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.EVENTS)
        message = wait_for(lambda: pubsub.get_message(timeout=0.1))
    event = json.loads(message["data"])
    assert event["kind"] == "progress"
    assert set(event["steps"]) == running
    [worker] = client.smembers(keys.RQ_WORKERS)
    told = json.loads(wait_for(lambda: client.hget(worker.decode(), keys.worker_speed("tiny"))))
    assert told["seconds_per_call"] > 0
