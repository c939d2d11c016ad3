"""Chooses the runtime of a worker: the fastest that paints the same pictures, by measuring.

What was measured is kept in the data folder: the runtime is part of the fingerprint, another one
gives other bits, and chance must not choose between two starts.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import structlog
import torch
from torch import Tensor, nn

from models.bundle import Bundle
from models.unet import Denoiser, UNet
from worker.runtimes.networks import BUILDERS, Plan, available, example
from worker.streams import Streams

__all__ = ["Measured", "dtype_of", "is_ready", "with_runtime"]

_log = structlog.get_logger()

# Largest difference to eager in float32, of an output of order 1. `auto` takes only what stays in
# float32's. In bfloat16 pictures do not survive with samplers that draw no noise
# (docs/performance.md): it is for those who name it, and only has to be no worse than the format.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
_ROUNDS = 8
_CALLS = 3  # of each in a round: the first may meet threads of the one before
_PREFERRED = ("onnxruntime", "openvino", "eager")  # while no other is clearly faster
_CLEARLY = 1.15  # times as fast; a closer race would be decided by chance
_ONLY_BY_NAME = {"compile", "eager-bf16"}  # takes minutes to build; slower on CPU, other pictures


@dataclass(frozen=True)
class Measured:
    """A runtime on this machine."""

    name: str
    version: str  # of the package that executes
    seconds: float  # of a forward in each stream at once; the least, for other work only adds
    difference: float  # largest, absolute, to eager in float32


def with_runtime(
    bundle: Bundle, *, wanted: str, rows: int, streams: Streams, cache: Path
) -> tuple[Bundle, Measured]:
    """The bundle with its network executed by `wanted`, or by the best there is (`auto`).

    Raises:
        ValueError: there is no such runtime here, or it does not give what eager gives.
    """
    network, device = bundle.denoiser.network, bundle.context.device
    if not isinstance(network, UNet):
        raise TypeError(f"the network is a {type(network).__name__}: it has a runtime already")
    names = _candidates(wanted, device)
    cache = _writable(cache)
    known = cache / f"{_key(bundle, names, rows, streams)}.json"
    file = cache / f"{bundle.sha256[:32]}-{rows}.onnx"
    plan = Plan(network, rows, streams.threads, file, streams.count)
    measured = _read(known)
    if measured is None:
        measured = _measure(plan, names, streams, example(network, rows, device))
        _write(known, measured)
    chosen = _best(measured) if wanted == "auto" else _named(measured, wanted)
    for one in measured:
        _log.info("runtime measured", chosen=one is chosen, **asdict(one))
    executed = BUILDERS[chosen.name](plan)
    denoiser = Denoiser(executed, bundle.schedule, bundle.denoiser.parameterisation).eval()
    return replace(bundle, denoiser=denoiser.to(device)), chosen


def is_ready(bundle: Bundle, *, wanted: str, rows: int, streams: Streams, cache: Path) -> bool:
    """Whether `with_runtime` takes no more than a moment.

    Raises:
        ValueError: there is no such runtime here.
    """
    names = _candidates(wanted, bundle.context.device)
    quick = names == ["eager"] or (cache / f"{_key(bundle, names, rows, streams)}.json").exists()
    return quick and wanted != "compile"


def _candidates(wanted: str, device: torch.device) -> list[str]:
    """What is measured where `wanted` is wanted; eager always is."""
    names = available(device)
    if wanted not in ("auto", *names):
        raise ValueError(f"runtime {wanted!r} cannot run here; these can: auto, {', '.join(names)}")
    if wanted == "auto":
        return [name for name in names if name not in _ONLY_BY_NAME]
    return ["eager", wanted] if wanted != "eager" else ["eager"]


def dtype_of(runtime: str) -> str:
    """The number format that a runtime of that name computes in."""
    return "bfloat16" if runtime.split(" ")[0].endswith("-bf16") else "float32"


@torch.inference_mode()
def _measure(
    plan: Plan, names: Sequence[str], streams: Streams, arguments: tuple[Tensor, Tensor, Tensor]
) -> list[Measured]:
    """Time the runtimes by turns, so that a busy moment hits all of them alike."""
    built: dict[str, nn.Module] = {name: BUILDERS[name](plan) for name in names}
    outputs = {name: one(*arguments).clone() for name, one in built.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    every = [arguments] * streams.count
    for _ in range(_ROUNDS):
        for name, one in built.items():
            for _ in range(_CALLS):
                _wait(arguments[0])
                began = time.perf_counter()
                streams.map(one, every)
                _wait(arguments[0])
                times[name].append(time.perf_counter() - began)
    return [
        Measured(
            name,
            _version(name),
            min(times[name]),
            float((outputs[name] - outputs["eager"]).abs().max()),
        )
        for name in names
    ]


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _best(measured: Sequence[Measured]) -> Measured:
    same = {one.name: one for one in measured if one.difference <= _TOLERANCE["float32"]}
    fastest = min(same.values(), key=lambda one: one.seconds)
    near = [
        same[name]
        for name in _PREFERRED
        if name in same and same[name].seconds <= fastest.seconds * _CLEARLY
    ]
    return near[0] if near else fastest


def _named(measured: Sequence[Measured], name: str) -> Measured:
    [found] = [one for one in measured if one.name == name]
    most = _TOLERANCE[dtype_of(name)]
    if not found.difference <= most:
        raise ValueError(
            f"runtime {name!r} differs from eager by {found.difference:.3g}, more than {most}"
        )
    return found


def _version(name: str) -> str:
    package = name.removesuffix("-bf16")
    return metadata.version({"eager": "torch", "compile": "torch"}.get(package, package))


def _key(bundle: Bundle, names: Sequence[str], rows: int, streams: Streams) -> str:
    """Names all that the measurement depends on."""
    device = bundle.context.device
    machine = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    versions = [[name, _version(name)] for name in names]
    parts = json.dumps([bundle.sha256, versions, rows, streams.threads, streams.count, machine])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _writable(cache: Path) -> Path:
    """The folder itself, or one that lasts as long as the machine is up where it is read-only."""
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            return cache
    return Path(tempfile.mkdtemp(prefix="avocat-runtimes-"))


def _read(file: Path) -> list[Measured] | None:
    try:
        return [Measured(**entry) for entry in json.loads(file.read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return None


def _write(file: Path, measured: Sequence[Measured]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps([asdict(one) for one in measured], indent=2), "utf-8")
    part.replace(file)
