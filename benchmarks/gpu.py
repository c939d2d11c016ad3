"""The lines that need a GPU, in one process without Redis: for a machine that is lent for minutes.

python -m benchmarks.gpu --output gpu.json
python -m benchmarks --merge gpu.json     (afterwards, where the results are kept)
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch

from app.settings import Settings
from benchmarks import page, stable_diffusion
from benchmarks.arrivals import Arrival, arrivals, at_once
from benchmarks.forward import network_of
from benchmarks.gemm import flops_of, flops_of_call
from benchmarks.results import Result, interleaved, machine, ratios, result
from benchmarks.stable_diffusion import Line
from benchmarks.subject import Plan, engine_of, executed, loaded, row_specs, seconds_of
from models.bundle import Bundle
from models.pictures import to_picture
from models.sampling import sample
from worker.rows import blank_batch
from worker.runtimes.by_torch import runtime_name
from worker.runtimes.graphs import Graphed
from worker.runtimes.networks import example

__all__ = ["COMMANDS", "measure", "one_by_one", "together"]

COMMAND: Final = "python -m benchmarks.gpu"
SIDES: Final = (4096, 8192, 16384)  # of the bf16 products; the best one counts
SHARE, LATENCY, THROUGHPUT = 0.35, 5.0, 3.0
STABLE_DIFFUSION = (2.0, 1.5)  # pictures/s ÷ those of diffusers one at a time, of static batches
OVERLOAD, BUSY = 1.2, 0.8
ROUNDS = 3
MODELS = ("bundle", "sd")
COMMANDS: Final = {model: f"{COMMAND} --only {model}" for model in MODELS}  # of each one's lines
Serve = Callable[[Sequence[Arrival]], list[float]]  # seconds from when each came to its picture


def main() -> int:
    """Measure, and write the results to a file."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try it out")
    parser.add_argument("--rows", type=int, default=64, help="of a micro-batch (default: 64)")
    parser.add_argument("--slots", type=int, default=256, help="of the engine (default: 256)")
    parser.add_argument("--sd-rows", type=int, default=8, help="of Stable Diffusion's (default: 8)")
    parser.add_argument("--only", choices=MODELS, help="one of the two models")
    parser.add_argument("--seconds", type=float, default=300.0, help="beside what is built first")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="avocat-bench-") as folder:
        settings = Settings(
            data_dir=Path(folder),
            device=options.device,
            micro_batch=options.rows,
            slots=options.slots,
        )
        plan = Plan(options.seconds, settings, COMMAND)
        found = measure(plan, options.sd_rows, [options.only] if options.only else MODELS)
    page.write(options.output, found)
    for one in found:
        print(f"{one.name}: {one.value:.4g} ({one.low:.4g} to {one.high:.4g}) {one.unit}")
    return 0


def measure(plan: Plan, sd_rows: int, models: Sequence[str] = MODELS) -> list[Result]:
    """All lines of some models; the bundle has a third of the time, Stable Diffusion the rest."""
    found: list[Result] = []
    if "bundle" in models:
        bundle, chosen = executed(plan)
        lines = _of_the_bundle(plan, bundle, plan.seconds / 3)
        found += _results(plan, "bundle", "GPU", lines, chosen.name)
    if "sd" in models:
        what = "SD 1.5" if plan.device.type == "cuda" else "SD 1.5 scaled down"
        studio = _studio(plan, sd_rows)
        runtime = runtime_name(studio.model).split(" ")[0]
        lines = _of_stable_diffusion(plan, studio, 2 * plan.seconds / 3)
        found += _results(plan, "sd", f"GPU: {what}", lines, runtime)
    return found


def _results(
    plan: Plan, model: str, before: str, lines: Sequence[Line], runtime: str
) -> list[Result]:
    on = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else None
    return [
        result(
            f"{before}: {name} ({runtime})",
            rounds,
            unit=unit,
            at_least=least,
            command=COMMANDS[model],
            on=machine(on),
        )
        for name, rounds, unit, least in lines
    ]


def _studio(plan: Plan, rows: int) -> stable_diffusion.Studio:
    """In full shape on a GPU, random weights."""
    with torch.inference_mode():
        folder = plan.settings.data_dir / "stable-diffusion"
        return stable_diffusion.studio(plan.settings, folder, plan.device, plan.threads, rows)


@torch.inference_mode()
def _of_the_bundle(plan: Plan, bundle: Bundle, seconds: float) -> list[Line]:
    network, rows = network_of(loaded(plan.settings).denoiser.network), plan.settings.micro_batch
    arguments = example(network, rows, plan.device)
    call = partial(bundle.denoiser.network, *arguments)
    shares = _shares(plan, call, flops_of(network, rows), rows, seconds / 6)
    return [*shares, *_loads(plan, bundle, 5 * seconds / 6)]


@torch.inference_mode()
def _of_stable_diffusion(plan: Plan, studio: stable_diffusion.Studio, seconds: float) -> list[Line]:
    rows = studio.micro_batch
    arguments = blank_batch(studio.model, rows)
    denoiser = studio.model.denoiser
    call = partial(denoiser, *arguments)
    plain = denoiser.network if isinstance(denoiser, Graphed) else denoiser
    flops = flops_of_call(partial(plain, *arguments))
    [share, _] = _shares(plan, call, flops, rows, seconds / 20)
    return [share, *stable_diffusion.lines(studio, seconds, STABLE_DIFFUSION)]


def _shares(
    plan: Plan, forward: Callable[[], object], flops: int, rows: int, seconds: float
) -> list[Line]:
    """Of the best bf16 product of the same run; on a CPU small ones, only to try it out."""
    calls: dict[str, Callable[[], object]] = {"forward": forward}
    sides = SIDES if plan.device.type == "cuda" else (256,)
    for side in sides:
        first, second = torch.randn(2, side, side, device=plan.device, dtype=torch.bfloat16)
        calls[f"{side}"] = partial(torch.mm, first, second)
    timed = {name: partial(seconds_of, call, plan) for name, call in calls.items()}
    found = interleaved(timed, seconds)
    peaks = [
        max(2 * side**3 / seconds for side, seconds in zip(sides, turn, strict=True))
        for turn in zip(*(found[f"{side}"] for side in sides), strict=True)
    ]
    reached = [flops / one for one in found["forward"]]
    name = f"share of the bf16 matmul peak in the forward, batch {rows}"
    return [
        (name, ratios(reached, peaks), "share", SHARE),
        ("best bf16 matmul of the same run", [one / 1e12 for one in peaks], "TFLOP/s", None),
    ]


def _loads(plan: Plan, bundle: Bundle, seconds: float) -> list[Line]:
    ours, alone = partial(together, plan, bundle), partial(one_by_one, plan)
    rate = 4 / max(alone(at_once(random.Random(0), 4)))
    ours(at_once(random.Random(0), 4))  # what is done only once
    span = seconds / ROUNDS / 5  # of each burst and load
    saturated, throughput, overload = [], [], []
    calm: list[float] = []
    for number in range(ROUNDS):
        dice = random.Random(number)
        few = at_once(dice, max(4, round(rate * span)))
        capacity = len(few) / max(alone(few))
        many = at_once(dice, max(4 * plan.settings.slots, len(few)))
        saturated.append(len(many) / max(ours(many)))
        throughput.append(saturated[-1] / capacity)
        jobs = arrivals(dice, OVERLOAD * capacity, span)
        overload.append(statistics.fmean(alone(jobs)) / statistics.fmean(ours(jobs)))
        calm += ours(arrivals(dice, BUSY * saturated[-1], span))
    p50, p95 = statistics.median(calm), statistics.quantiles(calm, n=20)[-1]
    return [
        ("pictures/s at saturation, jobs of 10 to 50 steps", saturated, "pictures/s", None),
        ("throughput: engine ÷ one job at a time", throughput, "times as many", THROUGHPUT),
        (
            f"mean latency at {OVERLOAD} × capacity: one job at a time ÷ engine",
            overload,
            "times as long",
            LATENCY,
        ),
        (f"p50 of the latency at {BUSY} × saturation", [p50], "s", None),
        (f"p95 of the latency at {BUSY} × saturation", [p95], "s", None),
    ]


def together(plan: Plan, bundle: Bundle, jobs: Sequence[Arrival]) -> list[float]:
    """The engine, which takes each job in before the step that follows its arrival."""
    engine = engine_of(plan, bundle)
    ends: dict[int, float] = {}
    began, coming = time.perf_counter(), 0
    while len(ends) < len(jobs):
        now = time.perf_counter() - began
        while coming < len(jobs) and jobs[coming].at_s <= now:
            engine.admit(row_specs(bundle, jobs[coming].request, f"{coming}"))
            coming += 1
        if engine.idle:
            time.sleep(max(0.0, jobs[coming].at_s - now))
            continue
        for finished in engine.step().finished:
            to_picture(finished.picture)
            ends[int(finished.job)] = time.perf_counter() - began
    return [ends[number] - job.at_s for number, job in enumerate(jobs)]


def one_by_one(plan: Plan, jobs: Sequence[Arrival]) -> list[float]:
    """The jobs in the order they came, each drawn alone, in the runtime that is best for that."""
    bundle, _ = executed(plan, rows=1)
    side = bundle.config.image_size
    latencies = []
    began = time.perf_counter()
    for job in jobs:
        time.sleep(max(0.0, began + job.at_s - time.perf_counter()))
        [picture] = sample(
            bundle.denoiser,
            bundle.schedule,
            bundle.context.encode([job.request.prompt]),
            bundle.context.empty,
            [job.request.seed],
            (bundle.config.channels, side, side),
            sampler=job.request.sampler,
            steps=job.request.steps,
            guidance_scale=job.request.guidance_scale,
            parameterisation=bundle.config.parameterisation,
        )
        to_picture(picture)
        latencies.append(time.perf_counter() - began - job.at_s)
    return latencies


if __name__ == "__main__":
    sys.exit(main())
