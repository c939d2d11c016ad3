"""Tiny pipelines of the public forms, and the same weights as one file in the original layout.

The names are written here as the original programs have them, and not by diffusers' conversion,
which the tests hold against them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.models.tiny_diffusers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    diffusers,
    save_pipeline,
)

CHANNELS = {"sd1": (32, 32, 64, 64), "sd2": (32, 64, 64, 64), "sdxl": (32, 64, 128)}
ATTENDS = {
    "sd1": (True, True, True, False),
    "sd2": (True, True, True, False),
    "sdxl": (False, True, True),
}
VAE_CHANNELS = (32, 32, 64, 64)
WIDTH, SECOND_WIDTH, LAYERS_PER_BLOCK = 64, 128, 2
LAYERS = 3  # of text encoders
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
_VAE = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "mid_block": "mid",
    "resnets.0": "block_1", "resnets.1": "block_2", "attentions.0": "attn_1",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
_OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def build_both(path: Path, generation: str, seed: int = 5) -> tuple[Path, Path]:
    """A folder in diffusers' layout, and a file with the same weights in the original one."""
    torch.manual_seed(seed)
    parts = {"unet": _unet(generation), "vae": _autoencoder(generation), **_texts(generation)}
    folder = save_pipeline(path / "folder", generation, parts)
    file = path / "model.safetensors"
    save_file(original(generation, parts), file)
    return folder, file


def original(generation: str, parts: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of all parts by their original names."""
    found = unet_weights(generation, parts["unet"])
    for key, weight in parts["vae"].state_dict().items():
        square = "attentions" in key and "group_norm" not in key and key.endswith("weight")
        weight = weight[..., None, None] if square else weight
        found[f"first_stage_model.{_vae_name(key)}"] = weight
    first = _plain(parts["text_encoder"])
    if generation == "sd2":
        texts = _open_clip(first, "cond_stage_model.model.")
        layer, last = "resblocks.0.", f"resblocks.{LAYERS}."  # one more, which nobody uses
        own = {key: one for key, one in texts.items() if layer in key}
        texts |= {key.replace(layer, last): torch.rand_like(one) for key, one in own.items()}
        texts["cond_stage_model.model.text_projection"] = torch.rand(WIDTH, WIDTH)
    else:
        prefix = "cond_stage_model" if generation == "sd1" else "conditioner.embedders.0"
        texts = {f"{prefix}.transformer.text_model.{key}": one for key, one in first.items()}
    if generation == "sdxl":
        second = parts["text_encoder_2"]
        texts |= _open_clip(_plain(second), "conditioner.embedders.1.model.")
        projection = second.text_projection.weight.T
        texts["conditioner.embedders.1.model.text_projection"] = projection
        texts["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    return {key: one.detach().clone().contiguous() for key, one in (found | texts).items()}


def unet_weights(generation: str, unet: Any) -> dict[str, Tensor]:
    """Those of a U-Net by their original names."""
    attends = ATTENDS[generation][::-1]
    state = unet.state_dict().items()
    return {f"model.diffusion_model.{unet_name(key, attends)}": one for key, one in state}


def _plain(encoder: Any) -> dict[str, Tensor]:
    """A text tower's weights without the name of the tower."""
    state = encoder.state_dict().items()
    return {k.removeprefix("text_model."): v for k, v in state if "text_projection" not in k}


def unet_name(key: str, attends: Sequence[bool]) -> str:
    """`attends`: which of the levels on the way up have attention."""
    step = LAYERS_PER_BLOCK + 1
    for end, name in _ENDS.items():
        if key.startswith(f"{end}."):
            key = name + key.removeprefix(end)
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
    if found:
        way, level, kind, at, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        layer, inner = step * level + at, 0 if kind == "resnets" else 1
        if kind == "downsamplers":
            key = f"input_blocks.{step * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
        elif kind == "upsamplers":  # behind an attention, where there is one
            inner = 2 if attends[level] else 1
            key = f"output_blocks.{step * level + step - 1}.{inner}.{rest}"
        elif way == "down":
            key = f"input_blocks.{layer + 1}.{inner}.{rest}"
        else:
            key = f"output_blocks.{layer}.{inner}.{rest}"
    for new, old in _RESNET.items():
        key = re.sub(rf"(put_blocks\.\d+\.0|middle_block\.[02])\.{new}\.", rf"\1.{old}.", key)
    return key


def _vae_name(key: str) -> str:
    last = len(VAE_CHANNELS) - 1
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", key
    )
    key = re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", key
    )
    for new, old in _VAE.items():
        key = re.sub(rf"(^|\.){re.escape(new)}(\.|$)", rf"\1{old}\2", key)
    return key


def _open_clip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """OpenCLIP keeps queries, keys and values as one weight."""
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    for key, weight in state.items():
        if not key.startswith("encoder.layers.") or re.search(r"\.[qkv]_proj\.", key):
            continue
        for new, old in _OPEN_CLIP.items():
            key = key.replace(new, old)
        found[key.replace("encoder.layers.", "transformer.resblocks.")] = weight
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            names = (f"encoder.layers.{i}.self_attn.{one}_proj.{kind}" for one in "qkv")
            whole = torch.cat([state[name] for name in names])
            found[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = whole
    return {prefix + key: weight for key, weight in found.items()}


def _unet(generation: str) -> Any:
    channels, xl = CHANNELS[generation], generation == "sdxl"
    more: dict[str, Any] = {}
    attends = ATTENDS[generation]
    if xl:
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 16,
            "projection_class_embeddings_input_dim": 6 * 16 + SECOND_WIDTH,
            "transformer_layers_per_block": [1, 1, 2],
        }
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        layers_per_block=LAYERS_PER_BLOCK,
        down_block_types=["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends],
        up_block_types=["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in attends[::-1]],
        cross_attention_dim=WIDTH + SECOND_WIDTH if xl else WIDTH,
        attention_head_dim=8 if generation == "sd1" else [max(1, one // 64) for one in channels],
        use_linear_projection=generation != "sd1",
        **more,
    )


def _autoencoder(generation: str) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=VAE_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025 if generation == "sdxl" else 0.18215,
    )


def _texts(generation: str) -> dict[str, Any]:
    first = CLIPTextModel(_text_config(WIDTH, "gelu" if generation == "sd2" else "quick_gelu"))
    if generation != "sdxl":
        return {"text_encoder": first}
    second = CLIPTextModelWithProjection(_text_config(SECOND_WIDTH, "gelu"))
    return {"text_encoder": first, "text_encoder_2": second}


def _text_config(width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=2 * width, projection_dim=width,
        num_attention_heads=width // 64, num_hidden_layers=LAYERS, max_position_embeddings=77,
        hidden_act=activation, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
