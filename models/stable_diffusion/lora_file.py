"""Files of LoRAs, in the layouts that people have: kohya's, and those of diffusers and PEFT."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.errors import ModelError
from models.stable_diffusion.lora import Delta, Lora
from models.stable_diffusion.mistaken import mistaken_for

__all__ = ["LoraError", "check_lora", "read_lora"]

_Layers = dict[tuple[str, str], dict[str, Tensor]]

_PARTS = ("unet", "text_encoder_2", "text_encoder")
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
# diffusers' conversion knows SDXL's added embedding by its original name alone.
_ADDED = re.compile(r"^lora_unet_add_embedding_linear_([12])\.")
# Other kinds of updates, by a part of a name that only they have.
_OTHERS: Final[Mapping[str, str]] = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a middle factor",
    "oft_": "OFT",
}
# Ends of names, and which factor the weight is.
_END = re.compile(
    r"(?:_lora|\.lora|\.lora_linear_layer)?\.(lora_A|lora_B|lora_down|lora_up|down|up)"
    r"(?:\.default)?\.weight$"
)
_FACTORS: Final[Mapping[str, str]] = {
    "lora_A": "down", "lora_down": "down", "down": "down",
    "lora_B": "up", "lora_up": "up", "up": "up",
}  # fmt: skip


class LoraError(ModelError, ValueError):
    """A LoRA's file is missing, damaged, of another kind, or made for another architecture."""


def check_lora(file: Path, networks: Mapping[str, nn.Module]) -> None:
    """Hold the header of a file against the networks, without reading a weight.

    Raises:
        LoraError: it cannot be applied to them; says why.
    """
    meta: dict[str, Tensor] = {}
    with _opened(file) as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a mapping
            shape = tensors.get_slice(key).get_shape()
            # Converting reads α, so that is no empty shape.
            alpha = key.endswith(".alpha")
            meta[key] = torch.ones(shape) if alpha else torch.empty(shape, device="meta")
        _checked(file.stem, meta, _metadata(tensors), networks)


def read_lora(file: Path, networks: Mapping[str, nn.Module], device: torch.device) -> Lora:
    """Load a file onto `device`, in the format of the layers that it updates.

    `networks` are those that it may update, by component.

    Raises:
        LoraError: as `check_lora`.
    """
    with _opened(file) as tensors:
        state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        found = _checked(file.stem, state, _metadata(tensors), networks)
    parts: dict[str, dict[str, Delta]] = defaultdict(dict)
    for (part, layer), weights in found.items():
        weight: Any = networks[part].get_submodule(layer).weight
        # Copies: a mapped file that is cut short ends the process.
        down, up = (weights[one].to(device, weight.dtype, copy=True) for one in ("down", "up"))
        if weight.ndim == 2:  # some files have 1x1 convolutions where the network is linear
            down, up = down.flatten(1), up.flatten(1)
        elif down.ndim == 2:
            down, up = down[..., None, None], up[..., None, None]
        alpha = float(weights["alpha"]) if "alpha" in weights else len(down)
        parts[part][layer] = Delta(down.contiguous(), up.contiguous(), alpha / len(down))
    return Lora(dict(parts))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The file, while it is read and judged: whatever is raised meanwhile is its fault."""
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (LoraError, MemoryError):
        raise
    except FileNotFoundError:
        raise LoraError(f"LoRA {file.stem!r} is gone: there is no {file.name}") from None
    except Exception as fault:  # readers of names, numbers and patterns raise many kinds
        said = " ".join((str(fault) or repr(fault)).split())
        what = mistaken_for(file) or f"damaged or truncated: {said[:200]}"
        raise LoraError(f"LoRA {file.stem!r} is {what}") from None


def _metadata(tensors: Any) -> Mapping[str, Any]:
    """PEFT's configuration, by component, as newer files of diffusers have it."""
    try:
        found = json.loads((tensors.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _checked(
    name: str,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
) -> _Layers:
    """The factors by component and layer, once they are known to fit."""
    for mark, kind in _OTHERS.items():
        if any(mark in key for key in state):
            raise LoraError(f"LoRA {name!r} is of the kind {kind}; plain LoRAs are served")
    found = _by_layer(name, _renamed(name, state, networks), networks)
    for (part, layer), weights in found.items():
        _check_shapes(name, part, layer, weights, networks[part])
        if "alpha" not in weights and (alpha := _alpha(metadata, part, layer)) is not None:
            # α / √r instead of α / r (Kalajdzievski 2023, rank-stabilised LoRA).
            ranked = len(weights["down"]) ** 0.5 if metadata.get(f"{part}.use_rslora") else 1.0
            weights["alpha"] = torch.tensor(alpha * ranked)
    if not found:
        raise LoraError(f"LoRA {name!r} holds no update of a network that this model has")
    return found


def _renamed(
    name: str, state: Mapping[str, Tensor], networks: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Kohya's names, of either of the U-Net's layouts, to those of diffusers."""
    if not all(key.startswith(_KOHYA) for key in state):
        return dict(state)
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin as Theirs

    given = {_ADDED.sub(_as_original, key): weight for key, weight in state.items()}
    try:
        weights, alphas = Theirs.lora_state_dict(given, unet_config=networks["unet"].config)
    except (ValueError, KeyError, IndexError) as fault:
        said = " ".join(str(fault).split())
        raise LoraError(f"LoRA {name!r} has names that are not known: {said[:200]}") from None
    return {**weights, **{key: torch.tensor(alpha) for key, alpha in (alphas or {}).items()}}


def _as_original(found: re.Match[str]) -> str:
    return f"lora_unet_label_emb_0_{2 * (int(found[1]) - 1)}."


def _by_layer(name: str, state: Mapping[str, Tensor], networks: Mapping[str, nn.Module]) -> _Layers:
    known = {part: _layers(network) for part, network in networks.items()}
    found: _Layers = defaultdict(dict)
    for key, weight in state.items():
        match = _END.search(key.removesuffix(".alpha"))
        if match is None and not key.endswith(".alpha"):
            raise LoraError(f"LoRA {name!r} has a weight {key!r}, which is none of a LoRA")
        factor = "alpha" if match is None or key.endswith(".alpha") else _FACTORS[match[1]]
        part, place = _placed(_END.sub("", key.removesuffix(".alpha")))
        layer = next((one for one in _spellings(place) if one in known.get(part, ())), None)
        if layer is None:
            raise LoraError(
                f"LoRA {name!r} updates {place} of the {part}, which this model does not have: it "
                "is made for another architecture"
            )
        found[part, layer][factor] = weight
    return dict(found)


def _layers(network: nn.Module) -> set[str]:
    modules = network.named_modules()
    return {name for name, layer in modules if isinstance(layer, nn.Linear | nn.Conv2d)}


def _placed(place: str) -> tuple[str, str]:
    """The component that a name begins with, the U-Net where it says none, and the rest."""
    place = place.removeprefix("base_model.model.").replace(".processor.", ".")
    for part in _PARTS:
        if place.startswith(f"{part}."):
            return part, place.removeprefix(f"{part}.")
    return "unet", place


def _spellings(place: str) -> list[str]:
    """A layer's name now, after those it had: in attention, and of the text tower."""
    text = re.sub(r"\.to_(q|k|v)$", r".\1_proj", place).replace(".to_out", ".out_proj")
    inner = text.removeprefix("text_model.")
    return [place, f"{place}.0", text, inner, f"text_model.{inner}"]


def _check_shapes(
    name: str, part: str, layer: str, weights: Mapping[str, Tensor], network: nn.Module
) -> None:
    for factor in ("down", "up"):
        if factor not in weights:
            raise LoraError(f"LoRA {name!r} has no {factor} weight for {layer} of the {part}")
    down, up = weights["down"].shape, weights["up"].shape
    shape: torch.Size = network.get_submodule(layer).weight.shape  # type: ignore[assignment]
    fits = down[1:2] == shape[1:2] and up[:1] == shape[:1] and down[:1] == up[1:2]
    if "alpha" in weights and weights["alpha"].numel() != 1:
        raise LoraError(f"LoRA {name!r} has an α of several numbers for {layer} of the {part}")
    kernels = [tuple(one) for one in (down[2:], shape[2:]) if tuple(one) not in ((), (1, 1))]
    if not fits or down.numel() == 0 or len(set(kernels)) > 1 or len(kernels) == 1:
        raise LoraError(
            f"LoRA {name!r} is made for another architecture: it updates {layer} of the {part} "
            f"by {_sides(up)} times {_sides(down)}, and that is {_sides(shape)} in this model"
        )


def _alpha(metadata: Mapping[str, Any], part: str, layer: str) -> float | None:
    """What PEFT's configuration says of a layer; None where it says nothing."""
    own = metadata.get(f"{part}.alpha_pattern")
    for pattern, alpha in own.items() if isinstance(own, dict) else ():
        if re.search(rf"(^|\.){pattern}$", layer):
            return float(alpha)
    alpha = metadata.get(f"{part}.lora_alpha")
    return None if alpha is None else float(alpha)


def _sides(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
