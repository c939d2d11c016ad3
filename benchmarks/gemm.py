"""How much of what the machine can multiply the forward uses."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.forward import forwards, network_of
from benchmarks.results import Result, interleaved, result
from benchmarks.subject import Plan, executed, loaded, seconds_of
from models.unet import UNet
from worker.runtimes.networks import example

__all__ = ["flops_of", "measure"]

ROWS = 8
SIDES = (512, 1024, 1536, 2048)  # of the square products; the best one counts


@torch.inference_mode()
def measure(plan: Plan) -> list[Result]:
    """Operations a second in the forward ÷ those of the best float32 matrix product."""
    bundle, chosen = executed(plan, ROWS)
    network = network_of(loaded(plan.settings).denoiser.network)
    call = forwards(plan, ROWS, {"forward": bundle.denoiser.network})["forward"]
    sides = {"forward": partial(seconds_of, call, plan)}
    for side in SIDES:
        product = partial(torch.mm, *_squares(side, plan.device))
        sides[f"{side}"] = partial(seconds_of, product, plan)
    found = interleaved(sides, plan.seconds)
    flops = flops_of(network, ROWS)
    peaks = [
        max(2 * side**3 / found[f"{side}"][turn] for side in SIDES)
        for turn in range(len(found["forward"]))
    ]
    shares = [flops / seconds / peak for seconds, peak in zip(found["forward"], peaks, strict=True)]
    named = f"{chosen.name}, batch {ROWS}"
    return [
        result(
            f"share of the float32 GEMM peak reached in the forward ({named})",
            shares,
            unit="share",
            at_least=0.65,
            command=plan.command,
        ),
        result(
            "best float32 GEMM of the same run",
            [peak / 1e9 for peak in peaks],
            unit="GFLOP/s",
            at_least=None,
            command=plan.command,
        ),
    ]


def flops_of(network: UNet, rows: int) -> int:
    """Floating-point operations of one forward, a multiply-add being two."""
    device = next(network.parameters()).device
    counter = FlopCounterMode(display=False)
    # The fused attention kernel of the CPU is not known to the counter; the plain one is.
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(*example(network, rows, device))
    return int(counter.get_total_flops())


def _squares(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(side)
    first, second = torch.randn(2, side, side, generator=dice).to(device)
    return first, second
