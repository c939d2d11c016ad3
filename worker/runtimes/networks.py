"""Ways to execute the denoiser's network, each a module of the network's own contract.

All take one batch shape, `rows`, for that is what keeps a row's result apart from its neighbours'.
"""

import copy
import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from models.layers import channels_last
from models.unet import UNet
from worker.runtimes.graphs import Graphed, compiled
from worker.runtimes.onnx_file import INPUTS, OUTPUT, onnx_file
from worker.runtimes.steady import make_steady

__all__ = [
    "BUILDERS",
    "OWN_THREADS",
    "Arguments",
    "Plan",
    "available",
    "example",
    "examples",
    "executing",
]

Arguments = tuple[Tensor, Tensor, Tensor]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Plan:
    """What a runtime is built for: `rows` of one batch, on CPU `threads` of each of its callers.

    `streams` threads may call it at a time. `onnx` is a file that need not be there yet; it holds
    this network for this many rows. Timesteps from `noisy_from` on are mostly noise.
    """

    network: UNet
    rows: int
    threads: int
    onnx: Path
    streams: int = 1
    noisy_from: int = 0

    @property
    def wide(self) -> "Plan":
        """The same for a single caller, with all threads to itself."""
        return replace(self, threads=self.threads * self.streams, streams=1)


Builder = Callable[[Plan], nn.Module]


class _PerThread:
    """What bears no second caller: each thread is made its own."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._local = threading.local()

    def get(self) -> Any:
        if not hasattr(self._local, "made"):
            self._local.made = self._make()
        return self._local.made


class _Bound:
    """Arguments and answer in memory of one caller's own, of which a runtime is told only once.

    To hand it new arrays for each call takes OpenVINO a tenth of the call, most of that with
    Python's lock, for which the other streams then wait.
    """

    def __init__(self, inputs: Sequence[Array], output: Array, run: Callable[[], Any]) -> None:
        self._inputs, self._output, self._run = inputs, output, run

    def __call__(self, *arguments: Tensor) -> Tensor:
        # Copied by numpy: torch's threads, once woken for a large batch, would spin beside others.
        for own, given in zip(self._inputs, arguments, strict=True):
            if given.shape != own.shape:  # it would be spread over all rows
                raise ValueError(f"{list(given.shape)} where {list(own.shape)} are computed")
            np.copyto(own, given.numpy())
        self._run()
        answer = torch.empty(self._output.shape)  # the next one is written into the same memory
        np.copyto(answer.numpy(), self._output)
        return answer


class _OnnxRuntime(nn.Module):
    """The network in an ONNX Runtime session on CPU, one for each thread that calls."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = plan.threads
        options.inter_op_num_threads = 1
        # Else its threads spin for 30 ms after a call, on cores that others need.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = partial(
            onnxruntime.InferenceSession,
            _onnx(plan),
            options,
            providers=["CPUExecutionProvider"],
        )
        first = [session()]
        # One of a single thread has no pool of its own, and serves all callers.
        make: Callable[[], Any] = (
            (lambda: first.pop() if first else session()) if plan.threads > 1 else lambda: first[0]
        )
        blank = example(plan.network, plan.rows, torch.device("cpu"))
        self._of_thread = _PerThread(lambda: _bound_session(make(), blank))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self._of_thread.get()(x, timestep, context)
        return out


def _bound_session(session: Any, like: Arguments) -> _Bound:
    # Torch's memory, which is aligned alike wherever a process has it.
    inputs, output = [one.clone().numpy() for one in like], torch.empty_like(like[0]).numpy()
    binding = session.io_binding()
    for name, own in zip(INPUTS, inputs, strict=True):
        binding.bind_input(name, *_memory(own))
    binding.bind_output(OUTPUT, *_memory(output))
    return _Bound(inputs, output, partial(session.run_with_iobinding, binding))


def _memory(own: Array) -> tuple[Any, ...]:
    """As ONNX Runtime is told of it."""
    return "cpu", 0, own.dtype, own.shape, own.ctypes.data


@cache
def _openvino_core() -> Any:
    """The one of this process, never let go.

    Its CPU plugin gives the thread that first uses it another stack for signals, and unmaps that
    with itself: once let go by another thread, the next signal would be the end of the process.
    """
    import openvino

    return openvino.Core()


class _OpenVino(nn.Module):
    """The network in OpenVINO requests on CPU, one for each thread that calls."""

    def __init__(self, plan: Plan, precision: str = "f32") -> None:
        super().__init__()
        core = _openvino_core()
        # From ONNX and not by its own converter, which has crashed beside torch.
        model = core.read_model(_onnx(plan))
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": plan.threads * plan.streams,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": plan.streams,
            "CACHE_DIR": str(plan.onnx.parent / "openvino"),  # half the time of a later start
        }
        compiled = core.compile_model(model, "CPU", options)
        self._of_thread = _PerThread(lambda: _bound_request(compiled.create_infer_request()))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self._of_thread.get()(x, timestep, context)
        return out


def _bound_request(request: Any) -> _Bound:
    inputs = [request.get_input_tensor(i).data for i in range(len(INPUTS))]
    output = request.get_output_tensor(0).data
    return _Bound(inputs, output, partial(request.infer, share_outputs=True))


class _Half(nn.Module):
    """The network in plain torch, weights and features in 16 bits."""

    def __init__(self, plan: Plan, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._network = channels_last(copy.deepcopy(plan.network).to(dtype))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self._network(x.to(self._dtype), timestep, context.to(self._dtype))
        return out.float()


class _Mixed(nn.Module):
    """Float32 where x_t is mostly noise, bfloat16 after that.

    What a picture is to be is decided in its noisy steps: rounding errors there grow into another
    picture, those of later steps stay as small as they are.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._exact, self._fast = _OnnxRuntime(plan), _OpenVino(plan, "bf16")
        self.noisy_from = plan.noisy_from

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        noisy = [t >= self.noisy_from for t in timestep.tolist()]
        if all(noisy):
            return self._exact(x, timestep, context)  # type: ignore[no-any-return]
        fast: Tensor = self._fast(x, timestep, context)
        if not any(noisy):
            return fast
        rows = torch.tensor(noisy).reshape(-1, 1, 1, 1)
        return torch.where(rows, self._exact(x, timestep, context), fast)


def _plain(plan: Plan, dtype: torch.dtype) -> nn.Module:
    return channels_last(plan.network) if dtype == torch.float32 else _Half(plan, dtype)


def _eager(plan: Plan, dtype: torch.dtype = torch.float32) -> nn.Module:
    network, device = _plain(plan, dtype), next(plan.network.parameters()).device
    if device.type == "cuda":  # graphs see to that themselves
        with torch.inference_mode():
            make_steady(network, example(plan.network, plan.rows, device))
    return network


def _graphs(plan: Plan, dtype: torch.dtype = torch.float32) -> nn.Module:
    return Graphed(_plain(plan, dtype))


def _compiled(plan: Plan, dtype: torch.dtype = torch.float32) -> nn.Module:
    network, device = _plain(plan, dtype), next(plan.network.parameters()).device
    if device.type != "cuda":
        return compiled(network, plan.onnx.parent)
    graphed = Graphed(network)
    graphed.fuse(example(plan.network, plan.rows, device), plan.onnx.parent)
    return graphed


BUILDERS: Final[Mapping[str, Builder]] = {
    "eager": _eager,
    "compile": _compiled,
    "compile-fp16": partial(_compiled, dtype=torch.float16),
    "onnxruntime": _OnnxRuntime,
    "openvino": _OpenVino,
    "openvino-bf16": partial(_OpenVino, precision="bf16"),
    "mixed-bf16": _Mixed,
    "eager-bf16": partial(_eager, dtype=torch.bfloat16),
    "graphs": _graphs,
    "graphs-fp16": partial(_graphs, dtype=torch.float16),
    "graphs-bf16": partial(_graphs, dtype=torch.bfloat16),
}
_ON_GPU = {"graphs", "graphs-fp16", "graphs-bf16", "compile-fp16"}
_NEEDS = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "openvino-bf16": ("onnx", "openvino"),
    "mixed-bf16": ("onnx", "onnxruntime", "openvino"),
}
# These have threads of their own, as many as they are told; torch's are those of its caller.
OWN_THREADS: Final = frozenset(_NEEDS)


def executing(name: str) -> list[str]:
    """The packages whose code runs the network; `onnx` only writes it down."""
    return [package for package in _NEEDS.get(name, ("torch",)) if package != "onnx"]


def available(device: torch.device) -> list[str]:
    """Names of the runtimes that can be built here: their packages are there, the device fits."""
    return [
        name
        for name in BUILDERS
        if (not name.endswith("-bf16") or _has_bf16(device))
        and (name not in _ON_GPU or device.type == "cuda")
        and (
            name not in _NEEDS
            or (device.type == "cpu" and all(importlib.util.find_spec(one) for one in _NEEDS[name]))
        )
    ]


def _has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; elsewhere it would only be slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def examples(
    network: UNet, rows: int, device: torch.device, training_length: int
) -> list[Arguments]:
    """Arguments of eight calls, spread evenly over the way, as rows make them."""
    x, _, context = example(network, rows, device)
    middles = [int(training_length * (i + 0.5) / 8) for i in range(8)]
    return [(x, torch.full((rows,), t, device=device), context) for t in middles]


def example(network: UNet, rows: int, device: torch.device) -> Arguments:
    """Arguments as the engine gives them: noise, timesteps spread over the way, contexts."""
    config = network.config
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(rows, config.channels, config.image_size, config.image_size, generator=dice)
    context = nn.functional.normalize(
        torch.randn(rows, config.context_width, generator=dice), dim=1
    )
    timestep = torch.linspace(0, 999, rows).long()
    return x.to(device), timestep.to(device), context.to(device)


def _onnx(plan: Plan) -> str:
    return onnx_file(plan.network, example(plan.network, plan.rows, torch.device("cpu")), plan.onnx)
