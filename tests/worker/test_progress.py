"""Progress is told often enough, and not too often."""

import json
from collections.abc import Callable
from typing import Any

import redis

from app import keys
from app.jobs.store import Wishes
from models.bundle import Bundle
from tests.worker.conftest import wait_for
from tests.worker.parts import slowed
from worker.progress import Progress, Stats


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


def test_stats_are_told_once_a_second(client: redis.Redis) -> None:
    stats = Stats(client, "tiny", 16)
    stats.tell(None, 0.0)
    assert client.hget(keys.STATS, "tiny") is None
    for i in range(1500):
        stats.tell(0.5 + i, i / 1000)
    told = json.loads(client.hget(keys.STATS, "tiny") or "{}")
    assert (told["seconds_per_row_step"], told["slots"]) == (1000.5, 16)


def test_one_message_tells_of_all_running_jobs(
    jobs: Any, start_worker: Callable[..., Any], shared_bundle: Bundle, client: redis.Redis
) -> None:
    start_worker(slowed(shared_bundle, 0.02))
    running = {jobs.submit(steps=900) for _ in range(3)}
    for job in running:
        jobs.running(job)
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.EVENTS)
        message = wait_for(lambda: pubsub.get_message(timeout=0.1))
    event = json.loads(message["data"])
    assert event["kind"] == "progress"
    assert set(event["steps"]) == running
    assert json.loads(client.hget(keys.STATS, "tiny"))["seconds_per_row_step"] > 0
