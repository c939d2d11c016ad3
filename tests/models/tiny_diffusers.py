"""Pipelines of diffusers with random weights, in the layout and with the habits of public ones."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from models.stable_diffusion.parts import clip_vocabulary
from models.torchvision_ops import declare_missing_operators

declare_missing_operators()

import diffusers  # noqa: E402 - after the operators that it looks for
from transformers import (  # noqa: E402
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

WIDTH = 32
UNET = "unet/diffusion_pytorch_model.safetensors"
BETAS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# scheduler_config.json of each family, without what the public ones leave out.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd1": {"_class_name": "PNDMScheduler", **BETAS, "skip_prk_steps": True},
    "sd2": {"_class_name": "DDIMScheduler", **BETAS, "prediction_type": "v_prediction"},
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
    },
    "turbo": {
        "_class_name": "EulerAncestralDiscreteScheduler",
        **BETAS,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    },
    "lcm": {"_class_name": "LCMScheduler", **BETAS, "original_inference_steps": 50},
}
FAMILIES = tuple(SCHEDULERS)


def _write_tokenizer(folder: Path, pad: str) -> None:
    folder.mkdir(parents=True)
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad}
    marks["unk_token"] = "<|endoftext|>"
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))
    more = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({**marks, **more}))


def _text_config(projection: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_attention_heads=4,
        num_hidden_layers=4,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=49406,
        eos_token_id=49407,
    )


def _unet(family: str) -> Any:
    xl = family in ("sdxl", "turbo")
    more: dict[str, Any] = {}
    if xl:
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
        }
    if family == "lcm":
        more = {"time_cond_proj_dim": 16}
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=2 * WIDTH if xl else WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=family in ("sd2", "sdxl", "turbo"),
        **more,
    )


def _autoencoder(family: str) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.13025 if family in ("sdxl", "turbo") else 0.18215,
    )


def build_pipeline(path: Path, family: str, *, seed: int = 0, variant: str | None = None) -> Path:
    """Save a pipeline of `family` with random weights to `path` and return it."""
    torch.manual_seed(seed)
    xl = family in ("sdxl", "turbo")
    parts: dict[str, Any] = {"unet": _unet(family), "vae": _autoencoder(family)}
    parts["text_encoder"] = CLIPTextModel(_text_config())
    if xl:
        parts["text_encoder_2"] = CLIPTextModelWithProjection(_text_config())
    return save_pipeline(path, family, parts, variant=variant)


def save_pipeline(
    path: Path, family: str, parts: dict[str, Any], *, variant: str | None = None
) -> Path:
    """Save parts with the tokenizers and configurations of `family`."""
    path.mkdir(parents=True)
    for name, part in parts.items():
        part.save_pretrained(path / name, variant=variant)
    _write_tokenizer(path / "tokenizer", "!" if family == "sd2" else "<|endoftext|>")
    if "text_encoder_2" in parts:
        _write_tokenizer(path / "tokenizer_2", "!")
    _write_scheduler(path, family)
    return path


def change(file: Path, **changes: Any) -> None:
    """Other values in a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _write_scheduler(path: Path, family: str) -> None:
    (path / "scheduler").mkdir()
    config = json.dumps(SCHEDULERS[family])
    (path / "scheduler" / "scheduler_config.json").write_text(config)
    xl = family in ("sdxl", "turbo")
    libraries = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    index: dict[str, Any] = {name: ["diffusers", kind] for name, kind in libraries.items()}
    index["scheduler"] = ["diffusers", SCHEDULERS[family]["_class_name"]]
    names = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    if xl:
        names |= {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    index |= {name: ["transformers", kind] for name, kind in names.items()}
    index["_class_name"] = f"StableDiffusion{'XL' if xl else ''}Pipeline"
    index["_diffusers_version"] = "0.30.0"
    (path / "model_index.json").write_text(json.dumps(index))


def reference(path: Path) -> Any:
    """The pipeline of diffusers itself, from the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.DiffusionPipeline.from_pretrained(path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tokenizer(path: Path) -> Any:
    return CLIPTokenizer.from_pretrained(path / "tokenizer")
