"""`/metrics` of the API, read by Prometheus' own parser."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app.embedded_redis import EmbeddedRedis
from tests.app.service import Serve, Service, serving

PROMPT = "an unmistakable prompt"


def figures(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def figure(service: Service, name: str, **labels: str) -> float | None:
    answer = await service.client.get("/metrics")
    assert answer.status_code == 200
    return figures(answer.text).get((name, frozenset(labels.items())))


async def test_requests_are_counted_by_route_template(service: Service) -> None:
    job = await service.submit()
    await service.client.head("/healthz")
    for path in (f"/v1/jobs/{job['id']}", "/v1/jobs/none", "/nowhere", "/somewhere/else"):
        await service.client.get(path)
    await service.client.get("/assets/playground.js")
    await service.client.request("BREW", "/v1/jobs")

    async def count(route: str, status: int, method: str = "GET") -> float | None:
        labels = {"method": method, "route": route, "status": f"{status}"}
        return await figure(service, "avocat_http_requests_total", **labels)

    assert await count("/v1/jobs", 202, "POST") == 1
    assert await count("/v1/jobs/{job_id}", 200) == 1
    assert await count("/v1/jobs/{job_id}", 404) == 1
    assert await count("none", 404) == 2
    assert await count("files", 200) == 1
    assert await count("/healthz", 200, "HEAD") == 1
    labels = {"method": "POST", "route": "/v1/jobs"}
    assert await figure(service, "avocat_http_response_seconds_count", **labels) == 1
    assert await figure(service, "avocat_http_requests_open") == 1  # the one that asks


async def test_nobody_is_named(service: Service, serve: Serve) -> None:
    async with serve(api_keys="petunia:hydrangea") as closed:
        headers = {"Authorization": "Bearer hydrangea"}
        job = await closed.submit(headers=headers, prompt=PROMPT, metadata={"tulip": "rose"})
        await closed.client.get(f"/v1/jobs/{job['id']}?query=crocus", headers=headers)
        await closed.client.request("BREW1234", "/v1/jobs", headers=headers)
        text = (await closed.client.get("/metrics")).text  # itself without a key
    for secret in (
        PROMPT,
        "petunia",
        "hydrangea",
        "tulip",
        "rose",
        "crocus",
        job["id"],
        "BREW1234",
    ):
        assert secret not in text


async def test_queues_by_priority(service: Service) -> None:
    for priority in ("low", "low", "normal"):
        await service.submit(priority=priority)
    assert await figure(service, "avocat_queue_jobs", priority="low") == 2
    assert await figure(service, "avocat_queue_jobs", priority="high") == 0
    assert await figure(service, "avocat_queue_oldest_seconds", priority="high") == 0
    assert 0 < (await figure(service, "avocat_queue_oldest_seconds", priority="low") or 0) < 60
    assert await figure(service, "avocat_workers") == 0
    assert await figure(service, "avocat_redis_up") == 1


async def test_outcomes_of_submissions(service: Service) -> None:
    job = await service.submit(seed=1)
    service.draw(job["id"])
    again = await service.client.post("/v1/jobs", json={"prompt": "a red apple", "seed": 1})
    assert again.json()["cached"]
    for _ in range(2):
        key = {"Idempotency-Key": "k"}
        await service.client.post("/v1/jobs", json={"prompt": "a pear"}, headers=key)

    async def count(outcome: str) -> float | None:
        labels = {"priority": "normal", "outcome": outcome}
        return await figure(service, "avocat_submissions_total", **labels)

    assert [await count(one) for one in ("accepted", "cached", "replayed")] == [2, 1, 1]
    assert await figure(service, "avocat_cache_lookups_total", result="hit") == 1
    assert await figure(service, "avocat_cache_lookups_total", result="miss") == 1


async def test_refusals_by_reason(serve: Serve) -> None:
    async with serve(rate_limit_per_minute=3, max_active_jobs_per_key=1) as service:
        for _ in range(5):
            await service.client.post("/v1/jobs", json={"prompt": "x"})
        await service.client.post("/v1/images/generations", json={"prompt": "x"})
        assert await figure(service, "avocat_limit_refusals_total", policy="default") == 3
        assert await figure(service, "avocat_limit_refusals_total", policy="concurrency") == 2
        assert await figure(service, "avocat_http_problems_total", type="quota-exceeded") == 5


async def test_a_token_where_one_is_set(serve: Serve) -> None:
    async with serve(metrics_token="päonie") as service:
        for header in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer paonie"}):
            answer = await service.client.get("/metrics", headers=header)
            assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized")
        right = {b"Authorization": "Bearer päonie".encode()}
        assert (await service.client.get("/metrics", headers=right)).status_code == 200


async def test_figures_without_redis(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    async with serving(f"unix://{tmp_path}/none.sock", tmp_path, card=None)() as service:
        assert server.process is None
        assert await figure(service, "avocat_redis_up") == 0
        assert await figure(service, "avocat_queue_jobs", priority="low") is None
        assert await figure(service, "avocat_http_requests_open") == 1


async def test_open_metrics_where_asked(service: Service) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = await service.client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_several_processes_behind_one_port_answer_for_all(redis_url: str, tmp_path: Path) -> None:
    """Uvicorn's own workers: each request may go to another one, and one of them is killed."""
    shared = tmp_path / "shared"
    shared.mkdir()
    given = {"AVOCAT_REDIS_URL": redis_url, "AVOCAT_DATA_DIR": str(tmp_path)}
    port = free_port()
    served = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", "--workers", "2",
         "--port", f"{port}", "--no-access-log", "--log-level", "warning"],
        env=os.environ | given | {"PROMETHEUS_MULTIPROC_DIR": str(shared)},
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 60
        asked, processes = 0, set[str]()
        while len(processes) < 2 or asked < 40:
            assert time.monotonic() < until
            try:
                httpx.get(f"{url}/nowhere")  # a connection of its own
                asked += 1
            except httpx.TransportError:
                time.sleep(0.1)
            processes = {file.stem.rpartition("_")[2] for file in shared.glob("counter_*.db")}
        for _ in range(4):
            found = figures(httpx.get(f"{url}/metrics").text)
            labels = {"method": "GET", "route": "none", "status": "404"}
            assert found["avocat_http_requests_total", frozenset(labels.items())] == asked
            assert found["avocat_http_requests_open", frozenset()] == 1
    finally:
        served.terminate()
        served.wait()
