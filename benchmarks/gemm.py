"""How much of what the machine can multiply the forward uses."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.forward import forwards, network_of
from benchmarks.results import Result, interleaved, result
from benchmarks.subject import Plan, executed, loaded, seconds_of
from models.unet import UNet
from worker.runtimes.networks import available, example

__all__ = ["flops_of", "flops_of_call", "measure"]

ROWS = 8
_FLOAT32 = ("onnxruntime", "openvino")
SIDES = (512, 1024, 1536, 2048)  # of the square products; the best one counts


@torch.inference_mode()
def measure(plan: Plan) -> list[Result]:
    """Operations a second in the forward ÷ those of the best float32 matrix product."""
    wanted = next((name for name in _FLOAT32 if name in available(plan.device)), None)
    bundle, chosen = executed(plan, ROWS, wanted)  # of float32, as the product is
    network = network_of(loaded(plan.settings).denoiser.network)
    call = forwards(plan, ROWS, {"forward": bundle.denoiser.network})["forward"]
    sides = {"forward": partial(seconds_of, call, plan)}
    work: dict[str, int] = {}
    for side in SIDES:
        for library, product in _products(side, plan).items():
            name = f"{library}, {side}"
            sides[name], work[name] = partial(seconds_of, product, plan), 2 * side**3
    found = interleaved(sides, plan.seconds)
    flops = flops_of(network, ROWS)
    peaks = [
        max(operations / found[name][turn] for name, operations in work.items())
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
    """Floating-point operations of one forward."""
    device = next(network.parameters()).device
    return flops_of_call(partial(network, *example(network, rows, device)))


def flops_of_call(call: Callable[[], object]) -> int:
    """Floating-point operations of what torch computes in a call, a multiply-add being two."""
    counter = FlopCounterMode(display=False)
    # The fused attention kernel of the CPU is not known to the counter; the plain one is.
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return int(counter.get_total_flops())


def _products(side: int, plan: Plan) -> dict[str, Callable[[], object]]:
    """The product of two squares by each library that multiplies here."""
    dice = torch.Generator().manual_seed(side)
    first, second = torch.randn(2, side, side, generator=dice).to(plan.device)
    found: dict[str, Callable[[], object]] = {"torch": partial(torch.mm, first, second)}
    if plan.device.type == "cpu" and "onnxruntime" in available(plan.device):
        # On some processors it multiplies twice as fast as what torch was built with.
        found["onnxruntime"] = partial(
            _onnx_product(side, plan.threads).run, None, {"a": first.numpy(), "b": second.numpy()}
        )
    return found


def _onnx_product(side: int, threads: int) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper

    a, b, c = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in "abc"
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "mm", [a, b], [c])
    version = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=version, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
