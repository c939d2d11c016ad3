"""Probes, and what happens while Redis is away."""

import time
from pathlib import Path

from rq import SimpleWorker
from rq.serializers import JSONSerializer

from app.embedded_redis import EmbeddedRedis
from tests.app.service import Serve, Service, serving


async def test_ready_needs_a_live_worker(service: Service) -> None:
    answer = await service.client.get("/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (503, ["worker"])
    assert "retry-after" in answer.headers
    worker = SimpleWorker(["normal"], connection=service.redis, serializer=JSONSerializer)
    worker.register_birth()
    answer = await service.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "workers": 1})
    service.redis.delete(worker.key)  # as when its heartbeat runs out
    assert (await service.client.get("/readyz")).status_code == 503


async def test_healthy_whatever_is_missing(service: Service) -> None:
    answer = await service.client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def statuses(service: Service) -> list[int]:
    job = "/v1/jobs/01J00000000000000000000000"
    answers = [
        await service.client.post("/v1/jobs", json={"prompt": "x"}),
        await service.client.get(job),
        await service.client.delete(job),
        await service.client.get("/v1/jobs"),
        await service.client.get("/v1/models/tiny"),
    ]
    for answer in answers:
        if answer.status_code == 503:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["type"] == "/problems/unavailable"
            assert "redis" not in answer.text.lower()
            assert "sock" not in answer.text.lower()
    return [answer.status_code for answer in answers]


async def test_redis_away_and_back(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    try:
        async with serving(server.url, tmp_path)() as service:
            assert await statuses(service) == [202, 404, 404, 200, 200]
            server.stop()
            service.app.state.services.cards.FRESH_S = 0.0
            begun = time.monotonic()
            assert await statuses(service) == [503] * 5
            assert time.monotonic() - begun < 5
            ready = await service.client.get("/readyz")
            assert (ready.status_code, ready.json()["missing"]) == (503, ["redis"])
            assert (await service.client.get("/healthz")).status_code == 200
            server.start()
            assert await statuses(service) == [202, 404, 404, 200, 200]
    finally:
        server.stop()


async def test_starts_without_redis(tmp_path: Path) -> None:
    async with serving(f"unix://{tmp_path}/none.sock", tmp_path, card=None)() as service:
        assert (await service.client.get("/healthz")).status_code == 200
        assert await statuses(service) == [503] * 5


async def test_a_redis_whose_memory_is_full_is_still_read_by_new_replicas(serve: Serve) -> None:
    async with serve() as first, serve() as replica:
        job = await first.submit()
        first.draw(job["id"])
        url = (await first.job(job["id"]))["images"][0]["url"]
        secrets = await first.app.state.services.webhook_secrets.keys()
        first.redis.config_set("maxmemory", 1)
        try:
            for path in (url, f"/v1/jobs/{job['id']}", "/v1/jobs"):
                assert (await replica.client.get(path)).status_code == 200, path
            assert await replica.app.state.services.webhook_secrets.keys() == secrets
            refused = await replica.client.post("/v1/jobs", json={"prompt": "x"})
        finally:
            first.redis.config_set("maxmemory", 0)
        assert refused.status_code == 503
        assert "takes nothing in at the moment" in refused.json()["detail"]
