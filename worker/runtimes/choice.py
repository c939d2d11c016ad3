"""Chooses the runtime of a worker: the fastest that paints the same pictures, by measuring.

What was measured is kept in the data folder: the runtime is part of the fingerprint, another one
gives other bits, and chance must not choose between two starts.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Final

import structlog
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from models.bundle import Bundle
from models.sampling import sample
from models.unet import Denoiser, UNet
from worker.memory import ran_out
from worker.runtimes.lone import Lone
from worker.runtimes.networks import (
    BUILDERS,
    OWN_THREADS,
    Arguments,
    Plan,
    available,
    examples,
    executing,
)
from worker.runtimes.onnx_file import FORM
from worker.streams import Streams

__all__ = ["Measured", "dtype_of", "is_ready", "with_runtime"]

_log = structlog.get_logger()

# Largest difference to eager in float32, of an output of order 1: no worse than the format. And
# `auto` takes only what leaves pictures as they are: 99 in 100 of their values may differ by so
# many levels of 255 at most, painted by the sampler that forgives least (docs/performance.md).
_TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.2, "float32, bfloat16": 0.2}
_LEVELS = 6.0
_PROMPTS = ("a red apple", "a cat face", "a blue car", "a house")
_FORGIVES_LEAST: Final = "ddim"  # it adds no noise, and has no other errors that would hide these
_STEPS = 25  # at most
_NOISY = 0.15  # ᾱ below which it is not decided yet what a picture will be
_ROUNDS = 5  # where one of several is to be chosen
_PREFERRED = ("graphs", "onnxruntime", "openvino", "eager")  # while no other is clearly faster
_CLEARLY = 1.15  # times as fast; a closer race would be decided by chance
# It takes minutes to build on CPU; in bfloat16 throughout pictures are others.
_ONLY_BY_NAME = {"compile", "eager-bf16", "graphs-bf16"}


@dataclass(frozen=True)
class Measured:
    """A runtime on this machine."""

    name: str
    version: str  # of the package that executes
    seconds: float  # of a forward in each stream at once; the least, for other work only adds
    difference: float  # largest, absolute, to eager in float32
    # Of 255, within which 99 in 100 values of pictures stay; in float32: 0. No default: what an
    # earlier release kept says nothing of it, and is measured again.
    levels: float
    wide: bool  # whether one call on the threads of all streams gives the same bits


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
    file = cache / f"{bundle.sha256[:32]}-{rows}-form{FORM}-torch{torch.__version__}.onnx"
    noisy_from = int((bundle.schedule.alphas_cumprod >= _NOISY).sum())
    plan = Plan(network, rows, streams.threads, file, streams.count, noisy_from)
    measured = _read(known)
    if measured is None or wanted not in ("auto", *(one.name for one in measured)):
        needed = {"eager"} if wanted == "auto" else {*names}
        measured = _measure(plan, names, needed, streams, bundle)
        with suppress(OSError):  # a full disk: it is measured again at the next start
            _write(known, measured)
    chosen = _best(measured) if wanted == "auto" else _named(measured, wanted)
    for one in measured:
        _log.info("runtime measured", chosen=one is chosen, **asdict(one))
    executed = BUILDERS[chosen.name](plan)
    denoiser = _denoiser(bundle, executed)
    if chosen.wide:
        denoiser.lone = Lone(denoiser, _denoiser(bundle, BUILDERS[chosen.name](plan.wide)))
    return replace(bundle, denoiser=denoiser), chosen


def _denoiser(bundle: Bundle, network: nn.Module) -> Denoiser:
    denoiser = Denoiser(network, bundle.schedule, bundle.denoiser.parameterisation)
    return denoiser.eval().to(bundle.context.device)


def is_ready(bundle: Bundle, *, wanted: str, rows: int, streams: Streams, cache: Path) -> bool:
    """Whether `with_runtime` takes no more than a moment.

    Raises:
        ValueError: there is no such runtime here.
    """
    names = _candidates(wanted, bundle.context.device)
    kept = cache / f"{_key(bundle, names, rows, streams)}.json"
    if names == ["eager"]:
        return True
    measured = _read(kept)
    name = wanted if wanted != "auto" or measured is None else _best(measured).name
    return measured is not None and not name.startswith("compile")


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
    name = runtime.split(" ")[0]
    if name.startswith("mixed-"):
        return "float32, bfloat16"
    formats = {"bf16": "bfloat16", "fp16": "float16"}
    return formats.get(name.rpartition("-")[2], "float32")


@torch.inference_mode()
def _measure(
    plan: Plan, names: Sequence[str], needed: Collection[str], streams: Streams, bundle: Bundle
) -> list[Measured]:
    """Time the runtimes by turns, so that a busy moment hits all of them alike; once if all stay.

    One that is not `needed` may fail, as a compiler does where the system has none.
    """
    device, length = bundle.context.device, bundle.schedule.training_length
    calls = examples(plan.network, plan.rows, device, length)
    built: dict[str, nn.Module] = {}
    outputs: dict[str, Tensor] = {}
    for name in names:
        try:
            network = BUILDERS[name](plan)
            outputs[name] = _outputs(network, calls)
        except Exception as fault:
            if name in needed or ran_out(fault):
                raise
            _log.warning("runtime cannot be built", name=name, reason=str(fault)[:500])
        else:
            built[name] = network
    times: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(_ROUNDS if len(needed) < len(built) else 1):
        for name, one in built.items():
            streams.map(one, calls[:1] * streams.count)  # may meet threads of the one before
            times[name].append(_seconds(one, calls, streams))
    rounded = [name for name in built if dtype_of(name) != "float32"]
    exact = _pictures(bundle, plan.rows, built["eager"]) if rounded else torch.empty(0)
    levels = {name: _levels(exact, _pictures(bundle, plan.rows, built[name])) for name in rounded}
    return [
        Measured(
            name,
            _version(name),
            min(times[name]),
            float((outputs[name] - outputs["eager"]).abs().max()),
            levels.get(name, 0.0),
            _widens(plan, name, outputs[name], calls),
        )
        for name in built
    ]


def _widens(plan: Plan, name: str, outputs: Tensor, calls: Sequence[Arguments]) -> bool:
    """Whether a call on all threads gives what one on a stream's gave.

    In which order a runtime adds does not hang on the numbers: another order would show in some of
    so many.
    """
    if plan.streams == 1 or name not in OWN_THREADS:
        return False
    return torch.equal(_outputs(BUILDERS[name](plan.wide), calls), outputs)


def _outputs(network: nn.Module, calls: Sequence[Arguments]) -> Tensor:
    return torch.stack([network(*one).clone() for one in calls])


def _seconds(network: nn.Module, calls: Sequence[Arguments], streams: Streams) -> float:
    """Mean of the calls, each in all streams at once; of each call the least of two."""
    total = 0.0
    for one in calls:
        found = []
        for _ in range(2):
            _wait(one[0])
            began = time.perf_counter()
            streams.map(network, [one] * streams.count)
            _wait(one[0])
            found.append(time.perf_counter() - began)
        total += min(found)
    return total / len(calls)


def _levels(some: Tensor, others: Tensor) -> float:
    """Within how many levels of 255 nearly all values of the same pictures stay."""
    apart = (some - others).abs().flatten().sort().values
    return float(apart[int(0.99 * (len(apart) - 1))]) * 255 / 2


def _pictures(bundle: Bundle, rows: int, network: nn.Module) -> Tensor:
    """Some pictures in [-1, 1], in batches of `rows`."""
    prompts = (_PROMPTS * rows)[: max(rows, len(_PROMPTS) // rows * rows)]
    parts = (prompts[at : at + rows] for at in range(0, len(prompts), rows))
    return torch.cat([_painted(bundle, network, part) for part in parts])


def _painted(bundle: Bundle, network: nn.Module, prompts: Sequence[str]) -> Tensor:
    config, context = bundle.config, bundle.context
    return sample(
        network,
        bundle.schedule,
        context.encode(list(prompts)),
        context.empty,
        range(len(prompts)),
        (config.channels, config.image_size, config.image_size),
        sampler=_FORGIVES_LEAST,
        steps=min(config.default_steps, _STEPS),
        guidance_scale=config.default_guidance_scale,
        parameterisation=config.parameterisation,
    ).clamp(-1, 1)


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _best(measured: Sequence[Measured]) -> Measured:
    same = {
        one.name: one
        for one in measured
        if one.difference <= _TOLERANCE[dtype_of(one.name)] and one.levels <= _LEVELS
    }
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
    """Of the packages that execute; of several, joined, with what decides between them."""
    between = [f"noisy{_NOISY}"] if name.startswith("mixed-") else []
    return "+".join([*map(metadata.version, executing(name)), *between])


def _key(bundle: Bundle, names: Sequence[str], rows: int, streams: Streams) -> str:
    """Names all that the measurement depends on."""
    device = bundle.context.device
    machine = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    versions = [["onnx", FORM], *([name, _version(name)] for name in names)]
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
    """What was kept; None where that is nothing, damaged, or of an earlier release."""
    try:
        kept = TypeAdapter(list[Measured]).validate_json(file.read_bytes(), strict=True)
    except (OSError, ValueError):
        return None
    names = {one.name for one in kept}
    sound = "eager" in names and len(names) == len(kept) and names <= BUILDERS.keys()
    return kept if sound else None


def _write(file: Path, measured: Sequence[Measured]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps([asdict(one) for one in measured], indent=2), "utf-8")
    part.replace(file)
