"""A single file in the original layout of Stable Diffusion: what it holds, by names and shapes.

Such a file has no configuration. What its shapes do not say (heads, activation, noise) is the same
in all public ones of its generation, which the names of its text encoder tell. The weights are
renamed by diffusers' own conversion.
"""

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

from torch import Tensor

from models.errors import BundleError
from models.samplers import Parameterisation
from models.torchvision_ops import declare_missing_operators

__all__ = ["GENERATIONS", "PREFIXES", "configurations", "converted", "generation_of"]

Shapes = Mapping[str, tuple[int, ...]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_STEM = f"{UNET}input_blocks.0.0.weight"
_FIRST, _SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
# Where the weights of each component lie, by what its file is called.
PREFIXES: Final[Mapping[str, Mapping[str, str]]] = {
    "sd1": {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model.transformer."},
    "sd2": {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model.model."},
    "sdxl": {"unet": UNET, "vae": VAE, "text_encoder": _FIRST, "text_encoder_2": _SECOND},
}
GENERATIONS = tuple(PREFIXES)
_LORA = "a LoRA: put it into the folder AVOCAT_LORA_DIR and name it in a job"
_UNET_ALONE = (
    "a U-Net alone: a checkpoint has the autoencoder and the text encoder, too (of a folder in "
    "diffusers' layout, the file in unet)"
)
# What a file is that is no checkpoint of these, by a part of a name that only it has.
_STRANGERS: Final[Mapping[str, str]] = {
    "lora_": _LORA,
    ".lora.": _LORA,
    "control_model.": "a ControlNet, which is not served",
    "controlnet_cond_embedding.": "a ControlNet, which is not served",
    "edm_mean": "a checkpoint of Playground 2.5, whose noise is not served",
    "edm_vpred": "a checkpoint of CosXL, whose noise is not served",
    "conditioner.embedders.0.model.": "the refiner of SDXL, which only works on another's latents",
    "joint_blocks.": "a checkpoint of Stable Diffusion 3, which is not served",
    "double_blocks.": "a checkpoint of Flux, which is not served",
}
# The same by how names begin, where there is no U-Net under its usual name.
_ALONE: Final[Mapping[str, str]] = {
    "conv_in.": _UNET_ALONE,
    "input_blocks.": _UNET_ALONE,
    "decoder.conv_in.": "an autoencoder alone: name the checkpoint that it belongs to",
    VAE: "an autoencoder alone: name the checkpoint that it belongs to",
    "emb_params": "an embedding (textual inversion), which is not served",
    "clip_l": "an embedding (textual inversion), which is not served",
}
# By Stability's standard of metadata, as some programs write them.
_MODELSPEC: Final[Mapping[str, Parameterisation]] = {"v": "v", "epsilon": "eps"}
_HEAD = 64  # width of an attention head, but for the U-Net of the first generation
_FIRST_HEADS = 8
_NOISE: Final[Mapping[str, Any]] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_SD2_LAYERS = 23  # of its text tower that are used; original files have one more
_SIDES: Final[Mapping[str, int]] = {"sd1": 64, "sd2": 64, "sdxl": 128}  # of latents


def generation_of(shapes: Shapes, name: str) -> str:
    """Which of `GENERATIONS` a file is of.

    Raises:
        BundleError: of none; says what it is, where that is known.
    """
    for mark, what in _STRANGERS.items():
        if any(mark in key for key in shapes):
            raise BundleError(f"{name} is {what}")
    if _STEM not in shapes:
        for begin, what in _ALONE.items():
            if any(key.startswith(begin) for key in shapes):
                raise BundleError(f"{name} is {what}")
        first = ", ".join(sorted(shapes)[:3]) or "none"
        raise BundleError(
            f"{name} is no checkpoint of Stable Diffusion 1, 2 or XL: it has no {_STEM} "
            f"(the first of its {len(shapes)} weights: {first})"
        )
    for generation in GENERATIONS:
        prefixes = PREFIXES[generation]
        if any(key.startswith(prefixes["text_encoder"]) for key in shapes):
            for part, prefix in prefixes.items():
                if not any(key.startswith(prefix) for key in shapes):
                    raise BundleError(f"{name} has no {part}: no weight begins with {prefix}")
            return generation
    texts = ", ".join(prefixes["text_encoder"] for prefixes in PREFIXES.values())
    raise BundleError(f"{name} has no text encoder: no weight begins with one of {texts}")


def configurations(
    shapes: Shapes,
    generation: str,
    name: str,
    predicts: Parameterisation | None,
    metadata: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """What the `config.json` of each component would say, and `scheduler_config.json`.

    `metadata` are the file's own.

    Raises:
        BundleError: the file does not tell what it predicts, and `predicts` neither; or its
            networks have another form.
    """
    of = {part: _under(shapes, prefix) for part, prefix in PREFIXES[generation].items()}
    predicts = predicts or _predicts(shapes, generation, name, metadata)
    try:
        text = _clip(of["text_encoder"]) if generation != "sd2" else _open_clip(of["text_encoder"])
        found = {
            "unet": _unet(of["unet"], generation),
            "vae": _autoencoder(of["vae"], generation),
            "text_encoder": text,
        }
        if generation == "sdxl":
            found["text_encoder_2"] = _open_clip(of["text_encoder_2"], drops_last=False)
            _say_sizes(found["unet"], found["text_encoder_2"]["projection_dim"])
    except (KeyError, IndexError, StopIteration) as fault:
        raise BundleError(f"{name}: the weight {fault} is missing") from None
    if generation == "sd2" and predicts == "v":
        found["unet"]["sample_size"] = 96
    found["scheduler"] = _scheduler(generation, predicts, "ztsnr" in shapes)
    return found


def converted(
    part: str, generation: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a component by the names that diffusers and transformers know.

    `tensors` are those under its prefix, with it; on the meta device this costs nothing.
    """
    declare_missing_operators()
    from diffusers.loaders import single_file_utils as theirs

    if part == "unet":
        return theirs.convert_ldm_unet_checkpoint(dict(tensors), config)  # type: ignore[no-any-return, no-untyped-call]
    if part == "vae":
        return theirs.convert_ldm_vae_checkpoint(dict(tensors), config)  # type: ignore[no-any-return, no-untyped-call]
    if part == "text_encoder" and generation != "sd2":
        return theirs.convert_ldm_clip_checkpoint(dict(tensors))  # type: ignore[no-any-return, no-untyped-call]
    sized = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    prefix = PREFIXES[generation][part]
    return theirs.convert_open_clip_checkpoint(sized, dict(tensors), prefix)  # type: ignore[no-any-return, no-untyped-call]


def _under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    own = (key for key in shapes if key.startswith(prefix))
    return {key.removeprefix(prefix): shapes[key] for key in own}


def _predicts(
    shapes: Shapes, generation: str, name: str, metadata: Mapping[str, str]
) -> Parameterisation:
    said = _MODELSPEC.get(metadata.get("modelspec.prediction_type", ""))
    if said is not None and "v_pred" not in shapes:
        return said
    if generation == "sd2":
        raise BundleError(
            f"{name} is of Stable Diffusion 2 and does not say what it predicts: give --prediction "
            "v (the 768 pixel models: 2, 2.1) or --prediction eps (the 512 pixel ones: 2-base, "
            "2.1-base)"
        )
    return "v" if "v_pred" in shapes else "eps"


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand for the group of `pattern` in the names."""
    found = (re.match(pattern, key) for key in shapes)
    return len({match[1] for match in found if match is not None})


def _unet(shapes: Shapes, generation: str) -> dict[str, Any]:
    """UNet2DConditionModel: levels end where a block halves the latents."""
    levels: list[list[tuple[int, int]]] = [[]]  # (channels, transformer blocks) of each layer
    for i in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{i}"
        if f"{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            depth = _count(shapes, rf"{re.escape(block)}\.1\.transformer_blocks\.(\d+)\.")
            levels[-1].append((shapes[f"{block}.0.out_layers.3.weight"][0], depth))
    channels = [level[0][0] for level in levels]
    depths = [level[0][1] for level in levels]
    keys = (key for key in shapes if key.endswith("attn2.to_k.weight"))
    linear = next(len(shape) for key, shape in shapes.items() if key.endswith("1.proj_in.weight"))
    heads = [max(1, width // _HEAD) for width in channels]
    middle = _count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": _SIDES[generation],
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "layers_per_block": len(levels[0]),
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if n else "UpBlock2D" for n in reversed(depths)],
        "transformer_layers_per_block": [n or 1 for n in depths[:-1]] + [depths[-1] or middle],
        "cross_attention_dim": shapes[next(keys)][1],
        # diffusers' name for the number of heads.
        "attention_head_dim": _FIRST_HEADS if generation == "sd1" else heads,
        "use_linear_projection": linear == 2,
        **_additions(shapes),
    }


def _additions(shapes: Shapes) -> dict[str, Any]:
    if "label_emb.0.0.weight" not in shapes:
        return {}
    width = shapes["label_emb.0.0.weight"][1]
    return {
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": width,
    }


def _say_sizes(unet: dict[str, Any], pooled: int) -> None:
    """Of each of SDXL's six sizes as much of the added embedding as the pooled vector leaves."""
    width = unet["projection_class_embeddings_input_dim"]
    unet["addition_time_embed_dim"] = (width - pooled) // 6


def _autoencoder(shapes: Shapes, generation: str) -> dict[str, Any]:
    count = _count(shapes, r"encoder\.down\.(\d+)\.")
    channels = [shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(count)]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "sample_size": _SIDES[generation] * 2 ** (count - 1),
        "scaling_factor": 0.13025 if generation == "sdxl" else 0.18215,
    }


def _text(vocabulary: tuple[int, ...], length: int, inner: int, layers: int) -> dict[str, Any]:
    width = vocabulary[1]
    return {
        "architectures": ["CLIPTextModel"],
        "vocab_size": vocabulary[0],
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": inner,
        "max_position_embeddings": length,
        "num_attention_heads": max(1, width // _HEAD),
        "num_hidden_layers": layers,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }


def _clip(shapes: Shapes) -> dict[str, Any]:
    """OpenAI's text tower, as transformers names its weights; some files leave out text_model."""
    shapes = {key.removeprefix("text_model."): shape for key, shape in shapes.items()}
    return _text(
        shapes["embeddings.token_embedding.weight"],
        shapes["embeddings.position_embedding.weight"][0],
        shapes["encoder.layers.0.mlp.fc1.weight"][0],
        _count(shapes, r"encoder\.layers\.(\d+)\."),
    ) | {"hidden_act": "quick_gelu"}


def _open_clip(shapes: Shapes, *, drops_last: bool = True) -> dict[str, Any]:
    """OpenCLIP's text tower; Stable Diffusion 2 has no use for the last layer.

    diffusers' conversion to this layout has left it out already.
    """
    layers = _count(shapes, r"transformer\.resblocks\.(\d+)\.")
    drops_last = drops_last and layers != _SD2_LAYERS
    inner = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
    length = shapes["positional_embedding"][0]
    found = _text(shapes["token_embedding.weight"], length, inner, layers - drops_last)
    if "text_projection" in shapes:
        found["projection_dim"] = shapes["text_projection"][1]
    return found | {"hidden_act": "gelu"}


def _scheduler(generation: str, predicts: Parameterisation, zero_snr: bool) -> dict[str, Any]:
    names = {"eps": "epsilon", "v": "v_prediction", "denoised": "sample"}
    kind = {"sd1": "PNDMScheduler", "sd2": "DDIMScheduler", "sdxl": "EulerDiscreteScheduler"}
    found = {"_class_name": kind[generation], **_NOISE, "prediction_type": names[predicts]}
    if zero_snr:
        return found | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return found | ({"timestep_spacing": "leading"} if generation == "sdxl" else {})
