"""A call that no other is beside: on all threads where that is faster, the same bits always."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.bundle import Bundle
from models.unet import Denoiser
from tests.worker.test_engine import alone, drain, random_spec
from worker.engine import Engine
from worker.rows import RowSpec, lone
from worker.runtimes import choice
from worker.runtimes import lone as timed
from worker.runtimes.choice import Measured, with_runtime
from worker.runtimes.lone import Lone
from worker.runtimes.networks import BUILDERS, Plan, available
from worker.streams import Streams

CPU = torch.device("cpu")
ARGUMENTS = (torch.zeros(1), torch.tensor([5]), torch.zeros(1))


def executed(bundle: Bundle, wanted: str, cache: Path, count: int = 2) -> tuple[Bundle, Measured]:
    if wanted not in available(CPU):
        pytest.skip(f"{wanted} is not installed")
    return with_runtime(bundle, wanted=wanted, rows=1, streams=Streams(count), cache=cache)


@pytest.mark.parametrize("wanted", ["onnxruntime", "openvino"])
def test_all_threads_give_the_bits_of_a_stream(lively: Bundle, wanted: str, tmp_path: Path) -> None:
    bundle, measured = executed(lively, wanted, tmp_path)
    assert measured.wide
    narrow, wide = lone(bundle.denoiser)._ways  # type: ignore[attr-defined]
    config, dice = bundle.config, torch.Generator().manual_seed(3)
    size = (1, config.channels, config.image_size, config.image_size)
    for t in range(0, 1000, 37):
        x = torch.randn(size, generator=dice) * (0.1 + t / 100)
        context = torch.randn(1, config.denoiser.context_width, generator=dice)
        arguments = (x, torch.tensor([t]), context)
        assert torch.equal(narrow(*arguments), wide(*arguments))


def test_who_has_one_stream_or_torchs_threads_has_no_other_way(
    lively: Bundle, tmp_path: Path
) -> None:
    for bundle, measured in (
        executed(lively, "onnxruntime", tmp_path, count=1),
        executed(lively, "eager", tmp_path),
    ):
        assert not measured.wide
        assert lone(bundle.denoiser) is bundle.denoiser


def test_other_bits_are_never_drawn(
    lively: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Adds(nn.Module):
        """In another order where there are more threads."""

        def __init__(self, plan: Plan) -> None:
            super().__init__()
            self._network, self._more = plan.network, (plan.threads - 1) * 1e-7

        def forward(self, *arguments: Tensor) -> Tensor:
            out: Tensor = self._network(*arguments)
            return out + self._more

    monkeypatch.setattr(choice, "BUILDERS", {"eager": BUILDERS["eager"], "onnxruntime": Adds})
    bundle, measured = executed(lively, "onnxruntime", tmp_path)
    assert (measured.difference, measured.wide) == (0, False)
    assert lone(bundle.denoiser) is bundle.denoiser


def counting(bundle: Bundle) -> tuple[Bundle, list[str]]:
    """Notes which way each call is made."""
    calls: list[str] = []

    def noting(name: str) -> Callable[..., Tensor]:
        def call(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            calls.append(name)
            return bundle.denoiser(x, timestep, context)

        return call

    denoiser = noting("stream")
    denoiser.lone = noting("all")  # type: ignore[attr-defined]
    return replace(bundle, denoiser=denoiser), calls  # type: ignore[arg-type]


def row(bundle: Bundle, job: str, steps: int, guidance_scale: float) -> RowSpec:
    made = random_spec(bundle, job, random.Random(5))
    changes = {"guidance_scale": guidance_scale, "guidance_interval": (0.0, 0.5)}
    return replace(made, steps=steps, origin=None, skipped=0, **changes)  # type: ignore[arg-type]


def test_only_a_call_that_has_no_company_has_all_threads(shared_bundle: Bundle) -> None:
    bundle, calls = counting(shared_bundle)
    whole, half = row(bundle, "a", 4, 1.0), row(bundle, "b", 6, 3.0)

    def draw(specs: list[RowSpec], streams: int = 2) -> list[str]:
        calls.clear()
        engine = Engine(bundle, slots=4, micro_batch=1, streams=Streams(streams))
        engine.admit(specs)
        pictures = drain(engine)
        found = [*calls]
        assert all(
            torch.equal(pictures[f"{one.job}/0"], alone(shared_bundle, one, 1)) for one in specs
        )
        return found

    assert draw([whole]) == 4 * ["all"]
    assert draw([half]) == 6 * ["stream"] + 3 * ["all"]  # two a step while it is guided
    both = draw([whole, replace(whole, job="c", seed=1)])
    assert both == 8 * ["stream"]
    assert draw([whole], streams=1) == 4 * ["stream"]


def test_the_way_that_was_faster_of_late_is_taken(
    shared_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, seconds, taken = [0.0], [1.0, 2.0], list[int]()
    monkeypatch.setattr(timed.time, "perf_counter", lambda: now[0])

    def way(number: int) -> Denoiser:
        class Way(nn.Module):
            def forward(self, *_: Tensor) -> Tensor:
                taken.append(number)
                now[0] += seconds[number]
                return torch.tensor(0.0)

        return Denoiser(Way(), shared_bundle.schedule, "eps")

    network = Lone(way(0), way(1))

    def share_of_wide(calls: int) -> float:
        taken.clear()
        for _ in range(calls):
            network(*ARGUMENTS)
        return sum(taken) / calls

    assert share_of_wide(4) == 0.5
    assert 0 < share_of_wide(320) < 0.05
    seconds[:] = [2.0, 1.5]  # nobody else needs the processor any more
    assert share_of_wide(320) > 0.7
    seconds[:] = [2.0, 3.0]
    assert share_of_wide(320) < 0.1


def test_each_part_of_the_network_has_its_own_pace(shared_bundle: Bundle) -> None:
    called: list[tuple[str, int]] = []

    class Way(nn.Module):
        noisy_from = 500

        def __init__(self, name: str) -> None:
            super().__init__()
            self._name = name

        def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            called.append((self._name, int(timestep)))
            return x

    narrow, wide = (Denoiser(Way(name), shared_bundle.schedule, "v") for name in ("narrow", "wide"))
    network = Lone(narrow, wide)
    for t in (10, 990, 10, 990):
        network(torch.zeros(1), torch.tensor([t]), torch.zeros(1))
    assert called == [("narrow", 10), ("narrow", 990), ("wide", 10), ("wide", 990)]
