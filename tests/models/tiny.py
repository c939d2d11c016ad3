"""A bundle with random weights, small enough to be made and run in a second."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.bundle import (
    CLIP_FOLDER,
    DENOISER_FILE,
    TURBO_FILE,
    UPSCALER_FILE,
    BundleConfig,
    Turbo,
    save_config,
    save_weights,
)
from models.train.clip import build
from models.unet import UNet, UNetConfig
from models.upscaler import Upscaler, UpscalerConfig

CONTEXT_WIDTH = 16


def build_tiny_bundle(
    path: Path,
    seed: int = 0,
    *,
    name: str = "tiny",
    turbo: bool = False,
    composes: bool = False,
    width: int = 16,
) -> Path:
    """Write a random 16x16 RGBA bundle to `path` (made if missing) and return it."""
    torch.manual_seed(seed)
    (path / CLIP_FOLDER).mkdir(parents=True, exist_ok=True)
    _write_clip(path / CLIP_FOLDER)
    unet = UNetConfig(
        image_size=16,
        context_width=CONTEXT_WIDTH,
        width=width,
        multipliers=(1, 2),
        attention_levels=(1,),
    )
    network = UNet(unet)
    _randomise(network)
    save_weights(network, path / DENOISER_FILE)
    if turbo:
        _randomise(network)
        save_weights(network, path / TURBO_FILE)
    upscaler = UpscalerConfig(width=8, blocks=1)
    small = Upscaler(upscaler)
    _randomise(small)
    save_weights(small, path / UPSCALER_FILE)
    save_config(
        path,
        BundleConfig(
            name=name,
            description="random weights for tests",
            license="Apache-2.0",
            denoiser=unet,
            upscaler=upscaler,
            default_steps=8,
            turbo=Turbo(steps=3) if turbo else None,
            composes=composes,
        ),
    )
    return path


def _randomise(module: torch.nn.Module) -> None:
    """Zero-initialised layers would hide what flows through them."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5)


def _write_clip(folder: Path) -> None:
    config = {
        "embed_dim": CONTEXT_WIDTH,
        "vision_cfg": {
            "image_size": 16,
            "patch_size": 8,
            "width": 16,
            "head_width": 8,
            "layers": 1,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    model, _ = build(config)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    description = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
