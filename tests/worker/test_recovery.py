"""Jobs left in every state that a vanishing worker can leave them in."""

import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import redis

from app import keys
from app.jobs.record import JobRecord, JobStatus, StoredImage
from app.jobs.store import JobStore
from app.storage.folder import FolderStorage
from tests.worker.parts import stored_files
from worker import problems
from worker.ledger import Held, Ledger
from worker.recovery import Recovery
from worker.results import image_names
from worker.waiting import Waiting, waiting


class Scene:
    """One job and a worker that takes it and vanishes."""

    def __init__(self, client: redis.Redis, store: JobStore, jobs: Any, root: Path) -> None:
        self.client, self.store, self.jobs = client, store, jobs
        self.storage = FolderStorage(root)
        self.ledger = Ledger(client, "finder", 15)
        self.recovery = Recovery(client, store, self.ledger, self.storage)

    def claim(self, job: str) -> Held:
        entries = chain(*waiting(self.client, 10).entries)
        entry = next(e for e in entries if isinstance(e, Waiting) and e.job.id == job)
        held = Ledger(self.client, "vanished", 15).claim(entry)
        assert held is not None
        return held

    def start(self, held: Held) -> JobRecord:
        record = self.store.start(held.job.id, held.execution.id, "vanished")
        assert record is not None
        return record

    def lapse(self) -> None:
        for name in keys.QUEUES:
            for entry in self.client.zrange(f"rq:wip:{name}", 0, -1):
                self.client.zadd(f"rq:wip:{name}", {entry: time.time() - 1})

    def recover(self) -> int:
        self.lapse()
        return self.recovery.recover(own=())

    def rq(self, job: str, field: str) -> bytes | None:
        return self.client.hget(keys.rq_job(job), field)

    def queue(self) -> list[bytes]:
        return self.client.lrange(keys.rq_queue("normal"), 0, -1)


@pytest.fixture
def scene(client: redis.Redis, store: JobStore, jobs: Any, tmp_path: Path) -> Iterator[Scene]:
    yield Scene(client, store, jobs, tmp_path)
    assert client.zcard("rq:wip:normal") == 0
    assert client.keys("rq:execution*") == []


def image(name: str) -> StoredImage:
    return StoredImage(
        index=0, name=name, seed=1, width=1, height=1, content_type="image/png", bytes=1, sha256=""
    )


def test_a_live_lease_is_left_alone(scene: Scene) -> None:
    held = scene.claim(scene.jobs.submit())
    assert scene.recovery.recover(own=()) == 0
    scene.lapse()
    assert scene.recovery.recover(own={held.execution.id}) == 0
    assert scene.recover() == 1


def test_vanished_between_claim_and_start(scene: Scene) -> None:
    job, later = scene.jobs.submit(), scene.jobs.submit()
    scene.claim(job)
    assert scene.queue() == [later.encode()]
    scene.recover()
    assert scene.queue() == [job.encode(), later.encode()]
    assert (scene.rq(job, "status"), scene.rq(job, "retries_left")) == (b"queued", b"2")


def test_vanished_while_running(scene: Scene) -> None:
    job = scene.jobs.submit()
    held = scene.claim(job)
    record = scene.start(held)
    scene.storage.write(image_names(record, held.execution.id)[0], b"half")
    scene.recover()
    assert scene.store.get(job).status is JobStatus.QUEUED
    assert (scene.queue(), scene.rq(job, "retries_left")) == ([job.encode()], b"1")
    assert stored_files(scene.storage.root) == []
    late = scene.store.finish(job, held.execution.id, JobStatus.SUCCEEDED)
    assert not late


def test_vanished_too_often(scene: Scene) -> None:
    job = scene.jobs.submit()
    for _ in range(3):
        scene.start(scene.claim(job))
        scene.recover()
    record = scene.store.get(job)
    assert record.error.type == "/problems/worker-lost"
    assert (scene.queue(), scene.rq(job, "status")) == ([], b"failed")
    assert scene.client.zscore("rq:failed:normal", job)


@pytest.mark.parametrize(
    ("status", "rq_status", "registry"),
    [
        (JobStatus.SUCCEEDED, b"finished", "rq:finished:normal"),
        (JobStatus.FAILED, b"failed", "rq:failed:normal"),
        (JobStatus.CANCELED, b"canceled", "rq:canceled:normal"),
    ],
)
def test_vanished_between_record_and_books(
    scene: Scene, status: JobStatus, rq_status: bytes, registry: str
) -> None:
    job = scene.jobs.submit()
    held = scene.claim(job)
    record = scene.start(held)
    name = image_names(record, held.execution.id)[0]
    scene.storage.write(name, b"whole")
    error = problems.timed_out(1) if status is JobStatus.FAILED else None
    assert scene.store.finish(job, held.execution.id, status, images=[image(name)], error=error)
    before = scene.store.get(job)
    scene.recover()
    assert scene.rq(job, "status") == rq_status
    assert scene.client.zscore(registry, job)
    assert scene.store.get(job) == before
    assert stored_files(scene.storage.root) == [name]


def test_vanished_between_requeue_and_books(scene: Scene) -> None:
    job = scene.jobs.submit()
    held = scene.claim(job)
    scene.start(held)
    scene.store.requeue(job, held.execution.id)
    scene.recover()
    assert (scene.queue(), scene.rq(job, "retries_left")) == ([job.encode()], b"2")


def test_an_entry_of_an_older_execution_is_dropped(scene: Scene) -> None:
    job = scene.jobs.submit()
    old = scene.claim(job)
    scene.start(old)
    scene.store.start(job, "newer", "other")
    scene.recover()
    assert scene.store.get(job).execution == "newer"
    assert scene.queue() == []


def test_jobs_of_one_worker_come_back_in_their_order(scene: Scene) -> None:
    ids = [scene.jobs.submit() for _ in range(4)]
    waits = scene.jobs.submit()
    for job in reversed(ids):
        scene.start(scene.claim(job))
    assert scene.recover() == 4
    assert scene.queue() == [job.encode() for job in [*ids, waits]]


def test_two_finders_take_a_lost_job_over_once(scene: Scene) -> None:
    scene.start(scene.claim(job := scene.jobs.submit()))
    scene.lapse()
    (lost,) = scene.ledger.lost()
    first, second = scene.ledger.adopt(lost), scene.ledger.adopt(lost)
    for held in (first, second):
        scene.ledger.hand_back(held, spend_retry=True)
    assert scene.queue() == [job.encode()]


def test_the_rq_job_is_gone(scene: Scene) -> None:
    job = scene.jobs.submit()
    held = scene.claim(job)
    scene.start(held)
    scene.client.delete(keys.rq_job(job), held.execution.key, f"rq:executions:{job}")
    scene.recover()
    assert scene.store.get(job).error.type == "/problems/queue-entry-invalid"


def test_what_rq_info_declares_abandoned_fails_here_too(scene: Scene) -> None:
    job = scene.jobs.submit()
    held = scene.claim(job)
    scene.start(held)
    scene.ledger.drop(held)
    scene.client.zadd("rq:failed:normal", {job: time.time() + 60})
    scene.recovery.agree_on_failures()
    assert scene.store.get(job).error.type == "/problems/worker-lost"


def test_images_past_their_time_are_deleted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.recovery._EXPIRE_WITHIN_S", 60.0)
    for i in range(130):
        scene.storage.write(f"old_{i}.png", b"old")
        scene.client.zadd(keys.IMAGE_EXPIRY, {f"old_{i}.png": time.time() - 1})
    scene.storage.write("new_0.png", b"new")
    scene.client.zadd(keys.IMAGE_EXPIRY, {"new_0.png": time.time() + 60, "gone_0.png": 1.0})
    deleted = [scene.recovery.expire_images() for _ in range(3)]
    assert deleted == [100, 31, 0]
    assert stored_files(scene.storage.root) == ["new_0.png"]
    assert scene.client.zrange(keys.IMAGE_EXPIRY, 0, -1) == [b"new_0.png"]


def test_registries_forget(scene: Scene) -> None:
    past, future = time.time() - 1, time.time() + 60
    for registry in ("rq:finished:low", "rq:failed:high"):
        scene.client.zadd(registry, {"old": past, "new": future})
    scene.client.sadd("rq:workers", "rq:worker:gone")
    scene.client.sadd("rq:workers:low", "rq:worker:gone")
    scene.recovery.tidy_registries()
    assert scene.client.zrange("rq:finished:low", 0, -1) == [b"new"]
    assert scene.client.zrange("rq:failed:high", 0, -1) == [b"new"]
    assert scene.client.smembers("rq:workers") == set()
