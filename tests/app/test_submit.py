"""`POST /v1/jobs`: what is accepted, and what the answer says."""

import asyncio
import json
import re
import time
from datetime import UTC, datetime

import pytest
import redis
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from app import keys
from app.jobs.record import JobStatus, Problem
from app.request_headers import preferred_wait_s
from app.schemas.jobs import JobCreate
from tests.app.service import Serve, Service, until


async def test_answers_with_the_job_and_where_it_lives(service: Service) -> None:
    answer = await service.client.post("/v1/jobs", json={"prompt": "  a red apple \n", "seed": 7})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["retry-after"]) >= 1
    assert (job["object"], job["status"], job["queue_position"]) == ("job", "queued", 0)
    assert job["progress"] == {"step": 0, "total_steps": 20, "fraction": 0.0}
    assert (job["images"], job["warnings"], job["error"], job["attempts"]) == ([], [], None, 0)
    assert job["created_at"].endswith("Z")
    assert job["started_at"] is None
    assert await service.job(job["id"]) == job


@pytest.mark.parametrize("said", ["", " \n", "\u200b"])
async def test_nothing_need_be_steered_away_from(service: Service, said: str) -> None:
    job = await service.submit(negative_prompt=said)
    assert job["request"]["negative_prompt"] == ""
    pattern = JobCreate.model_json_schema()["properties"]["negative_prompt"]["anyOf"][0]["pattern"]
    assert re.search(pattern, said)
    for wrong in ("a\x07b", "x" * 1001):
        answer = await service.client.post(
            "/v1/jobs", json={"prompt": "a cat", "negative_prompt": wrong}
        )
        assert [one["pointer"] for one in answer.json()["errors"]] == ["/negative_prompt"]
        assert not re.search(pattern, wrong)


async def test_every_field_is_resolved(service: Service) -> None:
    job = await service.submit(seed=7)
    assert job["request"] == {
        "prompt": "a red apple",
        "negative_prompt": None,
        "model": "tiny",
        "n": 1,
        "seed": 7,
        "steps": 20,
        "sampler": "dpmpp_2m",
        "guidance_scale": 3.0,
        "size": "16x16",
        "output_format": "png",
        "background": "transparent",
        "priority": "normal",
        "guidance_interval": [0.0, 1.0],
        "best_of": 1,
        "cache": True,
        "webhook_url": None,
        "lora": [],
        "init_image": None,
        "mask": None,
        "strength": None,
        "compose": False,
        "scene": None,
    }


async def test_given_fields_are_kept(service: Service) -> None:
    given = {
        "negative_prompt": "blur",
        "model": "tiny",
        "n": 3,
        "seed": 2**53 - 4,
        "steps": 200,
        "sampler": "ddpm",
        "guidance_scale": 0,
        "size": "32x32",
        "output_format": "webp",
        "background": "#ff00aa",
        "priority": "low",
        "guidance_interval": [0.1, 0.9],
        "best_of": 4,
        "cache": False,
        "webhook_url": "https://example.org/hook?of=me",
    }
    job = await service.submit(**given, metadata={"order": "17"})
    assert {name: job["request"][name] for name in given} == given
    assert job["metadata"] == {"order": "17"}


async def test_an_absent_seed_is_drawn(service: Service) -> None:
    seeds = {(await service.submit())["request"]["seed"] for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**53 for seed in seeds)


async def test_seven_point_zero_is_seven(service: Service) -> None:
    body = b'{"prompt": "x", "seed": 7.0, "n": 2e0}'
    answer = await service.client.post(
        "/v1/jobs", content=body, headers={"content-type": "application/json; charset=UTF-8"}
    )
    assert answer.json()["request"]["seed"] == 7
    assert answer.json()["request"]["n"] == 2


async def test_jpeg_gets_a_white_background(service: Service) -> None:
    job = await service.submit(output_format="jpeg")
    assert job["request"]["background"] == "white"


@pytest.mark.parametrize(
    "prompt", ["🥑" * 1000, "שלום عالم", "a\u2028b", "\U0010ffff\ue000", " x ", "é" * 1000 + "  "]
)
async def test_odd_prompts_are_accepted(service: Service, prompt: str) -> None:
    job = await service.submit(prompt=prompt)
    assert job["request"]["prompt"] == prompt.strip()


async def test_escaped_surrogate_pairs_are_characters(service: Service) -> None:
    body = b'{"prompt": "' + b"\\ud83e\\udd51" * 1000 + b'"}'
    answer = await service.client.post(
        "/v1/jobs", content=body, headers={"content-type": "application/json"}
    )
    assert answer.json()["request"]["prompt"] == "🥑" * 1000


@pytest.mark.parametrize("priority", ["low", "normal"])
async def test_rq_sees_its_own_job(service: Service, priority: str) -> None:
    job = await service.submit(priority=priority)
    queue = Queue(priority, connection=service.redis, serializer=JSONSerializer)
    rq_job = Job.fetch(job["id"], connection=service.redis, serializer=JSONSerializer)
    assert queue.job_ids == [job["id"]]
    assert queue in Queue.all(connection=service.redis)
    assert (rq_job.func_name, list(rq_job.args), rq_job.kwargs) == (keys.GENERATE, [job["id"]], {})
    assert (rq_job.get_status(), rq_job.origin, rq_job.timeout) == ("queued", priority, 600)
    assert (rq_job.retries_left, rq_job.result_ttl, rq_job.failure_ttl) == (2, 3600, 86400)


async def test_a_push_wakes_workers(service: Service) -> None:
    with service.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.WAKEUPS)
        await service.submit(priority="low")
        await until(lambda: (message := pubsub.get_message()) and message["data"] == b"low")


async def test_wait_answers_when_the_job_ends(service: Service) -> None:
    waiting = asyncio.create_task(
        service.client.post("/v1/jobs", json={"prompt": "x"}, headers={"prefer": "wait=20"})
    )
    await until(lambda: service.redis.llen(keys.rq_queue("normal")))
    [job_id] = service.redis.lrange(keys.rq_queue("normal"), 0, -1)
    begun = time.monotonic()
    service.draw(job_id.decode())
    answer = await waiting
    assert time.monotonic() - begun < 1.5  # told, not polled
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=20"
    assert "retry-after" not in answer.headers
    assert len(answer.json()["images"]) == 1


async def test_a_job_is_named_although_redis_went_away_while_it_was_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        raise RedisTimeoutError

    monkeypatch.setattr(service.app.state.services.events, "wait_until_terminal", lost)
    answer = await service.client.post(
        "/v1/jobs", json={"prompt": "x"}, headers={"prefer": "wait=1"}
    )
    assert answer.status_code == 202
    assert (await service.job(answer.json()["id"]))["status"] == "queued"


async def test_wait_gives_up_in_time(service: Service) -> None:
    answer = await service.client.post(
        "/v1/jobs", json={"prompt": "x"}, headers={"prefer": "respond-async, wait=1"}
    )
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize("prefer", ["wait=soon", "wait", "wait=-1", "return=minimal", ""])
async def test_preferences_not_understood_are_ignored(service: Service, prefer: str) -> None:
    answer = await service.client.post("/v1/jobs", json={"prompt": "x"}, headers={"prefer": prefer})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


async def test_wait_is_sixty_seconds_at_most(service: Service) -> None:
    waiting = asyncio.create_task(
        service.client.post("/v1/jobs", json={"prompt": "x"}, headers={"prefer": "wait=999"})
    )
    await until(lambda: service.redis.llen(keys.rq_queue("normal")))
    [job_id] = service.redis.lrange(keys.rq_queue("normal"), 0, -1)
    service.take(job_id.decode())
    problem = Problem(type="/problems/timeout", title="Too long", status=504, detail="600 s")
    service.store.finish(job_id.decode(), "e1", JobStatus.FAILED, error=problem)
    answer = await waiting
    assert answer.headers["preference-applied"] == "wait=60"
    assert (answer.status_code, answer.json()["error"]) == (200, problem.model_dump())


@pytest.mark.parametrize("digits", [2, 9, 10, 30])
def test_more_than_sixty_counts_as_sixty(digits: int) -> None:
    assert preferred_wait_s(["wait=" + "9" * digits]) == 60


async def test_the_queue_cap_holds_under_a_rush(serve: Serve) -> None:
    async with serve(queue_cap=20) as service:
        answers = await asyncio.gather(
            *(service.client.post("/v1/jobs", json={"prompt": f"x{i}"}) for i in range(100))
        )
        codes = [answer.status_code for answer in answers]
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert (codes.count(202), codes.count(503)) == (20, 80)
        assert service.redis.llen(keys.rq_queue("normal")) == 20
        assert refused.json()["type"] == "/problems/queue-full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60


async def test_the_cap_counts_all_queues(serve: Serve) -> None:
    async with serve(queue_cap=2) as service:
        await service.submit(priority="low")
        await service.submit()
        answer = await service.client.post("/v1/jobs", json={"prompt": "x"})
        assert answer.status_code == 503


async def test_no_model_yet(redis_url: str, serve: Serve) -> None:
    async with serve() as service:
        service.redis.delete(keys.MODELS)
        answer = await service.client.post("/v1/jobs", json={"prompt": "x"})
        wrong = await service.client.post("/v1/jobs", json={"prompt": ""})
        assert (answer.status_code, wrong.status_code) == (503, 422)
        assert "retry-after" in answer.headers


async def test_a_redis_that_has_lost_its_scripts_is_told_them_again(service: Service) -> None:
    await service.submit()
    service.redis.script_flush()
    await service.submit()
    assert service.redis.llen(keys.rq_queue("normal")) == 2


def _fields(words: str) -> dict[str, str]:
    told = json.loads(words)
    return dict(zip(told[::2], told[1::2], strict=True))


def test_rq_reads_the_hash_as_if_written_by_itself(redis_url: str) -> None:
    """The fields our script writes are those of a plain `Queue.enqueue`."""
    from app.jobs.rq_job import RqJobs
    from tests.app.test_store import record

    jobs = RqJobs(timeout_s=600, failure_ttl_s=60, max_attempts=3)
    fields = _fields(jobs.words(record()))
    with redis.Redis.from_url(redis_url) as connection:
        queue = Queue("normal", connection=connection, serializer=JSONSerializer)
        plain = queue.enqueue(keys.GENERATE, "x", result_ttl=1, failure_ttl=1, job_timeout=600)
        stored = {name.decode() for name in connection.hkeys(plain.key)}
        connection.hset("rq:job:ours", mapping=fields)
        job = Job.fetch("ours", connection=connection, serializer=JSONSerializer)
    assert (job.func_name, job.args, job.kwargs) == (keys.GENERATE, [record().id], {})
    assert stored | {"retries_left", "retry_intervals"} == {*fields}
    assert datetime.fromisoformat(fields["created_at"]) <= datetime.now(UTC)
    again = _fields(jobs.words(record("01HZZZZZZZZZZZZZZZZZZZZZZZ")))
    assert (again["description"], fields["description"]) == (
        "worker.tasks.generate('01HZZZZZZZZZZZZZZZZZZZZZZZ')",
        f"worker.tasks.generate('{record().id}')",
    )
