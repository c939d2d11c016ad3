"""What is measured: the bundle in the runtime that a worker would choose, and a mix of jobs."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import torch

from app.jobs.ids import new_job_id
from app.jobs.record import JobRecord, JobRequest, Sampler
from app.settings import Settings
from models.bundle import Bundle, load_bundle
from models.processor import cores
from worker.capacity import streams
from worker.engine import Engine
from worker.rows import RowSpec
from worker.runtimes.choice import Measured, with_runtime
from worker.streams import Streams

__all__ = [
    "PROMPTS",
    "Plan",
    "engine_of",
    "engine_threads",
    "executed",
    "loaded",
    "mixed",
    "record",
    "row_specs",
    "seconds_of",
]

# Fixed, so that figures of different days are of the same load.
_SAMPLERS: Final[tuple[Sampler, ...]] = ("ddpm", "ddim", "dpmpp_2m")
PROMPTS: Final = (
    "a red apple",
    "a cat face",
    "a blue car",
    "a yellow star",
    "a green tree",
    "a slice of pizza",
    "a smiling sun",
    "a wooden house",
)
GUIDANCE: Final = (1.0, 3.0, 5.0)  # 1: without guidance, at half the price
_BLOCK_S = 0.2  # of calls that are timed as one


@dataclass(frozen=True)
class Plan:
    """How to measure.

    `settings` are those of the service; its data folder holds only what this run leaves there.
    """

    seconds: float
    settings: Settings
    command: str
    pictures: Path | None = None  # where plots are drawn; None: nowhere

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return _device(self.settings)

    def wait(self) -> None:
        """Until the device has done what it was asked to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def threads(self) -> int:
        """Of the network on CPU."""
        return self.settings.threads or cores()

    @property
    def streams(self) -> Streams:
        """Where a worker calls its network."""
        count = streams(loaded(self.settings), self.settings.micro_batch, self.threads)
        return _streams(count, self.threads // count)


_streams = cache(Streams)  # whose threads stay


@cache
def loaded(settings: Settings) -> Bundle:
    """The bundle of the settings, as it lies there; loaded once."""
    torch.set_num_threads(settings.threads or cores())
    return load_bundle(settings.bundle, _device(settings))


def _device(settings: Settings) -> torch.device:
    """As a worker resolves it; worker.start would bring Redis and RQ with it."""
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(auto if settings.device == "auto" else settings.device)


@cache
def _executed(
    settings: Settings, count: int, threads: int, rows: int, wanted: str
) -> tuple[Bundle, Measured]:
    return with_runtime(
        loaded(settings),
        wanted=wanted,
        rows=rows,
        streams=Streams(count, threads),
        cache=settings.runtimes_dir,
    )


def executed(
    plan: Plan, rows: int | None = None, wanted: str | None = None
) -> tuple[Bundle, Measured]:
    """The bundle in the runtime that a worker chooses with these settings.

    For `rows` at a time it is one call after the other, each on all cores.
    """
    settings, streams = plan.settings, plan.streams if rows is None else Streams(1, plan.threads)
    return _executed(
        settings,
        streams.count,
        streams.threads,
        rows or settings.micro_batch,
        wanted or settings.runtime,
    )


@contextmanager
def engine_threads(plan: Plan) -> Iterator[None]:
    """Torch's threads as the engine's own thread has them: more would spin beside its streams."""
    before = torch.get_num_threads()
    torch.set_num_threads(plan.streams.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def engine_of(
    plan: Plan, bundle: Bundle, slots: int | None = None, streams: Streams | None = None
) -> Engine:
    """An engine as a worker has it, with other `slots` or `streams` if given."""
    settings, streams = plan.settings, streams or plan.streams
    return Engine(bundle, slots or settings.slots, settings.micro_batch, streams=streams)


def mixed(dice: random.Random, *, most_images: int = 1) -> JobRequest:
    """A job as a mixed public would send it: 10 to 50 steps, three samplers, guided or not."""
    sampler: Sampler = dice.choice(_SAMPLERS)
    return JobRequest(
        prompt=dice.choice(PROMPTS),
        model="",
        n=dice.randint(1, most_images),
        seed=dice.randrange(2**32),
        steps=dice.randint(10, 50),
        sampler=sampler,
        guidance_scale=dice.choice(GUIDANCE),
        size="",
        background="transparent",
        cache=False,
    )


def record(request: JobRequest, bundle: Bundle, created_at: float) -> JobRecord:
    """The job record that the API would make of a request, in the bundle's native size."""
    side = bundle.config.image_size
    changes = {"model": bundle.config.name, "size": f"{side}x{side}"}
    return JobRecord(
        id=new_job_id(created_at),
        owner="benchmark",
        created_at=created_at,
        expires_at=created_at + 3600,
        retention_s=3600,
        request=request.model_copy(update=changes),
        total_steps=request.steps,
    )


def row_specs(bundle: Bundle, request: JobRequest, job: str) -> list[RowSpec]:
    """The rows of a job."""
    size = bundle.sizes[0]
    given = bundle.context.conditioning(request.prompt, "", request.guidance_scale, size)
    first = RowSpec(
        job=job,
        index=0,
        seed=request.seed,
        sampler=request.sampler,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        guidance_interval=request.guidance_interval,
        context=given.context,
        unconditional=given.unconditional,
        shape=bundle.shape(size),
    )
    return [replace(first, index=i, seed=request.seed + i) for i in range(request.n)]


def seconds_of(call: Callable[[], object], plan: Plan) -> float:
    """Mean seconds of one call, over a block of them; one more before it is not counted.

    A block, because threads of the side measured before may still spin for a while.
    """
    call()
    plan.wait()
    block_s = min(_BLOCK_S, plan.seconds / 20)
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < block_s:
        call()
        calls += 1
    plan.wait()
    return (time.perf_counter() - began) / calls
