"""What this worker announces about the model it serves."""

import hashlib
import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import torch
from redis import Redis
from redis.client import Pipeline

from app.jobs.fleet_reader import read_fleet
from app.jobs.models import FreeSizes, ModelCard
from app.keys import MODELS
from models import layout
from models.description import Description
from models.model import Model
from worker.encoding import encoder_version
from worker.runtimes.choice import Measured, dtype_of

__all__ = [
    "Smaller",
    "announce",
    "announce_available",
    "available_card",
    "fingerprint",
    "forget",
    "model_card",
]

_ARITHMETIC = 4  # of samplers, guidance and networks: counted up when last bits change


@dataclass(frozen=True, eq=False)
class Smaller:
    """A model that takes batches of any size, and what executes its network."""

    model: Model
    runtime: str

    def card(self, micro_batch: int, *, exact: bool) -> ModelCard:
        """The card where it is given batches of that size."""
        return model_card(self.model, micro_batch, self.runtime, exact=exact)


def model_card(
    model: Model,
    micro_batch: int,
    runtime: str,
    *,
    exact: bool = True,
    measured: Measured | None = None,
) -> ModelCard:
    """The card of a loaded model, as the API reads it. `is_default` is decided when announced.

    `runtime` names what executes the network, with its version; `exact`: whether it only sees
    batches of `micro_batch` rows; `measured`: how it did on this machine.
    """
    drawn = {
        "fingerprint": fingerprint(model, micro_batch, runtime, exact=exact),
        "exact": exact,
        "runtime": runtime,
        "dtype": dtype_of(runtime),
        "forward_ms": None if measured is None else round(1000 * measured.seconds, 3),
        "difference": None if measured is None else measured.difference,
    }
    known = _card(model, model.schedule.training_length, model.context.context_length)
    return known.model_copy(update=drawn)


def available_card(model: Description) -> ModelCard:
    """The card of a model that is not loaded: what draws it, and so its fingerprint, is not known.

    Without a fingerprint no earlier picture answers for it.
    """
    return _card(model, model.training_length, model.context_length)


def _card(model: Model | Description, max_steps: int, context_length: int) -> ModelCard:
    """What is known of a model whether it is loaded or not."""
    config, free = model.config, model.free_sizes
    return ModelCard(
        name=config.name,
        description=config.description,
        license=config.license,
        bundle_sha256=model.sha256,
        native_size=model.sizes[0],
        sizes=tuple(f"{width}x{height}" for width, height in model.sizes),
        free_sizes=free and FreeSizes(**free.model_dump()),
        channels=4 if model.channels == 4 else 3,
        samplers=config.samplers,
        default_sampler=config.default_sampler,
        default_steps=config.default_steps,
        default_guidance_scale=config.default_guidance_scale,
        default_guidance_interval=config.default_guidance_interval,
        default_background=config.default_background,
        composes=config.composes and model.channels == 4,
        styles=config.styles,
        max_steps=max_steps,
        lcm_steps=config.most_lcm_steps,
        context_length=context_length,
        created_at=(model.path / "bundle.json").stat().st_mtime,
    )


def fingerprint(model: Model, micro_batch: int, runtime: str, *, exact: bool = True) -> str:
    """Name all that decides the bits of a picture beside its recipe, as 32 hex digits."""
    parts = {
        "bundle": model.sha256,
        "micro_batch": micro_batch,
        "dtype": dtype_of(runtime),
        "arithmetic": _ARITHMETIC,
        "runtime": runtime,
        "torch": torch.__version__,
        "encoder": encoder_version(),
        "device": _device_class(model.context.device),
    }
    if model.context.text_rows != 1:
        parts["text_rows"] = model.context.text_rows
    if not exact:
        parts["exact"] = False
    if model.config.composes:
        parts["layout"] = layout.VERSION
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _device_class(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    # Measured: another instruction set or number of threads sums in another order.
    capability = torch.backends.cpu.get_cpu_capability()
    return f"cpu {platform.machine()} {capability} {torch.get_num_threads()} threads"


def announce(redis: Redis, card: ModelCard) -> None:
    """Tell the API of the model; it becomes the default if no live worker serves that one."""
    live = read_fleet(redis).served
    others = [other for other in _cards(redis) if other.name != card.name]
    default = not any(other.is_default and other.name in live for other in others)
    pipe = redis.pipeline()
    for other in others if default else []:
        _write(pipe, other.model_copy(update={"is_default": False}))
    _write(pipe, card.model_copy(update={"is_default": default}))
    pipe.execute()


def announce_available(redis: Redis, model: Description, *, loaded: bool) -> None:
    """Tell the API of a model that could be loaded; `loaded`: some worker has it."""
    before = next((card for card in _cards(redis) if card.name == model.config.name), None)
    if loaded and before is not None and before.bundle_sha256 == model.sha256:
        return  # that card says more
    known = before if before is not None and before.bundle_sha256 == model.sha256 else None
    kept = {
        "is_default": before is not None and before.is_default,
        "loras": known.loras if known is not None else (),  # which fit only a loaded model tells
    }
    card = available_card(model).model_copy(update=kept)
    redis.hset(MODELS, card.name, card.model_dump_json())


def forget(redis: Redis, name: str) -> None:
    """Tell the API that a model is gone for good."""
    redis.hdel(MODELS, name)


def _cards(redis: Redis) -> list[ModelCard]:
    raw = cast(dict[bytes, bytes], redis.hgetall(MODELS))
    cards = []
    for value in raw.values():
        with suppress(ValueError):  # not a card of this version
            cards.append(ModelCard.model_validate_json(value))
    return cards


def _write(pipe: Pipeline, card: ModelCard) -> None:
    pipe.hset(MODELS, card.name, card.model_dump_json())
