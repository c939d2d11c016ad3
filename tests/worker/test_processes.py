"""Workers as processes: killed, stopped, drained."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import redis

from app import keys
from app.jobs.record import JobStatus
from app.jobs.store import JobStore
from app.settings import Settings
from tests.worker.conftest import wait_for
from tests.worker.parts import stored_files

Spawn = Callable[..., Any]
LONG = {"steps": 80, "sampler": "ddpm", "guidance_scale": 1.0, "seed": 3}


def exit_code(process: Any) -> int:
    process.join(30)
    return int(process.exitcode)


def test_a_killed_workers_job_is_taken_again_and_gives_the_same_picture(
    jobs: Any, spawn_worker: Spawn, settings: Settings, client: redis.Redis
) -> None:
    victim = spawn_worker("--name", "victim")
    job = jobs.submit(**LONG)
    jobs.running(job, step=10)
    os.kill(victim.pid, signal.SIGKILL)
    killed_at = time.time()
    spawn_worker("--name", "heir")
    again = wait_for(lambda: (found := jobs.running(job, 0)).attempts == 2 and found)
    assert time.time() - killed_at < settings.lease_s + 2
    assert again.worker == "heir"
    undisturbed = jobs.submit(**LONG)
    first, second = jobs.ended(job), jobs.ended(undisturbed)
    assert first.images[0].sha256 == second.images[0].sha256
    wait_for(lambda: client.smembers(keys.RQ_WORKERS) == {b"rq:worker:heir"})


def test_a_worker_that_slept_past_its_lease_publishes_nothing(
    jobs: Any, spawn_worker: Spawn, settings: Settings, client: redis.Redis
) -> None:
    zombie = spawn_worker("--name", "zombie")
    job = jobs.submit(**LONG)
    first = jobs.running(job, step=5).execution
    os.kill(zombie.pid, signal.SIGSTOP)
    spawn_worker("--name", "heir")
    record = jobs.ended(job)
    assert (record.worker, record.attempts) == ("heir", 2)
    os.kill(zombie.pid, signal.SIGCONT)
    jobs.ended(jobs.submit())
    os.kill(zombie.pid, signal.SIGTERM)
    assert exit_code(zombie) == 0
    assert jobs.ended(job) == record
    images = stored_files(settings.images_dir)
    assert record.images[0].name in images
    assert not [name for name in images if first[:8] in name]
    assert client.zcard("rq:wip:normal") == 0


def test_sigterm_lets_the_rows_finish(
    jobs: Any, spawn_worker: Spawn, store: JobStore, client: redis.Redis
) -> None:
    worker = spawn_worker("--name", "worker")
    job = jobs.submit(**LONG)
    jobs.running(job)
    os.kill(worker.pid, signal.SIGTERM)
    later = jobs.submit()
    assert exit_code(worker) == 0
    assert store.get(job).status is JobStatus.SUCCEEDED
    assert store.get(later).status is JobStatus.QUEUED
    assert client.smembers(keys.RQ_WORKERS) == set()


def test_after_the_grace_jobs_go_back_in_order_with_no_retry_spent(
    jobs: Any, spawn_worker: Spawn, client: redis.Redis, store: JobStore
) -> None:
    worker = spawn_worker("--name", "worker", drain_grace_s=0)
    ids = [jobs.submit(**{**LONG, "steps": 900}) for _ in range(3)]
    for job in ids:
        jobs.running(job, step=0)
    ids.append(jobs.submit(n=8, **LONG))
    os.kill(worker.pid, signal.SIGTERM)
    assert exit_code(worker) == 0
    assert client.lrange(keys.rq_queue("normal"), 0, -1) == [job.encode() for job in ids]
    assert {store.get(job).status for job in ids} == {JobStatus.QUEUED}
    assert {client.hget(keys.rq_job(job), "retries_left") for job in ids} == {b"2"}
    assert client.keys("rq:w*") == [b"rq:worker:worker"]  # RQ keeps the dead for a minute


def test_a_second_signal_hands_back_at_once(
    jobs: Any, spawn_worker: Spawn, store: JobStore
) -> None:
    worker = spawn_worker("--name", "worker", drain_grace_s=600)
    job = jobs.submit(n=8, steps=900)
    jobs.running(job)
    os.kill(worker.pid, signal.SIGINT)
    wait_for(lambda: worker.join(0.3) or True)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    assert exit_code(worker) == 0
    assert store.get(job).status is JobStatus.QUEUED
