"""Thousands of idle listeners on one API process, which still serves everyone else."""

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from app import keys
from app.jobs.record import JobStatus
from app.jobs.store import JobStore
from tests.app.service import CARD
from tests.integration.service import AVOCAT, environment, wait_until

pytestmark = pytest.mark.load

JOBS, LISTENERS = 400, 2000
IDLE_S = 10.0


@pytest.fixture
def api(redis_url: str, tmp_path: Path, unused_tcp_port: int) -> Iterator[tuple[str, int]]:
    """An API process without a worker: its address, and its process id."""
    settings = {
        "redis_url": redis_url, "data_dir": tmp_path, "port": str(unused_tcp_port),
        "max_active_jobs_per_key": str(JOBS), "log_level": "warning",
    }  # fmt: skip
    process = subprocess.Popen([*AVOCAT, "api"], env=environment(settings))
    url = f"http://127.0.0.1:{unused_tcp_port}"

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/healthz").is_success
        except httpx.TransportError:
            return False

    try:
        wait_until(ready, 60, "the start of the API")
        yield url, process.pid
    finally:
        process.terminate()
        assert process.wait(15) is not None


class Listener:
    """A raw connection, so that thousands cost the test little."""

    def __init__(self, url: str, job_id: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._job_id = job_id

    async def open(self) -> str:
        """Connect; the first event's name."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        path = f"/v1/jobs/{self._job_id}/events"
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return await self.event()

    async def event(self) -> str:
        """The name of the next event."""
        while True:
            line = await self._reader.readline()
            if line.startswith(b"event: "):
                return line[7:].strip().decode()
            assert line, "the stream ended"

    def close(self) -> None:
        self._writer.close()


async def opened(url: str, jobs: list[str]) -> list[Listener]:
    """All of them at once, as after a restart of the API."""
    listeners = [Listener(url, jobs[i % len(jobs)]) for i in range(LISTENERS)]
    firsts = await asyncio.gather(*(listener.open() for listener in listeners))
    assert set(firsts) == {"status"}
    return listeners


async def submitted(url: str) -> list[str]:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        answers = [await client.post("/v1/jobs", json={"prompt": "x"}) for _ in range(JOBS)]
    return [answer.raise_for_status().json()["id"] for answer in answers]


async def slowest_answer_s(url: str, for_s: float) -> float:
    """How long others wait for theirs meanwhile."""
    slowest, until = 0.0, time.monotonic() + for_s
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        while time.monotonic() < until:
            began = time.monotonic()
            (await client.get("/healthz")).raise_for_status()
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.05)
    return slowest


async def test_two_thousand_listeners(api: tuple[str, int], redis_url: str) -> None:
    url, pid = api
    process, figures = psutil.Process(pid), dict[str, Any]()
    with redis.Redis.from_url(redis_url) as client:
        client.hset(keys.MODELS, CARD.name, CARD.model_dump_json())
        jobs = await submitted(url)
        before = process.memory_info().rss
        began = time.monotonic()
        listeners = await opened(url, jobs)
        figures["connected_s"] = time.monotonic() - began
        cpu = sum(process.cpu_times()[:2])
        figures["slowest_answer_s"] = await slowest_answer_s(url, IDLE_S)
        figures["idle_cpu_share"] = (sum(process.cpu_times()[:2]) - cpu) / IDLE_S
        figures["kib_per_listener"] = (process.memory_info().rss - before) / 1024 / LISTENERS
        mine = [one for one in client.client_list() if one["id"] != str(client.client_id())]
        figures["redis_connections"] = len(mine)
        store, began = JobStore(client), time.monotonic()
        for job in jobs:
            store.finish(job, None, JobStatus.CANCELED)
        ends = Counter(await asyncio.gather(*(last(listener) for listener in listeners)))
        figures["all_ended_s"] = time.monotonic() - began
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    assert ends == {"canceled": LISTENERS}
    assert figures["redis_connections"] <= 8
    assert figures["kib_per_listener"] < 100
    assert figures["slowest_answer_s"] < 1.0
    assert figures["idle_cpu_share"] < 0.5


async def last(listener: Listener) -> str:
    """The event after which nothing comes; places in line may be told before."""
    while (name := await listener.event()) == "status":
        pass
    listener.close()
    return name
