"""Somebody else writes to Redis: nothing of it is run, and the worker goes on."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from rq.executions import Execution
from rq.serializers import resolve_serializer

from app import keys
from app.jobs.record import JobStatus
from tests.worker.conftest import wait_for
from worker.rq_json import GenerateJob, JSONSerializer, NotOurJob


class Bomb:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._path}",)


def call(function: str, *args: str) -> bytes:
    return json.dumps([function, None, args, {}]).encode()


@pytest.fixture
def fuse(tmp_path: Path) -> Path:
    """A file that exists if anything of the poison was run."""
    return tmp_path / "fuse"


def enqueue(client: redis.Redis, job_id: str, fields: dict[str, Any]) -> None:
    base = {"origin": "high", "status": "queued", "created_at": "2026-01-01T00:00:00.000000Z"}
    client.hset(keys.rq_job(job_id), mapping={**base, **fields})
    client.rpush(keys.rq_queue("high"), job_id)


def test_nothing_in_redis_is_run(
    jobs: Any, start_worker: Callable[..., Any], client: redis.Redis, fuse: Path
) -> None:
    touch, bomb = f"touch {fuse}", pickle.dumps(Bomb(fuse))
    hooks = {f"{kind}_callback_name": "os.system" for kind in ("success", "failure", "stopped")} | {
        "webhooks": json.dumps([{"url": "http://127.0.0.1:9/", "job_status": "finished"}])
    }
    enqueue(client, "imported", {"data": call("os.system", touch)})
    enqueue(client, "pickled", {"data": bomb})
    enqueue(client, "instance", {"data": json.dumps(["run", "os", [touch], {}])})
    enqueue(client, "nonsense", {"data": b"\xff\x00", "timeout": "soon", "retries_left": "many"})
    enqueue(client, "empty", {"data": ""})
    client.set(keys.rq_job("string"), "no hash")
    client.rpush(keys.rq_queue("high"), "string", "nowhere", b"\xff\xfe", "")
    decorated = jobs.submit()
    client.hset(keys.rq_job(decorated), mapping={**hooks, "meta": bomb, "result": bomb})
    start_worker()
    assert jobs.ended(decorated).status is JobStatus.SUCCEEDED
    assert client.llen(keys.rq_queue("high")) == 0
    assert not fuse.exists()


def test_damaged_records_and_registries_do_not_stop_the_worker(
    jobs: Any, start_worker: Callable[..., Any], client: redis.Redis
) -> None:
    broken = jobs.submit()
    client.hset(keys.job(broken), "request", "{")
    client.zadd("rq:wip:high", {"no-colon": 1, "gone:execution": 1, b"\xff:\xff": 1})
    client.zadd("rq:failed:low", {b"\xff": 2e9, broken: 2e9})
    client.zadd(keys.IMAGE_EXPIRY, {"../../etc/passwd": 1, b"\xff": 1})
    client.hset(keys.MODELS, "old", "{}")
    start_worker()
    client.publish(keys.CANCELS, b"\xff\xfe")
    client.publish("rq:pubsub:thread-0", "no json")
    client.publish("rq:pubsub:thread-0", '{"command": ["stop-job"]}')
    assert jobs.ended(jobs.submit()).status is JobStatus.SUCCEEDED
    wait_for(lambda: client.zcard("rq:wip:high") == 0)
    wait_for(lambda: client.zcount(keys.IMAGE_EXPIRY, 0, 1) == 0)


def test_a_record_whose_rq_job_is_foreign_fails(
    jobs: Any, start_worker: Callable[..., Any], client: redis.Redis, fuse: Path
) -> None:
    job = jobs.submit()
    client.hset(keys.rq_job(job), "data", call("os.system", f"touch {fuse}"))
    start_worker()
    record = jobs.ended(job)
    assert record.error.type == "/problems/queue-entry-invalid"
    assert not fuse.exists()


@pytest.mark.parametrize(
    "data",
    [
        call("os.system", "id"),
        call(keys.GENERATE, "other"),
        call(keys.GENERATE),
        json.dumps([keys.GENERATE, "instance", ["id"], {}]).encode(),
        json.dumps([keys.GENERATE, None, ["id"], {"more": 1}]).encode(),
        b"[" * 100_000,
        b"{}",
        b"\xff",
    ],
)
def test_only_our_call_is_accepted(data: bytes, client: redis.Redis) -> None:
    job = GenerateJob("id", connection=client, serializer=JSONSerializer)
    job.restore({b"data": data})
    with pytest.raises(NotOurJob):
        job.check()
    with pytest.raises(NotOurJob, match="not called"):
        job.perform()


def test_rq_has_no_pickle_left(client: redis.Redis, fuse: Path) -> None:
    for wish in (None, "pickle"):
        assert resolve_serializer(wish) is JSONSerializer
    enqueue(client, "poison", {"data": b"[]", "meta": pickle.dumps(Bomb(fuse))})
    assert Execution("1", "poison", client).job.id == "poison"  # RQ forgets the serializer here
    assert not fuse.exists()
