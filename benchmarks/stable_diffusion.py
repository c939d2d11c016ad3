"""A Stable Diffusion pipeline under a mixed load: the engine against two ways of serving it.

All sides draw with the same weights in one process, from the prompt to the decoded picture. The
peers are diffusers' own pipeline, job by job with the scheduler that each asks for; and static
batches over our engine, which may mix samplers, steps and guidance as those of diffusers cannot:
the batch keeps its shape until its longest row has ended, and none joins or leaves before.
"""

import random
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from app.jobs.record import JobRequest, Sampler
from app.settings import Settings
from benchmarks.arrivals import Arrival
from benchmarks.results import Result, ratios, result
from benchmarks.sd_pipeline import FULL, SMALL, build, imported
from benchmarks.static_batches import BATCH_TIMEOUT_S, MOST, draw_batch
from benchmarks.subject import PROMPTS, Plan
from models.model import Model
from models.pictures import to_picture
from worker.capacity import streams, with_capacity
from worker.engine import Engine
from worker.rows import RowSpec
from worker.streams import Streams

__all__ = [
    "Studio",
    "call",
    "draw",
    "draw_in_batches",
    "draw_one_by_one",
    "lines",
    "measure",
    "studio",
]

GUIDANCE: Final = (1.0, 5.0, 7.5)  # 1: without, at half the price
SCHEDULERS: Final[Mapping[Sampler, str]] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}
BUSY: Final = 0.8  # of what diffusers gets through one at a time
LEAST_ROUNDS, MOST_ROUNDS, ROUND_S = 2, 5, 60.0
FIRST_JOBS = 4
_STORING_THREADS = 2  # as a worker has

Serve = Callable[[Sequence[Arrival]], list[float]]  # seconds from when each was due to its end
Line = tuple[str, Sequence[float], str, float | None]


def mixed(dice: random.Random) -> JobRequest:
    """A job of 10 to 50 steps, any of the samplers that diffusers has too, guided or not."""
    return JobRequest(
        prompt=dice.choice(PROMPTS),
        model="sd",
        seed=dice.randrange(2**32),
        steps=dice.randint(10, 50),
        sampler=dice.choice(list(SCHEDULERS)),
        guidance_scale=dice.choice(GUIDANCE),
        size="",
        background="white",
        cache=False,
    )


@dataclass(frozen=True, eq=False)
class Studio:
    """The pipeline as both sides have it."""

    model: Model
    pipeline: Any  # diffusers'
    slots: int
    micro_batch: int
    streams: Streams
    threads: int  # all of them, on CPU

    def engine(self, slots: int = 0) -> Engine:
        """As a worker has it, with other `slots` if given."""
        return Engine(self.model, slots or self.slots, self.micro_batch, streams=self.streams)

    def row(self, request: JobRequest, job: str) -> RowSpec:
        """The row of a job."""
        size = self.model.sizes[0]
        scale = request.guidance_scale
        given = self.model.context.conditioning(request.prompt, None, scale, size)
        return RowSpec(
            job=job,
            index=0,
            seed=request.seed,
            sampler=request.sampler,
            steps=request.steps,
            guidance_scale=given.guidance_scale,
            guidance_interval=request.guidance_interval,
            context=given.context,
            unconditional=given.unconditional,
            shape=self.model.shape(size),
        )

    def develop(self, x: torch.Tensor) -> float:
        """Decode a finished row; the moment at which that is done."""
        to_picture(self.model.develop(x, self.model.sizes[0]))
        return time.perf_counter()


def studio(settings: Settings, folder: Path, device: torch.device, threads: int) -> Studio:
    """Build, import and load; in full shape on a GPU, else scaled down."""
    source = build(folder / "source", FULL if device.type == "cuda" else SMALL)
    model = imported(source, folder / "model", device)
    free = settings.model_copy(update={"slots": 0, "micro_batch": 0})
    chosen = with_capacity(free, model)
    count = streams(device, chosen.micro_batch, threads)
    calls = Streams(count, threads // count)
    pipeline = _pipeline(source).to(device)
    return Studio(model, pipeline, chosen.slots, chosen.micro_batch, calls, threads)


def _pipeline(source: Path) -> Any:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts that it is not given
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(source, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(studio: Studio, jobs: Sequence[Arrival]) -> list[float]:
    """Avocat: each job comes in before the step that follows its arrival, and leaves at its end."""
    torch.set_num_threads(studio.streams.threads)
    engine, ends = studio.engine(), dict[int, Future[float]]()
    began, coming = time.perf_counter(), 0
    with ThreadPoolExecutor(_STORING_THREADS) as pool:
        while len(ends) < len(jobs):
            now = time.perf_counter() - began
            while coming < len(jobs) and jobs[coming].at_s <= now:
                engine.admit([studio.row(jobs[coming].request, f"{coming}")])
                coming += 1
            if engine.idle:
                time.sleep(max(0.0, jobs[coming].at_s - now))
                continue
            for done in engine.step().finished:
                ends[int(done.job)] = pool.submit(studio.develop, done.picture)
    return [ends[i].result() - began - job.at_s for i, job in enumerate(jobs)]


def draw_one_by_one(studio: Studio, jobs: Sequence[Arrival]) -> list[float]:
    """diffusers: the jobs in the order they came, each by a call of its own."""
    torch.set_num_threads(studio.threads)
    began, latencies = time.perf_counter(), []
    for job in jobs:
        time.sleep(max(0.0, began + job.at_s - time.perf_counter()))
        call(studio.pipeline, job.request)
        latencies.append(time.perf_counter() - began - job.at_s)
    return latencies


def call(pipeline: Any, request: JobRequest, output_type: str = "pil") -> Any:
    """The picture of a job by diffusers' pipeline, which encodes, denoises and decodes."""
    import diffusers

    kind = getattr(diffusers, SCHEDULERS[request.sampler])
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    answer = pipeline(
        request.prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type=output_type,
    )
    return answer.images[0]


def draw_in_batches(studio: Studio, jobs: Sequence[Arrival]) -> list[float]:
    """Static batches: of all that wait, at most 16, once the batch before has left."""
    torch.set_num_threads(studio.streams.threads)
    began, latencies = time.perf_counter(), list[float]()
    while len(latencies) < len(jobs):
        first = len(latencies)
        time.sleep(max(0.0, began + jobs[first].at_s - time.perf_counter()))
        if len(jobs) > first + 1 and jobs[first + 1].at_s > time.perf_counter() - began:
            time.sleep(BATCH_TIMEOUT_S)
        now = time.perf_counter() - began
        batch = [job for job in jobs[first : first + MOST] if job.at_s <= now]
        rows = {f"{i}": studio.row(job.request, f"{i}") for i, job in enumerate(batch)}
        for x in draw_batch(studio.engine(len(rows)), rows).values():
            studio.develop(x)
        end = time.perf_counter() - began
        latencies += [end - job.at_s for job in batch]
    return latencies


def lines(studio: Studio, seconds: float, least: tuple[float | None, float | None]) -> list[Line]:
    """Ratios of pictures/s and of p95; `least`: of the first two."""
    sides: dict[str, Serve] = {
        "ours": partial(draw, studio),
        "one": partial(draw_one_by_one, studio),
        "static": partial(draw_in_batches, studio),
    }
    few = _at_once(random.Random(0), FIRST_JOBS)
    for serve in sides.values():
        serve(few)  # what is done only once
    capacity = FIRST_JOBS / max(sides["one"](few))
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / ROUND_S)))
    span = seconds / rounds / 6  # of each burst and load
    speeds, p95 = _measured(sides, capacity, rounds, span)
    return [
        (
            "pictures/s at saturation, Avocat ÷ diffusers one at a time",
            *(ratios(speeds["ours"], speeds["one"]), "times as many", least[0]),
        ),
        (
            "pictures/s at saturation, Avocat ÷ static batches",
            *(ratios(speeds["ours"], speeds["static"]), "times as many", least[1]),
        ),
        (
            f"p95 at {BUSY} × capacity, diffusers one at a time ÷ Avocat",
            *(ratios(p95["one"], p95["ours"]), "times as long", None),
        ),
        (
            f"p95 at {BUSY} × capacity, static batches ÷ Avocat",
            *(ratios(p95["static"], p95["ours"]), "times as long", None),
        ),
        ("pictures/s at saturation, Avocat", speeds["ours"], "pictures/s", None),
        (f"p95 at {BUSY} × capacity, Avocat", p95["ours"], "s", None),
    ]


def _measured(
    sides: Mapping[str, Serve], capacity: float, rounds: int, span: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Pictures a second and p95 of each side, by round; all sides have the same jobs in it."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    p95: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        dice = random.Random(number + 1)
        burst = _at_once(dice, max(2 * FIRST_JOBS, round(capacity * span)))
        load = _arrivals(dice, BUSY * capacity, max(span, 2 * FIRST_JOBS / capacity))
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            speeds[name].append(len(burst) / max(sides[name](burst)))
            p95[name].append(_p95(sides[name](load)))
    return speeds, p95


def _p95(latencies: Sequence[float]) -> float:
    if len(latencies) == 1:
        return latencies[0]
    return statistics.quantiles(latencies, n=20, method="inclusive")[-1]


def _at_once(dice: random.Random, count: int) -> list[Arrival]:
    return [Arrival(0.0, mixed(dice)) for _ in range(count)]


def _arrivals(dice: random.Random, rate: float, seconds: float) -> list[Arrival]:
    found, at_s = list[Arrival](), dice.expovariate(rate)
    while at_s < seconds or not found:
        found.append(Arrival(at_s, mixed(dice)))
        at_s += dice.expovariate(rate)
    return found


def measure(plan: Plan) -> list[Result]:
    """The ratios on this machine; the limits of the issue are those of a GPU (benchmarks.gpu)."""
    folder = plan.settings.data_dir / "stable-diffusion"
    with torch.inference_mode():
        made = studio(plan.settings, folder, plan.device, plan.threads)
        found = lines(made, plan.seconds, (None, None))
    return [
        result(
            f"SD 1.5 scaled down: {name}", rounds, unit=unit, at_least=least, command=plan.command
        )
        for name, rounds, unit, least in found
    ]
