"""Follow, list and cancel jobs."""

import asyncio
import json
from datetime import datetime

import pytest
from rq.job import Job
from rq.registry import CanceledJobRegistry
from rq.serializers import JSONSerializer

from app import keys
from app.jobs import outlook
from app.jobs.record import JobStatus
from tests.app.service import Serve, Service, until


async def test_follow_from_queue_to_picture(service: Service) -> None:
    job_id = (await service.submit(n=2, seed=5))["id"]
    service.take(job_id)
    service.store.progress([(job_id, "e1", 5)])
    running = await service.client.get(f"/v1/jobs/{job_id}")
    assert running.json()["progress"] == {"step": 5, "total_steps": 20, "fraction": 0.25}
    assert (running.json()["queue_position"], running.json()["attempts"]) == (None, 1)
    assert (running.headers["cache-control"], running.json()["images"]) == ("no-store", [])
    assert int(running.headers["retry-after"]) >= 1
    service.draw(job_id, "e2")
    done = await service.client.get(f"/v1/jobs/{job_id}")
    assert done.json()["status"] == "succeeded"
    assert done.json()["progress"]["fraction"] == 1.0
    assert [image["seed"] for image in done.json()["images"]] == [5, 6]
    assert "retry-after" not in done.headers
    assert (await service.job(job_id)) == done.json()


async def test_times_are_rfc3339(service: Service) -> None:
    job_id = (await service.submit())["id"]
    service.draw(job_id)
    job = await service.job(job_id)
    names = ("created_at", "started_at", "finished_at", "expires_at")
    times = [datetime.fromisoformat(job[name]) for name in names]
    assert times == sorted(times)
    assert (times[3] - times[2]).total_seconds() == pytest.approx(86400, abs=0.01)


async def test_position_counts_the_jobs_ahead(serve: Serve) -> None:
    async with serve(api_keys="ann:a:high") as service:
        service.client.headers["authorization"] = "Bearer a"
        order = ["low", "normal", "high", "low", "high"]
        jobs = [await service.submit(priority=priority) for priority in order]
        places = [(await service.job(job["id"]))["queue_position"] for job in jobs]
        assert places == [3, 2, 0, 4, 1]


def worker_with(service: Service, name: str, **speed: float) -> None:
    service.redis.sadd(keys.RQ_WORKERS, f"rq:worker:{name}")
    fields = {keys.worker_speed("tiny"): json.dumps(speed)}
    service.redis.hset(f"rq:worker:{name}", mapping=fields)


@pytest.fixture
def _always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "_FRESH_S", 0.0)
    monkeypatch.setattr(outlook, "_SHARE", 1e9)


@pytest.mark.usefixtures("_always_look")
async def test_the_estimate_follows_what_workers_measured(service: Service) -> None:
    first, second = await service.submit(n=2), await service.submit(n=2)
    assert first["eta_seconds"] is None  # nobody draws
    worker_with(service, "w", slots=2, micro_batch=2, seconds_per_call=0.05)
    # 20 steps of 2 rows, each with and without its prompt: 2 calls a step.
    assert (await service.job(first["id"]))["eta_seconds"] == pytest.approx(2.0, abs=0.1)
    answer = await service.client.get(f"/v1/jobs/{second['id']}")
    assert answer.json()["eta_seconds"] == pytest.approx(4.0, abs=0.1)
    assert answer.headers["retry-after"] == "2"
    service.take(first["id"])
    service.redis.hset(keys.job(first["id"]), "step", 10)
    service.redis.zadd(keys.rq_running("normal"), {f"{first['id']}:e1": 1e12})
    assert (await service.job(first["id"]))["eta_seconds"] == pytest.approx(1.0, abs=0.1)
    assert (await service.job(second["id"]))["eta_seconds"] == pytest.approx(3.0, abs=0.1)
    worker_with(service, "v", slots=2, micro_batch=2, seconds_per_call=0.05)
    assert (await service.job(second["id"]))["eta_seconds"] == pytest.approx(2.0, abs=0.1)
    for name in "wv":
        service.redis.hset(f"rq:worker:{name}", keys.worker_speed("tiny"), "nonsense")
    assert (await service.job(second["id"]))["eta_seconds"] is None


async def test_between_two_looks_later_jobs_are_put_behind(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "_FRESH_S", 3600.0)
    worker_with(service, "w", slots=2, micro_batch=2, seconds_per_call=0.05)
    jobs = [await service.submit(n=2) for _ in range(4)]
    etas = [job["eta_seconds"] for job in jobs]
    assert etas == pytest.approx([2.0, 4.0, 6.0, 8.0], abs=0.5)


async def test_a_job_begun_after_a_look_is_put_behind_those_that_run(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "_FRESH_S", 3600.0)
    worker_with(service, "w", slots=2, micro_batch=2, seconds_per_call=0.05)
    first = service.store.get((await service.submit())["id"])
    service.redis.delete(keys.rq_queue("normal"))
    service.take(first.id)
    service.redis.zadd(keys.rq_running("normal"), {f"{first.id}:e1": 1e12})
    looks = outlook.Outlooks(service.app.state.services.redis, 60)  # of another process
    [seen] = await looks.of([service.store.get(first.id)])
    assert seen.eta_s == pytest.approx(1.0, abs=0.1)
    second = service.take((await service.submit())["id"])
    [seen] = await looks.of([second])
    assert seen.eta_s == pytest.approx(2.0, abs=0.1)


async def test_jobs_of_others_are_not_there(serve: Serve) -> None:
    async with serve(api_keys="ann:a,bob:b") as service:
        ann, bob = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
        job_id = (await service.submit(headers=ann))["id"]
        path = f"/v1/jobs/{job_id}"
        for method, target in (("GET", path), ("DELETE", path), ("POST", f"{path}/cancel")):
            answer = await service.client.request(method, target, headers=bob)
            assert answer.status_code == 404
        assert (await service.client.get("/v1/jobs", headers=bob)).json()["data"] == []
        assert (await service.client.get(path, headers=ann)).json()["status"] == "queued"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_queued_job_that_is_canceled_never_runs(service: Service, method: str) -> None:
    other, job_id = (await service.submit())["id"], (await service.submit())["id"]
    path = f"/v1/jobs/{job_id}" + ("/cancel" if method == "POST" else "")
    answer = await service.client.request(method, path)
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert answer.json()["finished_at"] is not None
    again = await service.client.request(method, path)
    assert (again.status_code, again.json()) == (200, answer.json())
    assert service.redis.lrange(keys.rq_queue("normal"), 0, -1) == [other.encode()]
    assert service.store.start(job_id, "e1", "w") is None
    rq_job = Job.fetch(job_id, connection=service.redis, serializer=JSONSerializer)
    assert rq_job.get_status() == "canceled"
    assert job_id in CanceledJobRegistry("normal", service.redis, serializer=JSONSerializer)
    assert service.redis.smembers(keys.owner_active("anonymous")) == {other.encode()}


async def test_a_running_job_is_asked_to_stop(service: Service) -> None:
    job_id = (await service.submit())["id"]
    service.take(job_id)
    with service.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.CANCELS)
        answer = await service.client.delete(f"/v1/jobs/{job_id}")
        message = pubsub.get_message
        await until(lambda: (got := message()) and got["data"] == job_id.encode())
    assert (answer.status_code, answer.json()["status"]) == (200, "running")
    assert service.store.progress([(job_id, "e1", 3)]).evict == [job_id]
    assert service.store.finish(job_id, "e1", JobStatus.CANCELED)
    assert (await service.client.delete(f"/v1/jobs/{job_id}")).json()["status"] == "canceled"


async def test_canceling_a_done_job_changes_nothing(service: Service) -> None:
    job_id = (await service.submit())["id"]
    service.draw(job_id)
    before = await service.job(job_id)
    assert (await service.client.delete(f"/v1/jobs/{job_id}")).json() == before
    assert (await service.client.post(f"/v1/jobs/{job_id}/cancel")).json() == before


async def test_a_waiting_client_hears_of_a_cancel(service: Service) -> None:
    headers = {"prefer": "wait=20"}
    waiting = asyncio.create_task(
        service.client.post("/v1/jobs", json={"prompt": "x"}, headers=headers)
    )
    await until(lambda: service.redis.llen(keys.rq_queue("normal")))
    [job_id] = service.redis.lrange(keys.rq_queue("normal"), 0, -1)
    await service.client.delete(f"/v1/jobs/{job_id.decode()}")
    answer = await waiting
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")


async def listed(service: Service, query: str = "") -> tuple[list[str], str | None]:
    answer = (await service.client.get(f"/v1/jobs?{query}")).json()
    assert answer["object"] == "list"
    return [job["id"] for job in answer["data"]], answer["next_cursor"]


async def test_list_is_newest_first_and_stable_under_inserts(service: Service) -> None:
    ids = [(await service.submit())["id"] for _ in range(5)][::-1]
    first, cursor = await listed(service, "limit=2")
    new = [(await service.submit())["id"] for _ in range(3)]
    second, cursor2 = await listed(service, f"limit=2&cursor={cursor}")
    third, cursor3 = await listed(service, f"limit=2&cursor={cursor2}")
    assert [*first, *second, *third] == ids
    assert cursor3 is None
    assert (await listed(service))[0] == [*new[::-1], *ids]


async def test_a_full_last_page_has_no_cursor(service: Service) -> None:
    ids = [(await service.submit())["id"] for _ in range(2)]
    assert await listed(service, "limit=2") == (ids[::-1], None)
    assert await listed(service, "status=running") == ([], None)


async def test_list_by_status(service: Service) -> None:
    ids = [(await service.submit())["id"] for _ in range(6)]
    for job_id in ids[::2]:
        service.draw(job_id)
    done, cursor = await listed(service, "status=succeeded&limit=2")
    rest, end = await listed(service, f"status=succeeded&limit=2&cursor={cursor}")
    assert [*done, *rest] == ids[::2][::-1]
    assert end is None
    assert (await listed(service, "status=queued"))[0] == ids[1::2][::-1]


async def test_jobs_of_one_moment_are_all_listed(service: Service) -> None:
    ids = sorted([(await service.submit())["id"] for _ in range(7)], reverse=True)
    name = keys.owner_jobs("anonymous")
    service.redis.zadd(name, {job_id: 1000.5 for job_id in ids})
    seen, cursor = await listed(service, "limit=3")
    while cursor is not None:
        page, cursor = await listed(service, f"limit=3&cursor={cursor}")
        seen += page
    assert seen == ids


async def test_expired_jobs_leave_the_list(service: Service) -> None:
    ids = [(await service.submit())["id"] for _ in range(2)]
    service.redis.delete(keys.job(ids[0]))
    assert await listed(service) == ([ids[1]], None)
    assert service.redis.zcard(keys.owner_jobs("anonymous")) == 1


async def test_finished_jobs_expire(serve: Serve) -> None:
    async with serve(retention_s=1) as service:
        [image] = service.draw((await service.submit())["id"])
        job_id = image.name.partition("_")[0]
        await until(lambda: not service.redis.exists(keys.job(job_id)))
        assert (await service.client.get(f"/v1/jobs/{job_id}")).status_code == 404
        assert (await service.client.get(f"/v1/images/{image.name}")).status_code == 404
        assert await listed(service) == ([], None)
