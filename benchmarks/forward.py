"""One forward of the denoiser's network: the runtime that a worker chooses against plain torch.

As a row makes them: at timesteps that are spread over the way.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.results import Result, interleaved, ratios, result
from benchmarks.subject import Plan, executed, loaded, seconds_of
from models.unet import UNet
from worker.runtimes.networks import example, examples

__all__ = ["forwards", "measure", "plain"]


@torch.inference_mode()
def measure(plan: Plan) -> list[Result]:
    """How many times as fast it is, with the rows that a worker computes at once."""
    streams, size = plan.streams, plan.settings.micro_batch
    rows = streams.count * size
    bundle, chosen = executed(plan)
    network = network_of(loaded(plan.settings).denoiser.network)
    together, own = plain(network), bundle.denoiser.network
    length = bundle.schedule.training_length
    whole, part = (examples(network, count, plan.device, length) for count in (rows, size))
    calls = {
        "plain": lambda: [together(*one) for one in whole],
        "chosen": lambda: [streams.map(own, [one] * streams.count) for one in part],
    }
    timed = {name: partial(seconds_of, call, plan) for name, call in calls.items()}
    found = interleaved(timed, plan.seconds)
    return [
        result(
            f"forward of {rows} rows: {chosen.name} ÷ eager contiguous float32",
            ratios(found["plain"], found["chosen"]),
            unit="times as fast",
            at_least=2.0,
            command=plan.command,
        )
    ]


def network_of(module: nn.Module) -> UNet:
    """The bundle's own network.

    Raises:
        TypeError: a runtime has taken its place.
    """
    if not isinstance(module, UNet):
        raise TypeError(f"the network is a {type(module).__name__}, not a UNet")
    return module


def plain(network: UNet) -> UNet:
    """A copy as torch lays a network out by default: NCHW."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def forwards(
    plan: Plan, rows: int, networks: dict[str, nn.Module]
) -> dict[str, Callable[[], Tensor]]:
    """Calls of the networks with the same `rows` rows."""
    network = network_of(loaded(plan.settings).denoiser.network)
    arguments = example(network, rows, plan.device)
    return {name: partial(one, *arguments) for name, one in networks.items()}
