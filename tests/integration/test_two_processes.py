"""Limits hold over API processes: two of them, asked at the same time, count as one."""

import contextlib
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app import keys
from app.jobs.connection import connect
from tests.app.service import CARD
from tests.integration.service import START_DEADLINE_S, environment

pytestmark = pytest.mark.slow
LIMITS = {"rate_limit_per_minute": "20", "max_active_jobs_per_key": "7", "queue_cap": "11"}


@contextlib.contextmanager
def process(redis_url: str, folder: Path, **settings: str) -> Iterator[str]:
    """The URL of an `avocat api` of its own."""
    keys_ = ",".join(f"{name}:{name}" for name in ("ann", "bob", "eve"))
    given = {"redis_url": redis_url, "data_dir": folder, "api_keys": keys_} | settings
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        api = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "api", "--fd", str(listener.fileno())],
            env=environment(given),
            pass_fds=[listener.fileno()],
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            httpx.get(f"{url}/healthz", timeout=START_DEADLINE_S)  # accepted once it serves
            yield url
        finally:
            api.terminate()
            api.wait()


def rush(urls: list[str], owner: str, times: int) -> Counter[int]:
    """Submit so often, to each in turn, eight at a time; the statuses."""
    headers = {"Authorization": f"Bearer {owner}"}

    def submit(number: int) -> int:
        url = f"{urls[number % len(urls)]}/v1/jobs"
        return httpx.post(url, json={"prompt": "a cat"}, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(8) as pool:
        return Counter(pool.map(submit, range(times)))


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_are_exact_over_two_processes(redis_url: str, tmp_path: Path, limit: str) -> None:
    with connect(redis_url) as redis:
        redis.hset(keys.MODELS, CARD.name, CARD.model_dump_json())
    set_ = {limit: LIMITS[limit]}
    with process(redis_url, tmp_path, **set_) as one, process(redis_url, tmp_path, **set_) as two:
        began = time.monotonic()
        found = rush([one, two], "ann", 50)
        if time.monotonic() - began > 55:
            pytest.skip("the machine was too slow for 50 submissions within the window")
        most = int(LIMITS[limit])
        refusal = 503 if limit == "queue_cap" else 429
        assert found == {202: most, refusal: 50 - most}
        if limit != "queue_cap":  # others are not concerned
            assert rush([one, two], "bob", 4) == {202: 4}
