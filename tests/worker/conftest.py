"""A tiny bundle, jobs submitted as the API does, and workers to draw them."""

import asyncio
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from app.jobs.connection import connect, connect_async
from app.jobs.ids import new_job_id
from app.jobs.record import JobRecord, JobRequest, JobStatus
from app.jobs.store import JobStore
from app.jobs.submit import Accepted, Submitter
from app.settings import Settings
from models.bundle import Bundle, load_bundle
from models.unet import Denoiser
from tests.models.tiny import build_tiny_bundle
from tests.worker.parts import slowed
from worker.background import Background
from worker.runner import Runner
from worker.runtimes.choice import Measured

DEADLINE_S = 60.0

# Importing torch takes seconds: workers are forked from a process that has done it.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.worker.preloaded"])


def wait_for(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`, looked at a hundred times a second."""
    until = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < until, f"waited {deadline_s} s in vain"
        time.sleep(0.01)
    return value


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def shared_bundle(bundle_path: Path) -> Bundle:
    torch.set_num_threads(1)
    return load_bundle(bundle_path)


@pytest.fixture
def lively(shared_bundle: Bundle) -> Bundle:
    """The tiny bundle with every weight at work: a new network starts as the identity."""
    dice = torch.Generator().manual_seed(0)
    network = type(shared_bundle.denoiser.network)(shared_bundle.config.denoiser)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape, generator=dice) * 0.05
    network.eval().requires_grad_(False)
    denoiser = Denoiser(network, shared_bundle.schedule, shared_bundle.config.parameterisation)
    return replace(shared_bundle, denoiser=denoiser)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def store(client: redis.Redis) -> JobStore:
    return JobStore(client)


@pytest.fixture
def settings(redis_url: str, bundle_path: Path, tmp_path: Path) -> Settings:
    return Settings(
        redis_url=redis_url,
        bundle=bundle_path,
        data_dir=tmp_path,
        threads=1,
        lease_s=3,
        slots=16,
        micro_batch=2,
    )


class Jobs:
    """Submits jobs as the API does, and waits for them."""

    def __init__(self, url: str, settings: Settings, store: JobStore) -> None:
        self._url = url
        self._settings = settings
        self._store = store
        self._seeds = itertools.count(100)

    def record(self, **changes: Any) -> JobRecord:
        fields = {
            "prompt": "a red apple", "model": "tiny", "seed": next(self._seeds), "steps": 6,
            "sampler": "ddim", "guidance_scale": 3.0, "size": "16x16", "background": "transparent",
        }  # fmt: skip
        request = JobRequest.model_validate({**fields, **changes})
        now = time.time()
        return JobRecord(
            id=new_job_id(now), owner="anonymous", created_at=now, expires_at=now + 60,
            retention_s=60, request=request, total_steps=request.steps,
        )  # fmt: skip

    def submit(self, previews: int = 0, **changes: Any) -> str:
        record = self.record(**changes).model_copy(update={"previews": previews})
        outcome = asyncio.run(self._ask(lambda submitter: submitter.submit(record)))
        assert outcome == Accepted(record.id)
        return record.id

    def cancel(self, job_id: str) -> None:
        record = self._store.get(job_id)
        asyncio.run(self._ask(lambda submitter: submitter.cancel(record)))

    async def _ask(self, question: Callable[[Submitter], Any]) -> Any:
        redis = connect_async(self._url)
        try:
            return await question(Submitter(redis, self._settings))
        finally:
            await redis.aclose()

    def ended(self, job_id: str, deadline_s: float = DEADLINE_S) -> JobRecord:
        return wait_for(lambda: self._if_ended(job_id), deadline_s)

    def _if_ended(self, job_id: str) -> JobRecord | None:
        record = self._store.get(job_id)
        assert record is not None
        return record if record.status.terminal else None

    def running(self, job_id: str, step: int = 1) -> JobRecord:
        return wait_for(lambda: self._if_at(job_id, step))

    def _if_at(self, job_id: str, step: int) -> JobRecord | None:
        record = self._store.get(job_id)
        at = record is not None and record.status is JobStatus.RUNNING and record.step >= step
        return record if at else None


@pytest.fixture
def jobs(redis_url: str, settings: Settings, store: JobStore) -> Jobs:
    return Jobs(redis_url, settings, store)


class WorkerThread:
    """A runner in a thread of this process."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._thread = threading.Thread(target=runner.work)
        self._thread.start()

    def stop(self) -> None:
        while self._thread.is_alive():
            self.runner.stop()
            self._thread.join(0.3)


@pytest.fixture
def start_worker(
    redis_url: str, settings: Settings, shared_bundle: Bundle, tmp_path: Path
) -> Iterator[Callable[..., WorkerThread]]:
    """Start workers in threads; given parts replace the usual ones."""
    from app.storage.folder import FolderStorage
    from worker.card import Smaller, model_card
    from worker.resident import Prepared
    from worker.streams import Streams

    started: list[WorkerThread] = []

    def start(
        bundle: Bundle = shared_bundle,
        storage: Any = None,
        background: Background | None = None,
        **changes: Any,
    ) -> WorkerThread:
        chosen = settings.model_copy(update=changes)
        card = model_card(bundle, chosen.micro_batch, "eager 1")
        place = storage or FolderStorage(chosen.images_dir)
        name = f"thread-{len(started)}"
        first = Prepared(
            *(bundle, card, Smaller(bundle, "eager 1"), chosen.slots, chosen.micro_batch),
            *(chosen.exact, Streams(1, torch.get_num_threads())),
            background=background,
        )
        worker = WorkerThread(Runner(connect(redis_url), first, place, chosen, name))
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.stop()


def run_main(
    environment: dict[str, str], arguments: list[str], step_s: float, said: Path | None
) -> None:
    """In a worker's process."""
    if said is not None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT, 0o600), sys.stderr.fileno())
    from worker import start
    from worker.__main__ import main

    execute = start.with_runtime

    def slowly(bundle: Bundle, **how: Any) -> tuple[Bundle, Measured]:
        executed, measured = execute(bundle, **how)
        return slowed(executed, step_s), measured

    start.with_runtime = slowly
    os.environ.update({"AVOCAT_RUNTIME": "eager"} | environment)
    sys.exit(main(arguments))


@pytest.fixture
def spawn_worker(settings: Settings) -> Iterator[Callable[..., BaseProcess]]:
    """Start workers as processes of their own, with settings from the environment.

    Each call of their network takes at least `step_s` seconds, so that jobs stay in flight.
    """
    started: list[BaseProcess] = []

    def spawn(
        *arguments: str, step_s: float = 0.01, said: Path | None = None, **changes: Any
    ) -> BaseProcess:
        named = ("redis_url", "bundle", "data_dir", "threads", "lease_s", "slots", "micro_batch")
        values = {**{field: getattr(settings, field) for field in named}, **changes}
        environment = {f"AVOCAT_{field.upper()}": str(value) for field, value in values.items()}
        process = FORKSERVER.Process(
            target=run_main, args=(environment, list(arguments), step_s, said)
        )
        process.start()
        started.append(process)
        return process

    yield spawn
    for process in started:
        with suppress(ProcessLookupError):
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
