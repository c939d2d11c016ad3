"""A pipeline in the architecture of Stable Diffusion 1.5, random weights: whole, or scaled down.

Made by diffusers' and transformers' own classes and saved as people have them; tokenizer, scheduler
and index are those of the tests' tiny pipeline.
"""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from models.loading import load_model
from models.model import Model
from models.stable_diffusion.loading import import_folder
from models.torchvision_ops import declare_missing_operators
from worker.runtimes.by_torch import imported_dtype

__all__ = ["FULL", "SMALL", "Shape", "build", "imported"]


class Shape(NamedTuple):
    """What is scaled; all else is as in Stable Diffusion 1.5."""

    unet: tuple[int, int, int, int]  # channels of each level
    vae: tuple[int, int, int, int]
    text: int  # width of the text encoder, of 12 layers
    heads: int  # of the text encoder
    groups: int  # of the norms
    side: int  # of the latents


FULL: Final = Shape((320, 640, 1280, 1280), (128, 256, 512, 512), 768, 12, 32, 64)
SMALL: Final = Shape((32, 64, 128, 128), (16, 32, 64, 64), 96, 12, 8, 16)


def build(
    path: Path, shape: Shape, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Path:
    """Save a pipeline of that shape to `path` and return it; weights are drawn on `device`."""
    declare_missing_operators()
    from tests.models.tiny_diffusers import build_pipeline

    build_pipeline(path, "sd1")
    torch.manual_seed(seed)
    with torch.device(device):
        parts = _parts(shape)
    for name, part in parts.items():
        shutil.rmtree(path / name)
        part.to(dtype).save_pretrained(path / name)
    return path


def imported(source: Path, into: Path, device: torch.device) -> Model:
    """The pipeline as `avocat import` makes it a model, loaded as a worker does."""
    import_folder(source, into, "sd")
    return load_model(into, device, dtype=imported_dtype("auto", device))


def _parts(shape: Shape) -> dict[str, Any]:
    diffusers, transformers = _quiet("diffusers"), _quiet("transformers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=shape.side,
        block_out_channels=shape.unet,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=shape.text,
        norm_num_groups=shape.groups,
    )
    vae = diffusers.AutoencoderKL(
        sample_size=8 * shape.side,
        block_out_channels=shape.vae,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=shape.groups,
        scaling_factor=0.18215,
    )
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=shape.text,
        intermediate_size=4 * shape.text,
        num_attention_heads=shape.heads,
        num_hidden_layers=12,
        max_position_embeddings=77,
        projection_dim=shape.text,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return {"unet": unet, "vae": vae, "text_encoder": transformers.CLIPTextModel(config)}


def _quiet(name: str) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return importlib.import_module(name)
