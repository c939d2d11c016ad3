"""Waiting for jobs to end."""

import asyncio
import time
from pathlib import Path

import pytest
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError

from app import keys
from app.embedded_redis import EmbeddedRedis
from app.jobs.events import EventHub
from tests.app.service import Service, serving, until


def hub(service: Service) -> EventHub:
    found = service.app.state.services.events
    assert isinstance(found, EventHub)
    return found


async def test_one_subscription_serves_many(service: Service) -> None:
    ids = [(await service.submit())["id"] for _ in range(20)]
    waits = [asyncio.create_task(hub(service).wait_until_terminal(job, 20)) for job in ids * 2]
    await until(lambda: service.redis.pubsub_numsub(keys.EVENTS)[0][1] == 1)
    for job in ids:
        service.draw(job)
    records = await asyncio.gather(*waits)
    assert all(record is not None and record.status.terminal for record in records)


async def test_lost_messages_only_cost_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = (await service.submit())["id"]
    monkeypatch.setattr(EventHub, "_dispatch", lambda self, data: None)
    wait = asyncio.create_task(hub(service).wait_until_terminal(job, 20))
    await asyncio.sleep(0)
    service.draw(job)
    record = await asyncio.wait_for(wait, 6)
    assert record is not None
    assert record.status.terminal


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"kind": "status"}', b"\xff"])
async def test_odd_messages_do_not_stop_it(service: Service, data: bytes) -> None:
    job = (await service.submit())["id"]
    wait = asyncio.create_task(hub(service).wait_until_terminal(job, 20))
    await until(lambda: service.redis.pubsub_numsub(keys.EVENTS)[0][1] == 1)
    service.redis.publish(keys.EVENTS, data)
    service.draw(job)
    record = await asyncio.wait_for(wait, 6)
    assert record is not None


async def test_without_redis_the_api_says_so_once_and_is_back_within_five_seconds(
    tmp_path: Path,
) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    try:
        async with serving(server.url, tmp_path)() as service:
            job = (await service.submit())["id"]
            wait = asyncio.create_task(hub(service).wait_until_terminal(job, 60))
            await until(lambda: service.redis.pubsub_numsub(keys.EVENTS)[0][1] == 1)
            # While it waits for the disk Redis puts off what it writes, and a kill would lose that.
            await until(lambda: not service.redis.info("persistence")["aof_buffer_length"])
            with structlog.testing.capture_logs() as logs:
                server.process.kill()
                server.process.wait()
                began = time.monotonic()
                while time.monotonic() < began + 4:
                    answer = await service.client.post("/v1/jobs", json={"prompt": "x"})
                    assert answer.status_code == 503
                    assert int(answer.headers["Retry-After"]) >= 1
                said = [entry for entry in logs if entry["log_level"] != "debug"]
                assert 1 <= len(said) <= 8, said
                server.start()
                back = time.monotonic()
                await until(lambda: service.redis.pubsub_numsub(keys.EVENTS)[0][1] == 1)
                service.draw(job)
                assert (await asyncio.wait_for(wait, 10)).status.terminal
                assert time.monotonic() < back + 5
    finally:
        server.stop()


async def test_a_wait_outlives_a_restart_of_redis(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    try:
        async with serving(server.url, tmp_path)() as service:
            job = (await service.submit())["id"]
            wait = asyncio.create_task(hub(service).wait_until_terminal(job, 20))
            await until(lambda: service.redis.pubsub_numsub(keys.EVENTS)[0][1] == 1)
            server.stop()
            with pytest.raises(RedisConnectionError):
                await hub(service).wait_until_terminal(job, 0)
            server.start()
            service.draw(job)
            record = await asyncio.wait_for(wait, 10)
            assert record is not None
            assert record.status.terminal
    finally:
        server.stop()
