"""The three servers of the load benchmarks, each in a process of its own, asked the same way."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any, Protocol

from app.commands.programs import environment, program
from app.embedded_redis import EmbeddedRedis, tied_to_parent
from app.jobs.connection import connect, connect_async
from app.jobs.record import JobRequest, JobStatus
from app.jobs.store import JobStore
from app.jobs.submit import Accepted, Submitter
from benchmarks import one_by_one, static_batches
from benchmarks.subject import Plan, loaded, record

__all__ = ["Avocat", "OneByOne", "Side", "StaticBatches", "running", "start_worker"]

SPAWN = multiprocessing.get_context("spawn")
NO_LIMIT = 10**6


class Side(Protocol):
    """Takes jobs, and tells when they have ended."""

    def ask(self, request: JobRequest, due: float) -> str:
        """Submit a job that was due at this unix time; its id."""

    def ended_at(self, job: str) -> float | None:
        """The unix time of the job's end; None before it.

        Raises:
            RuntimeError: the job failed, or nobody is there to draw it.
        """


class Avocat:
    """Submits as the API does, and reads what the API would read."""

    def __init__(self, url: str, plan: Plan) -> None:
        limits = {"queue_cap": NO_LIMIT, "max_active_jobs_per_key": NO_LIMIT}
        self._loop = asyncio.Runner()
        self._bundle = loaded(plan.settings)
        settings = plan.settings.model_copy(update=limits)
        self._asking, self._reading = connect_async(url), connect(url)
        self._submitter = Submitter(self._asking, settings)
        self._store = JobStore(self._reading)

    def close(self) -> None:
        """Let its connections go."""
        self._loop.run(self._asking.aclose())
        self._loop.close()
        self._reading.close()

    def ask(self, request: JobRequest, due: float) -> str:
        """Submit a job."""
        job = record(request, self._bundle, due)
        outcome = self._loop.run(self._submitter.submit(job))
        if not isinstance(outcome, Accepted):
            raise RuntimeError(f"a job was not accepted: {outcome}")
        return job.id

    def ended_at(self, job: str) -> float | None:
        """When its picture was there to be fetched."""
        found = self._store.get(job)
        if found is None or found.status is JobStatus.FAILED:
            raise RuntimeError(f"job {job} failed: {found and found.error}")
        return found.finished_at


class OneByOne:
    """The RQ worker of `one_by_one`."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url)

    def ask(self, request: JobRequest, due: float) -> str:
        """Submit a job."""
        return one_by_one.ask(self._redis, request)

    def ended_at(self, job: str) -> float | None:
        """When its picture was stored."""
        return one_by_one.ended_at(self._redis, job)


class StaticBatches:
    """The LitServe loop of `static_batches`, stopped while nothing is asked: it polls."""

    def __init__(self, asked: Any, answers: Any, process: BaseProcess | None = None) -> None:
        self._asked = asked
        self._answers = answers
        self._process = process
        self._count = 0
        self._ends: dict[str, float] = {}

    def ask(self, request: JobRequest, due: float) -> str:
        """Submit a job."""
        self._signal(signal.SIGCONT)
        self._count += 1
        job = f"{self._count}"
        self._asked.put((0, job, time.monotonic(), request.model_dump_json()))
        return job

    def ended_at(self, job: str) -> float | None:
        """When the pictures of its batch were stored."""
        with suppress(Empty):
            while True:
                answered, end = self._answers.get_nowait()
                self._ends[answered] = end
        if self._process is not None and not self._process.is_alive():
            raise RuntimeError("the process of the static batches has ended")
        if len(self._ends) == self._count:
            self._signal(signal.SIGSTOP)
        return self._ends.get(job)

    def _signal(self, signum: signal.Signals) -> None:
        if self._process is not None and self._process.pid is not None:
            os.kill(self._process.pid, signum)


@contextmanager
def running(plan: Plan) -> Iterator[tuple[Avocat, OneByOne, StaticBatches]]:
    """Avocat's worker and both peers on one Redis; all end on the way out."""
    data_dir = plan.settings.data_dir
    with ExitStack() as stack:
        server = EmbeddedRedis(data_dir / "redis")
        server.start()
        stack.callback(server.stop)
        asked, answers = SPAWN.Queue(), SPAWN.Queue()
        _spawn(stack, one_by_one.serve, plan, server.url, data_dir / "one-by-one")
        batches = _spawn(
            stack, static_batches.serve, plan, asked, answers, data_dir / "static-batches"
        )
        start_worker(stack, plan, server.url)
        avocat = stack.enter_context(closing(Avocat(server.url, plan)))
        yield avocat, OneByOne(server.url), StaticBatches(asked, answers, batches)


def _spawn(stack: ExitStack, target: Any, *arguments: Any) -> BaseProcess:
    process = SPAWN.Process(target=target, args=arguments, daemon=True)
    process.start()
    stack.callback(process.join)
    stack.callback(process.kill)  # also ends one that is stopped
    return process


def start_worker(stack: ExitStack, plan: Plan, url: str) -> None:
    """A worker with the settings of the plan, which finds the runtime chosen before."""
    named = ("bundle", "device", "slots", "micro_batch", "threads", "runtime", "data_dir")
    values = {name: getattr(plan.settings, name) for name in named} | {"redis_url": url}
    given = {f"AVOCAT_{name.upper()}": str(value) for name, value in values.items()}
    process = subprocess.Popen(
        program("worker"),
        env=environment() | given | {"AVOCAT_LOG_LEVEL": "warning"},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=tied_to_parent(signal.SIGTERM),
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
