"""Redis goes away and comes back."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError

from app.embedded_redis import EmbeddedRedis
from app.jobs.connection import connect
from app.jobs.outage import Outage
from app.jobs.record import JobStatus
from app.jobs.store import JobStore
from app.settings import Settings
from models.bundle import Bundle
from tests.worker.conftest import Jobs, wait_for
from tests.worker.parts import slowed


def test_waits_grow_and_each_reason_is_said_once() -> None:
    outage, gone = Outage(), RedisConnectionError("gone")
    with structlog.testing.capture_logs() as logs:
        waits = []
        for _ in range(8):
            outage.failed(gone, 10.0)
            waits.append(outage.wait_s(10.0))
        outage.over()
        outage.over()
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])
    assert [entry["event"] for entry in logs] == [
        "Redis fails; going on, and trying again",
        "Redis is back",
    ]
    assert outage.wait_s(13.0) == 0.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(server: EmbeddedRedis) -> str:
    return server.url


def test_jobs_survive_a_redis_that_dies_and_returns(
    server: EmbeddedRedis,
    settings: Settings,
    shared_bundle: Bundle,
    start_worker: Callable[..., Any],
) -> None:
    store = JobStore(connect(server.url))
    jobs = Jobs(server.url, settings, store)
    worker = start_worker(slowed(shared_bundle, 0.01), lease_s=15)
    long, short = jobs.submit(steps=150, guidance_scale=1.0), jobs.submit(steps=20)
    jobs.running(short)
    wait_for(lambda: server.process is not None)
    with structlog.testing.capture_logs() as logs:
        server.process.kill()
        server.process.wait()
        engine = next(iter(worker.runner._roster.residents.values())).loop
        wait_for(lambda: engine.steps_done.keys() and len(engine.steps_done) == 1)  # short is drawn
        server.start()
        back = time.monotonic()
        wait_for(lambda: any(entry["event"] == "Redis is back" for entry in logs))
        assert time.monotonic() - back < 5
        records = [jobs.ended(job) for job in (long, short)]
    assert {(record.status, record.attempts) for record in records} == {(JobStatus.SUCCEEDED, 1)}
    assert len(logs) < 10
    jobs.ended(jobs.submit())
    wait_for(lambda: store._redis.exists("rq:worker:thread-0"))
