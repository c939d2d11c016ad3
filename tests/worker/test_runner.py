"""A worker in this process, on a real Redis: a job's life, its failures, and RQ's books."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
import torch
from rq.job import Job
from rq.serializers import JSONSerializer
from torch import Tensor

from app import keys
from app.jobs.models import ModelCard
from app.jobs.record import JobStatus
from app.jobs.repeats import repeat_key
from app.jobs.store import JobStore
from app.settings import Settings
from app.storage.folder import FolderStorage
from models.bundle import Bundle
from models.context import ContextEncoder
from tests.worker.conftest import wait_for
from tests.worker.parts import (
    FullDisk,
    broken_for,
    failing_device,
    slowed,
    stored_files,
)
from worker.control import Control
from worker.flights import Flight
from worker.loop import EngineLoop
from worker.mail import Finished
from worker.prompts import Order
from worker.rows import RowSpec

Start = Callable[..., Any]


def test_a_job_becomes_images(jobs: Any, start_worker: Start, settings: Settings) -> None:
    start_worker()
    record = jobs.ended(jobs.submit(n=2, seed=5, size="32x32"))
    assert record.status is JobStatus.SUCCEEDED
    assert (record.step, record.attempts) == (6, 1)
    assert [image.seed for image in record.images] == [5, 6]
    assert {(image.width, image.height) for image in record.images} == {(32, 32)}
    assert all(-1 <= (image.clip_score or -2) <= 1 for image in record.images)
    storage = FolderStorage(settings.images_dir)
    assert all(len(storage.read(image.name)) == image.bytes for image in record.images)


def test_a_job_can_be_found_by_what_it_drew(
    jobs: Any, start_worker: Start, client: redis.Redis
) -> None:
    start_worker()
    job, failed = jobs.submit(seed=5), jobs.submit(seed=5, size="1x1")
    records = [jobs.ended(job), jobs.ended(failed)]
    card = ModelCard.model_validate_json(client.hget(keys.MODELS, "tiny") or b"")
    names = [repeat_key(one.owner, one.request, card.fingerprint) for one in records]
    assert client.mget(names) == [job.encode(), None]
    assert 50 < client.ttl(names[0]) <= 61


def test_rows_are_due_long_before_their_job_fails(
    jobs: Any, start_worker: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted: list[float] = []

    def noted(loop: EngineLoop, rows: Sequence[RowSpec]) -> None:
        admitted.extend(row.due_s - time.monotonic() for row in rows)
        admit(loop, rows)

    admit = EngineLoop.admit
    monkeypatch.setattr(EngineLoop, "admit", noted)
    start_worker(patience_s=100)  # the job has 600 s
    jobs.ended(jobs.submit(n=2))
    assert len(admitted) == 2
    assert all(90 < one <= 100 for one in admitted)


def test_bytes_are_the_same_alone_and_among_strangers(jobs: Any, start_worker: Start) -> None:
    start_worker()
    wanted = {"seed": 7, "steps": 12, "sampler": "ddpm"}
    alone = jobs.ended(jobs.submit(**wanted)).images[0].sha256
    strangers = [
        jobs.submit(steps=4 + i, guidance_scale=i / 2, sampler=("ddim", "dpmpp_2m")[i % 2])
        for i in range(15)
    ]
    among = jobs.ended(jobs.submit(**wanted)).images[0].sha256
    assert among == alone
    assert all(jobs.ended(job).status is JobStatus.SUCCEEDED for job in strangers)


def test_n_pictures_are_those_of_the_next_seeds(jobs: Any, start_worker: Start) -> None:
    start_worker(slots=2)
    together = jobs.ended(jobs.submit(n=3, seed=11)).images
    singles = [jobs.ended(jobs.submit(seed=11 + i)).images[0] for i in range(3)]
    assert [image.sha256 for image in together] == [image.sha256 for image in singles]


def test_best_of_keeps_the_best_first(jobs: Any, start_worker: Start) -> None:
    start_worker()
    everything = jobs.ended(jobs.submit(n=4, seed=1)).images
    best = jobs.ended(jobs.submit(n=2, best_of=4, seed=1)).images
    ranked = sorted(everything, key=lambda image: -image.clip_score)
    assert [image.seed for image in best] == [image.seed for image in ranked[:2]]
    assert [image.index for image in best] == [0, 1]


def test_a_running_job_is_canceled_at_once(
    jobs: Any, start_worker: Start, shared_bundle: Bundle, settings: Settings
) -> None:
    start_worker(slowed(shared_bundle, 0.02))
    job = jobs.submit(steps=900)
    jobs.running(job)
    jobs.cancel(job)
    record = jobs.ended(job, deadline_s=5)
    assert record.status is JobStatus.CANCELED
    assert record.step < 900
    assert record.images == ()
    assert jobs.ended(jobs.submit()).status is JobStatus.SUCCEEDED
    assert not [name for name in stored_files(settings.images_dir) if name.startswith(job)]


def test_a_cancel_nobody_heard_is_found_in_the_record(
    jobs: Any, start_worker: Start, shared_bundle: Bundle, client: redis.Redis
) -> None:
    start_worker(slowed(shared_bundle, 0.02))
    job = jobs.submit(steps=900)
    jobs.running(job)
    client.hset(keys.job(job), "cancel_requested", "1")
    assert jobs.ended(job, deadline_s=10).status is JobStatus.CANCELED


def test_a_job_that_takes_too_long_fails(
    jobs: Any, start_worker: Start, shared_bundle: Bundle, client: redis.Redis
) -> None:
    job = jobs.submit(steps=900)
    client.hset(keys.rq_job(job), "timeout", "1")
    start_worker(slowed(shared_bundle, 0.02))
    record = jobs.ended(job)
    assert record.status is JobStatus.FAILED
    assert record.error.type == "/problems/job-timeout"
    assert "1 s" in record.error.detail


def test_a_broken_row_fails_its_job_alone(
    jobs: Any, start_worker: Start, shared_bundle: Bundle
) -> None:
    sound = [jobs.submit() for _ in range(3)]
    broken = jobs.submit(prompt="poison", n=2)
    start_worker(broken_for(shared_bundle, "poison"))
    record = jobs.ended(broken)
    assert record.error.type == "/problems/generation-failed"
    assert "no numbers" in record.error.detail
    assert all(jobs.ended(job).status is JobStatus.SUCCEEDED for job in sound)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": "17x17"}, "size is '17x17'; this model draws 16x16, 32x32, 64x64"),
        ({"steps": 1001}, "steps is 1001"),
        ({"n": 9}, "n is 9"),
    ],
)
def test_what_the_model_cannot_draw_fails_with_a_sentence(
    jobs: Any, start_worker: Start, changes: dict[str, Any], said: str
) -> None:
    start_worker()
    record = jobs.ended(jobs.submit(**changes))
    assert record.error.type == "/problems/invalid-job"
    assert said in record.error.detail


def test_a_prompt_that_is_cut_is_warned_of(jobs: Any, start_worker: Start) -> None:
    start_worker()
    record = jobs.ended(jobs.submit(prompt="apple " * 40))
    assert record.status is JobStatus.SUCCEEDED
    assert record.warnings == (
        "prompt is longer than the 16 tokens that the model reads: its end was ignored",
    )


def test_a_failing_device_gives_all_jobs_back(
    jobs: Any, start_worker: Start, shared_bundle: Bundle
) -> None:
    ids = [jobs.submit(n=2) for _ in range(3)]
    faulty = start_worker(failing_device(shared_bundle, after=5))
    wait_for(lambda: faulty.runner.fault)
    start_worker()
    ended = [jobs.ended(job) for job in ids]
    assert {record.status for record in ended} == {JobStatus.SUCCEEDED}
    assert {record.attempts for record in ended} == {2}


def test_a_job_that_always_breaks_the_device_fails(
    jobs: Any, start_worker: Start, shared_bundle: Bundle
) -> None:
    job = jobs.submit()
    for _ in range(3):
        worker = start_worker(failing_device(shared_bundle, after=2))
        wait_for(lambda worker=worker: worker.runner.fault)
        worker.stop()
    record = jobs.ended(job)
    assert record.error.type == "/problems/worker-lost"
    assert "3 times" in record.error.detail


@pytest.mark.parametrize(("times", "status"), [(2, JobStatus.SUCCEEDED), (3, JobStatus.FAILED)])
def test_a_full_disk_costs_retries(
    jobs: Any, start_worker: Start, settings: Settings, times: int, status: JobStatus
) -> None:
    start_worker(storage=FullDisk(settings.images_dir, times, at=1), storage_patience_s=0)
    record = jobs.ended(jobs.submit(n=2))
    assert (record.status, record.attempts) == (status, 3)
    assert stored_files(settings.images_dir) == sorted(image.name for image in record.images)
    assert record.error is None or record.error.type == "/problems/storage-failed"


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    jobs: Any, start_worker: Start, settings: Settings
) -> None:
    start_worker(storage=FullDisk(settings.images_dir, times=4, at=1))
    first, second = jobs.submit(n=2), jobs.submit()
    for record in (jobs.ended(first), jobs.ended(second)):
        assert (record.status, record.attempts) == (JobStatus.SUCCEEDED, 1)


def test_a_row_that_is_told_of_twice_is_stored_once(
    jobs: Any, start_worker: Start, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[Flight] = []

    def noted(control: Control, flight: Flight, order: Order) -> None:
        stored.append(flight)
        worker.runner._mail.put(Finished(flight.token, 0, flight.rows[0]))
        store(control, flight, order)

    store = Control._store
    monkeypatch.setattr(Control, "_store", noted)
    worker = start_worker(storage=FullDisk(settings.images_dir, times=2))
    record = jobs.ended(jobs.submit())
    worker.stop()
    assert (record.status, len(stored)) == (JobStatus.SUCCEEDED, 1)
    assert stored_files(settings.images_dir) == [record.images[0].name]


def test_memory_that_runs_out_at_a_prompt_costs_an_attempt(
    jobs: Any, start_worker: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, learned = [2], ContextEncoder._learned

    def cramped(encoder: ContextEncoder, prompts: Sequence[str]) -> dict[str, Tensor]:
        if "zebra" in prompts and left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return learned(encoder, prompts)

    monkeypatch.setattr(ContextEncoder, "_learned", cramped)
    start_worker()
    record = jobs.ended(jobs.submit(prompt="zebra"))
    assert (record.status, record.attempts) == (JobStatus.SUCCEEDED, 3)


def test_a_job_that_waits_for_storage_can_be_canceled(
    jobs: Any, start_worker: Start, settings: Settings
) -> None:
    storage = FullDisk(settings.images_dir, times=10_000, at=1)
    worker = start_worker(storage=storage)
    job = jobs.submit(n=2)
    wait_for(lambda: worker.runner._control._storage_away)
    assert worker.runner._control.free == 0
    jobs.cancel(job)
    assert jobs.ended(job).status is JobStatus.CANCELED
    assert jobs.ended(jobs.submit()).status is JobStatus.SUCCEEDED


def test_prompts_of_jobs_that_wait_together_are_read_together(
    jobs: Any, start_worker: Start, shared_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a text tower takes eight prompts at once."""
    monkeypatch.setattr(shared_bundle.context, "text_rows", 4)
    read: list[set[str]] = []
    learned = ContextEncoder._learned

    def noted(encoder: ContextEncoder, prompts: Sequence[str]) -> dict[str, Tensor]:
        read.append(set(prompts))
        return learned(encoder, prompts)

    monkeypatch.setattr(ContextEncoder, "_learned", noted)
    asked = [f"thing {i}" for i in range(4)]
    waiting = [jobs.submit(prompt=prompt) for prompt in asked]
    start_worker()
    assert all(jobs.ended(one).status is JobStatus.SUCCEEDED for one in waiting)
    assert max(len(one.intersection(asked)) for one in read) > 1
    assert sum(len(one.intersection(asked)) for one in read) == len(asked)  # each of them once


def test_priorities_come_first(jobs: Any, start_worker: Start) -> None:
    low, normal, high = [jobs.submit(priority=name) for name in ("low", "normal", "high")]
    start_worker(slots=1)
    started = [jobs.ended(job).started_at for job in (high, normal, low)]
    assert started == sorted(started)


def test_an_idle_worker_hears_of_a_job_at_once(jobs: Any, start_worker: Start) -> None:
    start_worker()
    jobs.ended(jobs.submit())
    waits = []
    for _ in range(7):
        record = jobs.ended(jobs.submit())
        waits.append(record.started_at - record.created_at)
    assert sorted(waits)[3] < 0.3  # polling alone takes half a second on average


def test_an_idle_worker_is_quiet(start_worker: Start, client: redis.Redis) -> None:
    worker = start_worker()
    wait_for(lambda: client.exists(keys.RQ_WORKERS))
    time.sleep(1)  # what it says of itself at the start
    before = client.info("stats")["total_commands_processed"]
    time.sleep(2)
    commands = client.info("stats")["total_commands_processed"] - before
    assert commands < 80
    assert worker.runner.get_state() == "idle"


def test_jobs_for_other_models(
    jobs: Any, start_worker: Start, client: redis.Redis, store: JobStore
) -> None:
    client.sadd(keys.RQ_WORKERS, "rq:worker:elsewhere")
    client.hset("rq:worker:elsewhere", "model", "other")
    served, unserved = jobs.submit(model="other"), jobs.submit(model="gone")
    ours = jobs.submit()
    start_worker(slots=1)
    assert jobs.ended(ours).status is JobStatus.SUCCEEDED
    assert jobs.ended(unserved).error.type == "/problems/model-not-served"
    assert store.get(served).status is JobStatus.QUEUED
    assert client.lrange(keys.rq_queue("normal"), 0, -1) == [served.encode()]


def test_rq_keeps_its_books(jobs: Any, start_worker: Start, client: redis.Redis) -> None:
    start_worker()
    done, failed = jobs.ended(jobs.submit()), jobs.ended(jobs.submit(size="1x1"))
    view = wait_for(lambda: _if_left(client, failed.id))
    assert view.get_status() == "failed"
    assert Job.fetch(done.id, client, JSONSerializer).return_value() == {"images": 1}
    assert client.zscore("rq:finished:normal", done.id)
    assert client.zscore("rq:failed:normal", failed.id)
    assert client.hget("rq:worker:thread-0", "successful_job_count") == b"1"
    assert client.keys("rq:execution*") == []


def _if_left(client: redis.Redis, job_id: str) -> Job | None:
    return None if client.zcard("rq:wip:normal") else Job.fetch(job_id, client, JSONSerializer)


def test_rq_info_shows_queues_worker_and_executing_jobs(
    jobs: Any, start_worker: Start, shared_bundle: Bundle, redis_url: str
) -> None:
    start_worker(slowed(shared_bundle, 0.02))
    running = [jobs.submit(steps=900) for _ in range(2)]
    for job in running:
        jobs.running(job, step=0)
    command = [sys.executable, "-m", "rq.cli", "info", "-u", redis_url, "-S", "json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "thread-0" in shown
    assert "busy" in shown
    assert "2 executing" in shown
    assert all(name in shown for name in keys.QUEUES)


def test_a_suspended_worker_takes_nothing(
    jobs: Any, start_worker: Start, client: redis.Redis, store: JobStore
) -> None:
    client.set("rq:suspended", 1)
    worker = start_worker()
    job = jobs.submit()
    wait_for(lambda: worker.runner._looks._done_at > 0)
    assert store.get(job).status is JobStatus.QUEUED
    client.delete("rq:suspended")
    assert jobs.ended(job).status is JobStatus.SUCCEEDED
