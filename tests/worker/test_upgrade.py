"""Rolling upgrades: what a release before has written is read, a later one's is left alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from app import keys
from app.jobs.record import FORMAT, JobRecord, JobStatus, RecordTooNew
from app.jobs.store import JobStore
from tests.app.service import serving
from tests.integration.snapshot import capture, restore
from tests.worker.conftest import wait_for

RECORDS = sorted((Path(__file__).parents[1] / "integration" / "records").glob("*.json"))


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


@pytest.fixture(params=RECORDS, ids=lambda file: file.stem)
def old(request: pytest.FixtureRequest, client: redis.Redis) -> dict[str, str]:
    """Ids by prompt of the jobs that a release before has left, of every state."""
    restore(client, json.loads(request.param.read_text()))
    prompts = {}
    for key in client.scan_iter("avocat:job:*"):
        prompts[json.loads(client.hget(key, "request"))["prompt"]] = key.decode().split(":")[2]
    return prompts


def test_jobs_of_a_release_before_are_drawn_and_the_ended_stay(
    old: dict[str, str], store: JobStore, client: redis.Redis, start_worker: Callable[..., Any]
) -> None:
    ended = ("a red apple", "a quince", "a plum")
    before = {prompt: client.hgetall(keys.job(old[prompt])) for prompt in ended}
    assert status(store, old["a green pear"]) is JobStatus.RUNNING  # of a worker that is gone
    assert status(store, old["a yellow lemon"]) is JobStatus.QUEUED
    start_worker()
    for prompt in ("a green pear", "a yellow lemon"):
        wait_for(lambda prompt=prompt: status(store, old[prompt]) is JobStatus.SUCCEEDED)
    pear = store.get(old["a green pear"])
    assert pear is not None
    assert (pear.attempts, len(pear.images), pear.images[0].seed) == (2, 8, 11)
    assert before == {prompt: client.hgetall(keys.job(old[prompt])) for prompt in ended}


async def test_clients_see_the_jobs_of_a_release_before(
    old: dict[str, str], redis_url: str, tmp_path: Path
) -> None:
    async with serving(redis_url, tmp_path, card=None)() as service:
        listed = (await service.client.get("/v1/jobs")).json()["data"]
        assert {job["id"] for job in listed} == set(old.values())
        apple = await service.job(old["a red apple"])
        assert (apple["status"], apple["metadata"]) == ("succeeded", {"état": "jaune"})
        assert [image["seed"] for image in apple["images"]] == [7, 8]
        quince = await service.job(old["a quince"])
        assert quince["error"]["type"] == "/problems/queue-entry-invalid"
        assert (await service.job(old["a plum"]))["status"] == "canceled"
        lemon = old["a yellow lemon"]
        canceled = (await service.client.post(f"/v1/jobs/{lemon}/cancel")).json()
        assert canceled["status"] == "canceled"


def of_a_later_release(client: redis.Redis, job: str) -> None:
    client.hset(keys.job(job), mapping={"format": FORMAT + 1, "status": "queued"})


def status(store: JobStore, job: str) -> JobStatus:
    record = store.get(job)
    assert record is not None
    return record.status


def test_a_worker_leaves_queued_jobs_of_a_later_release(
    jobs: Any, client: redis.Redis, start_worker: Callable[..., Any]
) -> None:
    newer = [jobs.submit() for _ in range(12)]  # more than are looked at for a free slot
    for job in newer:
        of_a_later_release(client, job)
    before = {
        job: (client.hgetall(keys.job(job)), client.hgetall(keys.rq_job(job))) for job in newer
    }
    ours = jobs.submit()
    start_worker(slots=2)
    assert jobs.ended(ours).status is JobStatus.SUCCEEDED
    assert client.lrange(keys.rq_queue("normal"), 0, -1) == [job.encode() for job in newer]
    assert before == {
        job: (client.hgetall(keys.job(job)), client.hgetall(keys.rq_job(job))) for job in newer
    }


def test_a_lost_job_of_a_later_release_is_left_to_its_own_workers(
    old: dict[str, str], client: redis.Redis, jobs: Any, start_worker: Callable[..., Any]
) -> None:
    pear = old["a green pear"]
    client.hset(keys.job(pear), "format", FORMAT + 1)
    kept = {key: value for key, value in capture(client).items() if pear in key}
    wip = client.zrange(keys.rq_running("normal"), 0, -1)
    start_worker()
    assert jobs.ended(old["a yellow lemon"]).status is JobStatus.SUCCEEDED
    assert {key: value for key, value in capture(client).items() if pear in key} == kept
    assert client.zrange(keys.rq_running("normal"), 0, -1) == wip


async def test_clients_are_told_of_a_job_of_a_later_release(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    async with serving(redis_url, tmp_path)() as service:
        ours, newer = [(await service.submit())["id"] for _ in range(2)]
        of_a_later_release(client, newer)
        for path in (f"/v1/jobs/{newer}", f"/v1/jobs/{newer}/events"):
            answer = await service.client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
            assert "later release" in answer.json()["detail"]
            assert answer.headers["retry-after"] == "5"
        canceled = await service.client.post(f"/v1/jobs/{newer}/cancel")
        assert canceled.status_code == 503
        listed = (await service.client.get("/v1/jobs")).json()["data"]
        assert [job["id"] for job in listed] == [ours]
        assert client.zscore(keys.owner_jobs("anonymous"), newer) is not None  # not forgotten


def test_what_is_written_says_its_format(jobs: Any, store: JobStore, client: redis.Redis) -> None:
    job = jobs.submit()
    assert client.hget(keys.job(job), "format") == b"1"  # nothing in it is of a later one
    client.hset(keys.job(job), "a field to come", "that may be ignored")
    assert isinstance(store.get(job), JobRecord)
    client.hset(keys.job(job), "format", FORMAT + 1)
    with pytest.raises(RecordTooNew, match=f"format {FORMAT + 1}.*up to {FORMAT}"):
        store.get(job)
