"""How many rows a worker's device is given: at once, and in one call of the network.

A call of the network takes M rows, always as many (else a row's bits would depend on its
neighbours), so M is as large as costs a lone row little: on a GPU what is measured here; 1 on CPU,
where two calls side by side, on half of the cores each, do more than one call of two rows. More
rows in flight than are computed at once bring no further throughput; they are what the engine may
choose the next ones from (app/jobs/order.py). So there are as many slots as that, and at least
eight, with which a simulation gave nearly the mean latency of sixteen.
"""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
import torch

from app.settings import Settings
from models.bundle import Bundle
from models.model import Model
from worker.memory import free_bytes, ran_out
from worker.rows import blank_batch
from worker.runtimes.by_torch import with_graphs
from worker.undisturbed import undisturbed

__all__ = ["most_rows", "streams", "with_capacity"]

_log = structlog.get_logger()

ON_CPU = 1
ON_CPU_INEXACT = 2  # one call for a guided row and its unconditional twin
SIZES = (2, 4, 8, 16, 32, 64)
LITTLE = 1.6  # times the seconds that a call with the fewest rows takes
MEMORY_SHARE = 0.8  # of what is free; the rest is for encoding, upscaling and other processes
_ROUNDS = 7
FEWEST_SLOTS = 8


def with_capacity(settings: Settings, model: Model) -> Settings:
    """The settings with slots and micro-batch where they leave them to measurement.

    What was measured is kept in the data folder: the batch size is part of the fingerprint, and
    chance must not choose between two starts.
    """
    size = settings.micro_batch or _kept(settings, model)
    slots = settings.slots or max(FEWEST_SLOTS, size)
    return settings.model_copy(update={"micro_batch": size, "slots": slots})


def streams(model: Model, micro_batch: int, threads: int) -> int:
    """Calls of the network at a time, so that a lone row keeps all cores busy.

    Two for a guided row. An imported model's bits go by its threads, so a call of it that has no
    other beside it cannot have them all (worker/runtimes/lone.py): where guidance is not usual, as
    with few-step models, each call has them.
    """
    if model.context.device.type != "cpu" or micro_batch != 1:
        return 1
    if not isinstance(model, Bundle):
        scale = model.config.default_guidance_scale
        usual = model.context.conditioning("", None, scale, model.sizes[0])
        if usual.guidance_scale == 1:
            return 1
    return min(2, threads)


def _kept(settings: Settings, model: Model) -> int:
    device, folder = model.context.device, settings.runtimes_dir
    if device.type != "cuda":
        return ON_CPU if settings.exact else ON_CPU_INEXACT
    gpu = torch.cuda.get_device_properties(device)
    parts = json.dumps([model.sha256, torch.__version__, gpu.name, gpu.total_memory])
    file = folder / f"rows-{hashlib.sha256(parts.encode()).hexdigest()[:32]}.json"
    if (found := _read(file)) is not None:
        return found
    with undisturbed(folder / "rows.lock"):
        if (found := _read(file)) is not None:  # by a worker that was before this one
            return found
        drawn = with_graphs(model, exact=settings.exact)  # as it will be
        found = most_rows(lambda size: _call(drawn, size), lambda: _budget(device))
        with suppress(OSError):  # a read-only folder: it is measured again at the next start
            part = file.with_suffix(".part")
            part.write_text(json.dumps({"micro_batch": found, "gpu": gpu.name}), "utf-8")
            part.replace(file)
    return found


def _read(file: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return max(1, int(json.loads(file.read_text("utf-8"))["micro_batch"]))
    return None


def most_rows(call: Callable[[int], tuple[float, int]], budget: Callable[[], int]) -> int:
    """The largest of `SIZES` that costs a lone row little and fits into memory.

    `call` tells the seconds of a call of that many rows, and the bytes it took at its peak; of
    those there may be `budget`.

    Raises:
        RuntimeError: not even the fewest rows fit.
    """
    best, first_s = SIZES[0], 0.0
    for size in SIZES:
        free = budget()
        try:
            seconds, peak_bytes = call(size)
        except Exception as fault:
            if size == SIZES[0] or not ran_out(fault):
                raise
            break
        _log.info("rows measured", rows=size, seconds=seconds, peak_bytes=peak_bytes)
        first_s = first_s or seconds
        if size != SIZES[0] and (seconds > LITTLE * first_s or peak_bytes > free):
            break
        best = size
    return best


def _budget(device: torch.device) -> int:
    torch.cuda.empty_cache()
    return int(MEMORY_SHARE * free_bytes(device))


@torch.inference_mode()
def _call(model: Model, size: int) -> tuple[float, int]:
    """Least seconds of a call with `size` rows, and the bytes allocated for it at the peak."""
    device, batch = model.context.device, blank_batch(model, size)
    torch.cuda.reset_peak_memory_stats(device)
    before, times = torch.cuda.memory_allocated(device), []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        model.denoiser(*batch)
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times), torch.cuda.max_memory_allocated(device) - before
