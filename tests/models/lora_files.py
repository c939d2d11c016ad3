"""LoRAs of random weights, in the layouts that people have them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}


def factors(
    pipeline: Any, seed: int, rank: int = 4
) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(down, up) of layers of all kinds, by component and layer."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for part in _KOHYA:
        network = getattr(pipeline, part, None)
        ends = UNET_LAYERS if part == "unet" else TEXT_LAYERS
        for name, layer in network.named_modules() if network is not None else ():
            if isinstance(layer, nn.Linear | nn.Conv2d) and name.endswith(ends):
                shape = layer.weight.shape
                down = torch.randn((rank, *shape[1:]), generator=generator) / shape[1] ** 0.5
                up = torch.randn((shape[0], rank), generator=generator) * 0.3
                up = up.reshape(*up.shape, *([1] * (len(shape) - 2)))
                found[part, name] = (down, up)
    return found


def _tower(part: str, layer: str) -> str:
    """Files name the text model inside of the encoder, which newer releases do not."""
    return layer if part == "unet" or layer.startswith("text_") else f"text_model.{layer}"


def save_kohya(file: Path, pipeline: Any, seed: int, alpha: float = 2.0, **unet_names: str) -> Path:
    """As kohya's trainer writes it, with α; `unet_names`: others for layers of the U-Net."""
    state = {}
    first = "lora_te1_" if hasattr(pipeline, "text_encoder_2") else "lora_te_"
    for (part, layer), (down, up) in factors(pipeline, seed).items():
        prefix = first if part == "text_encoder" else _KOHYA[part]
        name = unet_names.get(layer, layer) if part == "unet" else _tower(part, layer)
        stem = prefix + name.replace(".", "_")
        state[f"{stem}.lora_down.weight"], state[f"{stem}.lora_up.weight"] = down, up
        state[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file({key: one.contiguous() for key, one in state.items()}, file)
    return file


def save_peft(file: Path, pipeline: Any, seed: int, ends: tuple[str, str] = ("A", "B")) -> Path:
    """As diffusers writes it now; with other `ends` as its older releases did."""
    state = {}
    for (part, layer), (down, up) in factors(pipeline, seed).items():
        old = "lora" if part == "unet" else "lora_linear_layer"
        down_end, up_end = (f"lora_{end}" if len(end) == 1 else f"{old}.{end}" for end in ends)
        stem = f"{part}.{_tower(part, layer)}"
        state[f"{stem}.{down_end}.weight"], state[f"{stem}.{up_end}.weight"] = down, up
    save_file({key: one.contiguous() for key, one in state.items()}, file)
    return file
