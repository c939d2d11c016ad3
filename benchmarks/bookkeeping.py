"""What of an engine's step is the network's, and what goes to samplers and bookkeeping."""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.results import Result, interleaved, ratios, result
from benchmarks.subject import Plan, engine_of, engine_threads, executed, mixed, row_specs
from models.bundle import Bundle
from models.unet import Denoiser
from worker.streams import Streams

__all__ = ["measure"]

STEPS = 64  # timed as one; jobs end meanwhile, and others take their places
JOBS = 24  # more than that many steps end


class _Nothing(nn.Module):
    """A network that costs nothing."""

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Answer with the picture itself."""
        return x


class _Noted(nn.Module):
    """Keeps with what the network was called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.noisy_from = getattr(network, "noisy_from", 0)
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, *arguments: Tensor) -> Tensor:
        """Call it."""
        self.calls.append(arguments)
        out: Tensor = self.network(*arguments)
        return out


def measure(plan: Plan) -> list[Result]:
    """The network in a step with all slots taken by a mix of jobs, in two ways.

    One call after the other, with and without the network: then all of a step is one thread's, and
    its seconds can be shared out. And as a worker makes calls, against the same calls alone.
    """
    bundle, chosen = executed(plan)
    one = Streams(1, plan.streams.threads)
    noted = _Noted(bundle.denoiser.network)
    _steps(plan, _around(bundle, noted), plan.streams)()
    sides = {
        "real": _steps(plan, bundle, one),
        "null": _steps(plan, _around(bundle, _Nothing()), one),
        "engine": _steps(plan, bundle, plan.streams),
        "network": _bare(plan, bundle.denoiser.network, noted.calls),
    }
    found = interleaved(sides, plan.seconds)
    mix = f"{plan.settings.slots} mixed rows ({chosen.name})"
    return [
        result(
            f"share of the network in a step, {mix}",
            [1 - part for part in ratios(found["null"], found["real"])],
            unit="share",
            at_least=0.98,
            command=plan.command,
        ),
        result(
            f"the network's calls alone ÷ the engine that makes them, {mix}",
            ratios(found["network"], found["engine"]),
            unit="share",
            at_least=None,
            command=plan.command,
        ),
    ]


def _around(bundle: Bundle, network: nn.Module) -> Bundle:
    denoiser = Denoiser(network, bundle.schedule, bundle.denoiser.parameterisation).eval()
    return replace(bundle, denoiser=denoiser.to(bundle.context.device))


def _steps(plan: Plan, bundle: Bundle, streams: Streams) -> Callable[[], float]:
    """Seconds of a call of the network in some steps of a full engine, with the same jobs."""

    @engine_threads(plan)
    def run() -> float:
        dice = random.Random(4)
        jobs = [(f"{job}", mixed(dice)) for job in range(JOBS)]
        engine = engine_of(plan, bundle, streams=streams)
        engine.admit([spec for job, request in jobs for spec in row_specs(bundle, request, job)])
        engine.step()  # the first one draws the noise
        began, calls = time.perf_counter(), 0
        for _ in range(STEPS):
            calls += engine.step().calls
        plan.wait()
        took_s = time.perf_counter() - began
        for job, _ in jobs:
            engine.evict(job)
        while engine.step().calls:  # what was begun goes on, and others are measured next
            pass
        return took_s / calls

    return run


def _bare(plan: Plan, network: nn.Module, calls: list[tuple[Tensor, ...]]) -> Callable[[], float]:
    @engine_threads(plan)
    @torch.inference_mode()
    def run() -> float:
        began = time.perf_counter()
        plan.streams.start(network, calls)()
        plan.wait()
        return (time.perf_counter() - began) / len(calls)

    return run
