"""Puts a worker together: device, bundle, storage, runner."""

import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path

import structlog
import torch
from redis import Redis

from app.jobs.models import ModelCard
from app.settings import Settings
from app.storage.opening import open_storage
from models.bundle import Bundle
from models.description import describe_model
from models.loading import load_model
from models.model import Model
from models.processor import cores
from worker.background import Background
from worker.capacity import streams, with_capacity
from worker.card import Smaller, model_card
from worker.catalogue import Catalogue, Entry
from worker.loras import Loras
from worker.memory import check_fits, has_room, in_words
from worker.resident import Prepared
from worker.runner import Runner
from worker.runtimes.by_torch import (
    imported_dtype,
    runtime_name,
    with_fused_graph,
    with_graphs,
)
from worker.runtimes.choice import is_ready, with_runtime
from worker.streams import Streams
from worker.undisturbed import undisturbed

__all__ = ["make_runner", "resolve_device"]

_log = structlog.get_logger()
_STORAGE_PATIENCE_S = 60.0  # what is drawn already is worth waiting for


def make_runner(
    settings: Settings, redis: Redis, name: str, device: str, share: tuple[int, int] = (0, 1)
) -> Runner:
    """A runner that is ready to work; `share`: which worker of how many on this machine it is.

    Raises:
        BundleError: the bundle is missing, damaged, or of another kind.
        StorageError: images cannot be stored as it is set up.
        ValueError: the device or the runtime does not exist here.
    """
    turn, workers = share
    chosen = resolve_device(device, turn)
    threads = settings.threads or max(1, cores() // workers)
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False  # it would choose other kernels from run to run
    torch.backends.cudnn.deterministic = True
    shop = _Shop(settings, chosen, threads)
    check_fits(settings.bundle, chosen)
    _check_budget(settings, imported_dtype(settings.precision, chosen).itemsize)
    first = shop.prepare(settings.bundle, settings.preset)
    storage = open_storage(settings, patience_s=_STORAGE_PATIENCE_S)
    storage.check()
    return Runner(redis, first, storage, settings, name, shop)


def _check_budget(settings: Settings, itemsize: int) -> None:
    """Refuse a bundle that could not come back once another model had taken its place.

    Raises:
        ValueError: with both sizes.
    """
    if (budget := settings.model_memory_mb * 10**6) == 0:
        return
    needed = describe_model(settings.bundle, settings.preset, itemsize).weights_bytes
    if budget < needed:
        raise ValueError(
            f"AVOCAT_MODEL_MEMORY_MB is {settings.model_memory_mb}, but bundle "
            f"{settings.bundle.name} alone has {in_words(needed)} of weights; set at least "
            f"{ceil(needed / 10**6)}, or 0 for as many models as the device has room for"
        )


class _Shop:
    """Loads models onto one worker's device."""

    def __init__(self, settings: Settings, device: torch.device, threads: int) -> None:
        itemsize = imported_dtype(settings.precision, device).itemsize
        self.catalogue = Catalogue(settings.bundle, settings.preset, settings.models_dir, itemsize)
        self._settings, self._device, self._threads = settings, device, threads

    def load(self, entry: Entry) -> Prepared:
        """A model of the catalogue; raises as `prepare`."""
        return self.prepare(entry.path, entry.preset)

    def prepare(self, path: Path, preset: str) -> Prepared:
        """Load, measure, and choose what executes the network; in any thread.

        Raises:
            BundleError: a file is missing or damaged.
            ValueError: memory ran out, with the sizes.
        """
        began = time.monotonic()
        with has_room(path.name, self._device):
            prepared = _prepared(self._settings, path, preset, self._device, self._threads)
        return replace(prepared, took_s=time.monotonic() - began)


def _prepared(
    settings: Settings, path: Path, preset: str, device: torch.device, threads: int
) -> Prepared:
    torch.set_num_threads(threads)
    dtype = imported_dtype(settings.precision, device)
    loaded = load_model(path, device, preset, dtype)
    loras = Loras(loaded, settings.lora_dir)
    settings = with_capacity(settings, loaded)
    count = streams(loaded, settings.micro_batch, threads)
    torch.set_num_threads(threads // count)
    calls = Streams(count, threads // count)
    background = _later(loaded, settings, calls)
    at_once = background is not None or not isinstance(loaded, Bundle)
    model, card = _executed(loaded, settings, calls, at_once=at_once)
    eager = card.runtime.startswith("eager")
    plain = model if eager else with_graphs(loaded, exact=settings.exact)
    smaller = Smaller(plain, runtime_name(plain))
    _log.info(
        "model loaded",
        model=card.name,
        device=str(device),
        threads=threads // count,
        streams=count,
        slots=settings.slots,
        micro_batch=settings.micro_batch,
        runtime=card.runtime,
        fingerprint=card.fingerprint,
    )
    return Prepared(
        *(model, card, smaller, settings.slots, settings.micro_batch, settings.exact, calls),
        loras=loras,
        background=background,
        weights_bytes=describe_model(path, preset, dtype.itemsize).weights_bytes,
    )


def _later(model: Model, settings: Settings, calls: Streams) -> Background | None:
    """What builds the runtime beside the work, where that takes long; so that work can begin.

    A runtime that is named is waited for, so that what is drawn first has its fingerprint already;
    but not for minutes.

    Raises:
        ValueError: there is no such runtime here.
    """
    wanted = settings.runtime
    slow = wanted == "auto" or wanted.startswith("compile")
    if not settings.exact or not slow:
        return None
    rows, cache = settings.micro_batch, settings.runtimes_dir
    if not isinstance(model, Bundle):
        # Layers that take LoRAs are not the compiler's.
        if model.context.device.type != "cuda" or settings.lora_dir is not None:
            return None
    elif is_ready(model, wanted=wanted, rows=rows, streams=calls, cache=cache):
        return None

    def build() -> tuple[Model, ModelCard]:
        torch.set_num_threads(calls.threads)  # each thread has a number of its own
        own = Streams(calls.count, calls.threads)  # the engine uses the others meanwhile
        try:
            return _executed(model, settings, own)
        finally:
            own.close()

    return Background(build)


def _executed(
    model: Model, settings: Settings, calls: Streams, *, at_once: bool = False
) -> tuple[Model, ModelCard]:
    """The model with its network executed as the settings say, and the card of that.

    `at_once`: by plain torch instead, which takes no time to build. What torch's compiler makes of
    it is all that an imported model has besides.
    """
    card = partial(model_card, micro_batch=settings.micro_batch, exact=settings.exact)
    if at_once or not isinstance(model, Bundle):
        executed = (
            with_graphs(model, exact=settings.exact)
            if at_once
            else with_fused_graph(model, settings.micro_batch, settings.runtimes_dir)
        )
        return executed, card(executed, runtime=runtime_name(executed))
    wanted = settings.runtime if settings.exact else _of_any_size(settings.runtime)
    rows, cache = settings.micro_batch, settings.runtimes_dir
    ready = is_ready(model, wanted=wanted, rows=rows, streams=calls, cache=cache)
    # What is ready waits for nobody who builds, which may take minutes.
    with nullcontext() if ready else undisturbed(cache / "runtime.lock"):
        bundle, measured = with_runtime(model, wanted=wanted, rows=rows, streams=calls, cache=cache)
    runtime = f"{measured.name} {measured.version}"
    return bundle, card(bundle, runtime=runtime, measured=measured)


def _of_any_size(wanted: str) -> str:
    """The runtime for batches that vary; the others are built for one size."""
    if wanted not in ("auto", "eager"):
        raise ValueError(f"runtime {wanted!r} takes one batch size: AVOCAT_EXACT=0 needs eager")
    return "eager"


def resolve_device(device: str, turn: int = 0) -> torch.device:
    """The device that a setting names; `auto`: the GPUs by turns, else the CPU.

    `turn` counts the workers of this machine; of several devices with commas each takes the next.

    Raises:
        ValueError: another word, or a GPU that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [one.strip() for one in device.split(",")]
    device = named[turn % len(named)]
    if device == "auto":
        device = f"cuda:{turn % gpus}" if gpus else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} should be auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= gpus:
        raise ValueError(f"device {device!r} is not there: torch sees {gpus} GPUs")
    return chosen
