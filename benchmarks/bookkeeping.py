"""What of an engine's step is the network's, and what goes to samplers and bookkeeping."""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.results import Result, interleaved, result
from benchmarks.subject import Plan, engine_of, engine_threads, executed, mixed, row_specs
from models.bundle import Bundle
from models.unet import Denoiser

__all__ = ["measure"]

STEPS = 8  # timed as one; fewer than any job has, so that all rows stay


class _Nothing(nn.Module):
    """A network that costs nothing."""

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Answer with the picture itself."""
        return x


def measure(plan: Plan) -> list[Result]:
    """The share of the network in a step with all slots taken by a mix of jobs."""
    bundle, chosen = executed(plan)
    empty = Denoiser(_Nothing(), bundle.schedule, bundle.denoiser.parameterisation).eval()
    sides = {
        "real": _steps(plan, bundle),
        "null": _steps(plan, replace(bundle, denoiser=empty.to(plan.device))),
    }
    found = interleaved(sides, plan.seconds)
    pairs = zip(found["null"], found["real"], strict=True)
    return [
        result(
            f"share of the network in a step, {plan.settings.slots} mixed rows ({chosen.name})",
            [1 - null / real for null, real in pairs],
            unit="share",
            at_least=0.98,
            command=plan.command,
        )
    ]


def _steps(plan: Plan, bundle: Bundle) -> Callable[[], float]:
    """Seconds of some steps of a full engine, with other jobs each time: as many as there are."""
    dice = random.Random(4)

    @engine_threads(plan)
    def run() -> float:
        jobs = [(f"{job}", mixed(dice)) for job in range(plan.settings.slots)]
        specs = [spec for job, request in jobs for spec in row_specs(bundle, request, job)]
        engine = engine_of(plan, bundle)
        engine.admit(specs)
        engine.step()  # the first one draws the noise
        began = time.perf_counter()
        for _ in range(STEPS):
            if engine.step().finished:
                raise RuntimeError("rows left the engine before their end")
        if plan.device.type == "cuda":
            torch.cuda.synchronize(plan.device)
        return time.perf_counter() - began

    return run
