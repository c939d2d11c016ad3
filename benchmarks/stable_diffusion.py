"""A Stable Diffusion pipeline under a mixed load: the engine against two ways of serving it.

All sides draw with the same weights in one process, from the prompt to the decoded picture. The
peers are diffusers' own pipeline, job by job with the scheduler that each asks for; and static
batches over our engine, which may mix samplers, steps and guidance as those of diffusers cannot:
the batch keeps its shape until its longest row has ended, and none joins or leaves before.
"""

import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from app.jobs.record import JobRequest, Sampler
from app.settings import Settings
from benchmarks.arrivals import Arrival, arrivals, at_once, work
from benchmarks.results import Result, ratios, result
from benchmarks.sd_pipeline import FULL, SMALL, build, imported
from benchmarks.static_batches import BATCH_TIMEOUT_S, MOST, draw_batch
from benchmarks.subject import PROMPTS, Plan
from models.model import Model
from models.pictures import to_picture
from worker.capacity import streams, with_capacity
from worker.engine import Engine
from worker.rows import RowSpec
from worker.runtimes.by_torch import imported_dtype, with_fused_graph
from worker.streams import Streams

__all__ = [
    "Line",
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
BUSY: Final = 0.8  # of what a peer gets through
MOST_ROUNDS = 5
FIRST_JOBS = 2
FIRST_STEPS: Final = 2
_STORING_THREADS = 2  # as a worker has

Serve = Callable[[Sequence[Arrival]], list[float]]  # seconds from when each was due to its end
Line = tuple[str, Sequence[float], str, float | None]


class Extent(NamedTuple):
    """How much is drawn in a round."""

    steps: tuple[int, int]  # fewest and most of a job
    round_s: float
    burst: int  # jobs at least, and so of a load
    load: int
    busy: bool  # whether there is a load at the capacity of static batches

    def job(self, dice: random.Random) -> JobRequest:
        """A job of so many steps."""
        return mixed(dice, self.steps)


ON_CPU: Final = Extent((5, 25), 40.0, 2 * FIRST_JOBS, 2 * FIRST_JOBS, busy=False)
# Four static batches; and as many as a p95 can be told of.
ON_GPU: Final = Extent((10, 50), 90.0, 4 * MOST, 20, busy=True)


def mixed(dice: random.Random, steps: tuple[int, int] = ON_GPU.steps) -> JobRequest:
    """A job of so many steps, any of the samplers that diffusers has too, guided or not."""
    return JobRequest(
        prompt=dice.choice(PROMPTS),
        model="sd",
        seed=dice.randrange(2**32),
        steps=dice.randint(*steps),
        sampler=dice.choice(list(SCHEDULERS)),
        guidance_scale=dice.choice(GUIDANCE),
        size="",
        background="white",
        cache=False,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """Of each side, by round: pictures/s, and p95 at two loads."""

    speeds: dict[str, list[float]] = field(
        default_factory=lambda: {"ours": [], "one": [], "static": [], "single": []}
    )
    calm: dict[str, list[float]] = field(
        default_factory=lambda: {"ours": [], "one": [], "static": []}
    )
    busy: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "static": []})


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

    def row(self, request: JobRequest, job: str, *, twin: bool = False) -> RowSpec:
        """The row of a job; `twin`: it has an unconditional one beside it though none is asked."""
        size = self.model.sizes[0]
        scale = request.guidance_scale
        given = self.model.context.conditioning(request.prompt, None, scale, size)
        if twin and given.guidance_scale == 1:
            given = replace(given, guidance_scale=math.nextafter(1.0, 2.0))
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


def studio(
    settings: Settings, folder: Path, device: torch.device, threads: int, rows: int = 0
) -> Studio:
    """Build, import and load; in full shape and 16 bits on a GPU, else scaled down.

    `rows`: of a micro-batch; 0: as a worker would choose.
    """
    dtype = imported_dtype("auto", device)
    shape = FULL if device.type == "cuda" else SMALL
    source = build(folder / "source", shape, device=device.type, dtype=dtype)
    model = imported(source, folder / "model", device)
    free = settings.model_copy(update={"slots": 0, "micro_batch": rows})
    chosen = with_capacity(free, model)
    model = with_fused_graph(model, chosen.micro_batch, settings.runtimes_dir)
    count = streams(model, chosen.micro_batch, threads)
    calls = Streams(count, threads // count)
    pipeline = _pipeline(source, dtype).to(device)
    return Studio(model, pipeline, chosen.slots, chosen.micro_batch, calls, threads)


def _pipeline(source: Path, dtype: torch.dtype) -> Any:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts that it is not given
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            source, local_files_only=True, torch_dtype=dtype
        )
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
            report = engine.step()
            if report.faults:
                raise RuntimeError(f"a row failed: {report.faults[0].reason}")
            for done in report.finished:
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


def draw_in_batches(studio: Studio, jobs: Sequence[Arrival], *, twins: bool = False) -> list[float]:
    """Static batches: of all that wait, at most 16, once the batch before has left.

    `twins`: guided as a whole, as a batch of diffusers is that has a guided picture in it.
    """
    torch.set_num_threads(studio.streams.threads)
    began, latencies = time.perf_counter(), list[float]()
    while len(latencies) < len(jobs):
        first = len(latencies)
        time.sleep(max(0.0, began + jobs[first].at_s - time.perf_counter()))
        if len(jobs) > first + 1 and jobs[first + 1].at_s > time.perf_counter() - began:
            time.sleep(BATCH_TIMEOUT_S)
        now = time.perf_counter() - began
        batch = [job for job in jobs[first : first + MOST] if job.at_s <= now]
        twin = twins and any(job.request.guidance_scale > 1 for job in batch)
        rows = {f"{i}": studio.row(one.request, f"{i}", twin=twin) for i, one in enumerate(batch)}
        for x in draw_batch(studio.engine(len(rows)), rows).values():
            studio.develop(x)
        end = time.perf_counter() - began
        latencies += [end - job.at_s for job in batch]
    return latencies


def lines(studio: Studio, seconds: float, least: tuple[float | None, float | None]) -> list[Line]:
    """Ratios of pictures/s and of p95; `least`: against one at a time, and static batches."""
    sides: dict[str, Serve] = {
        "ours": partial(draw, studio),
        "one": partial(draw_one_by_one, studio),
        "static": partial(draw_in_batches, studio, twins=True),
        "single": partial(draw_in_batches, studio),
    }
    extent = ON_GPU if studio.model.context.device.type == "cuda" else ON_CPU
    few = at_once(random.Random(0), FIRST_JOBS, extent.job)
    cut = {"steps": FIRST_STEPS}
    brief = [replace(one, request=one.request.model_copy(update=cut)) for one in few]
    for serve in sides.values():
        serve(brief)  # what is done only once
    capacity = FIRST_JOBS / max(sides["one"](few))
    # On CPU four bursts and three loads may take longer.
    round_s = max(extent.round_s, 0 if extent.busy else 7 * extent.burst / capacity)
    rounds = max(1, min(MOST_ROUNDS, int(seconds / round_s)))
    span = seconds / rounds / 9  # of a burst or load
    found = _measured(sides, capacity, rounds, span, extent)
    many, p95 = "pictures/s at saturation, ", f"p95 at {BUSY} × the capacity of "
    one, whole = "diffusers one at a time", "static batches, guided as a whole"
    single = "static batches that leave out what none asked for"
    ours, more, sooner = found.speeds["ours"], "times as many", "times as long"
    calm, busy = found.calm, found.busy
    told: list[Line] = [
        (f"{many}Avocat ÷ {one}", ratios(ours, found.speeds["one"]), more, least[0]),
        (f"{many}Avocat ÷ {whole}", ratios(ours, found.speeds["static"]), more, least[1]),
        (f"{many}Avocat ÷ {single}", ratios(ours, found.speeds["single"]), more, None),
        (f"{p95}diffusers, {one} ÷ Avocat", ratios(calm["one"], calm["ours"]), sooner, least[0]),
    ]
    for peer, load in (("diffusers", calm), ("static batches", busy)):
        if load["ours"]:
            slower = ratios(load["static"], load["ours"])
            told.append((f"{p95}{peer}, {whole} ÷ Avocat", slower, sooner, least[1]))
            told.append((f"{p95}{peer}, Avocat", load["ours"], "s", None))
    return [*told, (f"{many}Avocat", ours, "pictures/s", None)]


def _measured(
    sides: Mapping[str, Serve],
    capacity: float,
    rounds: int,
    span: float,
    extent: Extent,
) -> _Found:
    """All sides have the same jobs in a round.

    Where one at a time would take too long for all of a burst, it has some, and its pictures a
    second follow from the forwards in both. It has no load at the capacity of static batches: it
    would never get through.
    """
    found = _Found()
    for number in range(rounds):
        dice, order = random.Random(number + 1), list(sides)[:: 1 if number % 2 == 0 else -1]
        some = max(2 * FIRST_JOBS, round(capacity * span))
        burst = at_once(dice, max(some, extent.burst), extent.job)
        for name in order:
            jobs = burst[:: len(burst) // some] if name == "one" else burst
            share = work(jobs) / work(burst)
            found.speeds[name].append(len(burst) * share / max(sides[name](jobs)))
        loads = [(BUSY * capacity, found.calm)]
        if extent.busy:
            loads.append((BUSY * found.speeds["static"][-1], found.busy))
        for rate, p95 in loads:
            load = arrivals(dice, rate, max(span, extent.load / rate), extent.job)
            for name in (name for name in order if name in p95):
                p95[name].append(_p95(sides[name](load)))
    return found


def _p95(latencies: Sequence[float]) -> float:
    if len(latencies) == 1:
        return latencies[0]
    return statistics.quantiles(latencies, n=20, method="inclusive")[-1]


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
