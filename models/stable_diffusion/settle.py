"""From a folder's configurations to `bundle.json`: the quirks of public files are settled here."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf, isfinite, prod, sqrt
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from models.errors import BundleError, ScheduleError
from models.knots import knots
from models.model import FreeSizes, Size
from models.samplers import Parameterisation, Sampler
from models.stable_diffusion.config import KIND, LayoutConfig, PipelineConfig, TrainingNoise
from models.stable_diffusion.folder import Folder

__all__ = ["Wishes", "settle", "unheeded"]

_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTS: Final[Mapping[str, Parameterisation]] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "denoised",
}
_SAMPLERS: Final[Mapping[str, Sampler]] = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "LCMScheduler": "lcm",
}
_INSTEAD: Sampler = "dpmpp_2m"  # of a scheduler that is none of ours, as PNDM
_USUAL_STEPS, _FEW_STEPS = 25, 4
_USUAL_GUIDANCE: Final = {"sd": 7.5, "sdxl": 5.0}
_EMBEDDED_GUIDANCE = 8.5  # of denoisers that take the scale as an input, as LCM's
# The one value of a scheduler's option that is served; others are named at the import.
_HEEDED: Final[Mapping[str, object]] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "interpolation_type": "linear",
    "thresholding": False,
    "variance_type": "fixed_small",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "use_flow_sigmas": False,
    "lambda_min_clipped": -inf,
    "timestep_type": "discrete",
}
_HEEDED_OF_SDXL: Final[Mapping[str, object]] = {"clip_sample": False}
_TOWERS = ("text_encoder", "text_encoder_2")
_ASPECTS = (4 / 3, 3 / 2, 16 / 9)
_MOST_PIXELS = 4096 * 4096  # the worker draws the native size once before it takes jobs
# What bundle.json calls otherwise than scheduler_config.json does.
_THEIR_NAMES: Final[Mapping[str, str]] = {
    "length": "num_train_timesteps",
    "betas": "trained_betas",
    "spacing": "timestep_spacing",
    "offset": "steps_offset",
    "lcm_steps": "original_inference_steps",
    "lcm_scale": "timestep_scaling",
}


@dataclass(frozen=True)
class Wishes:
    """What the person who imports says, where the files do not or say it wrongly."""

    sampler: Sampler | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    clip_skip: int = 0
    prediction: Parameterisation | None = None
    sizes: tuple[Size, ...] = ()
    license: str = "unknown"
    description: str = ""


def settle(
    folder: Folder,
    name: str,
    wishes: Wishes,
    files: Mapping[str, str],
    parts: Mapping[str, str] = MappingProxyType({}),
) -> PipelineConfig:
    """Everything about the model but its weights; `parts` are those of a single file.

    Raises:
        BundleError: the files ask for something that is not served here; names it.
    """
    scheduler = folder.config("scheduler")
    family = "sdxl" if folder.is_xl else "sd"
    _refuse_unserved(folder)
    sampler, steps, guidance = _defaults(folder, family)
    noise, layout = _of_scheduler(scheduler, family)
    config = PipelineConfig(
        kind=KIND,
        name=name,
        description=wishes.description,
        license=wishes.license,
        source=folder.path,
        family=family,
        parameterisation=wishes.prediction or _parameterisation(scheduler),
        noise=noise,
        layout=layout,
        clip_skip=wishes.clip_skip,
        empty_is_zero=bool(folder.index.get("force_zeros_for_empty_prompt", folder.is_xl)),
        sizes=wishes.sizes or _sizes(folder),
        free_sizes=None if wishes.sizes else _free_sizes(folder),
        default_sampler=wishes.sampler or sampler,
        default_steps=wishes.steps or steps,
        default_guidance_scale=guidance if wishes.guidance_scale is None else wishes.guidance_scale,
        files=dict(files),
        variant=folder.variant,
        generation=folder.components["unet"].generation,
        parts=dict(parts),
    )
    _refuse_impossible(folder, config)
    return config


def unheeded(folder: Folder) -> list[str]:
    """What the scheduler's configuration asks for that no sampler here does, as "key: value"."""
    scheduler = folder.config("scheduler")
    kind = _kind(scheduler)
    served = {**_HEEDED, **(_HEEDED_OF_SDXL if folder.is_xl else {})}
    if _SAMPLERS.get(kind, _INSTEAD) == "dpmpp_2m":  # which has them
        del served["use_karras_sigmas"]
    if not kind.startswith("DPMSolver"):
        del served["solver_type"]  # bh2 and others, which are no DPMSolver's
    said = {key: scheduler[key] for key in served if scheduler.get(key) is not None}
    return [f"{key}: {value}" for key, value in said.items() if value != served[key]]


def _refuse_impossible(folder: Folder, config: PipelineConfig) -> None:
    """Wishes with which no job could be drawn."""
    towers = [name for name in _TOWERS if name in folder.components]
    layers = min(folder.config(name).get("num_hidden_layers", 12) for name in towers)
    most = layers - (2 if folder.is_xl else 1)  # SDXL leaves one out by itself
    if config.clip_skip > most:
        raise BundleError(
            f"clip_skip is {config.clip_skip}; of {layers} layers {most} can be left out"
        )
    schedule, _, scale = config.noise.schedule(), *_native(folder)
    try:
        layout = config.layout.layout(schedule)
        knots(schedule, config.default_sampler, config.default_steps, layout)
    except ScheduleError as fault:
        raise BundleError(f"{config.default_sampler}: {fault}") from None
    for width, height in config.sizes:
        if width % scale or height % scale or min(width, height) < scale:
            raise BundleError(
                f"size {width}x{height} should be in multiples of {scale} pixels, from {scale} on"
            )
        if width * height > _MOST_PIXELS:
            raise BundleError(
                f"size {width}x{height} should have at most as many pixels as 4096x4096"
            )


def _refuse_unserved(folder: Folder) -> None:
    unet, vae = folder.config("unet"), folder.config("vae")
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latent:
        what = "an inpainting or editing model" if channels > latent else "another model's"
        raise BundleError(
            f"unet takes {channels} channels and the autoencoder's latents have {latent}: it is "
            f"{what}, and those are not served"
        )
    embeds = unet.get("addition_embed_type")
    if embeds not in (None, "text_time") or (embeds == "text_time") != folder.is_xl:
        raise BundleError(f"unet has addition_embed_type {embeds!r}, which does not fit the folder")
    if unet.get("class_embed_type") or unet.get("encoder_hid_dim_type"):
        raise BundleError("unet asks for class labels or picture prompts, which are not served")
    _refuse_strangers(folder)
    _refuse_latents(vae)


def _refuse_latents(vae: Mapping[str, Any]) -> None:
    """Numbers by which no latents could become pixels."""
    factor = vae.get("scaling_factor", 0.18215)
    if not _is_number(factor) or factor <= 0:
        raise BundleError(f"vae has scaling_factor {factor!r}; it should be a number above 0")
    count = vae.get("latent_channels", 4)
    for name, least in (("latents_mean", -inf), ("latents_std", 0)):
        given = vae.get(name)
        if given is None:
            continue
        numbers = given if isinstance(given, list) else []
        if len(numbers) != count or not all(_is_number(one) and one > least for one in numbers):
            above = " above 0" if name == "latents_std" else ""
            raise BundleError(f"vae has {name} {given!r}; it should be {count} numbers{above}")


def _is_number(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and isfinite(given)


def _refuse_strangers(folder: Folder) -> None:
    """Components that are whole, but of different models: no job could be drawn."""
    unet, towers = folder.config("unet"), [one for one in _TOWERS if one in folder.components]
    takes = unet.get("cross_attention_dim", 1280)
    widths = [folder.config(one).get("hidden_size", 512) for one in towers]
    if isinstance(takes, int) and takes != sum(widths):  # it may list one for each block
        given = ", ".join(f"{one} {width}" for one, width in zip(towers, widths, strict=True))
        raise BundleError(
            f"unet takes text of width {takes} by its config.json ({given}): they are parts of "
            "different models"
        )
    if folder.is_xl:
        pooled = folder.config("text_encoder_2").get("projection_dim", 512)
        gives = 6 * (unet.get("addition_time_embed_dim") or 0) + pooled
        takes = unet.get("projection_class_embeddings_input_dim")
        if takes != gives:
            raise BundleError(
                f"unet takes {takes} numbers beside the text, and text_encoder_2 and the sizes "
                f"give {gives}: they are parts of different models"
            )


def _parameterisation(scheduler: Mapping[str, Any]) -> Parameterisation:
    said = str(scheduler.get("prediction_type", "epsilon"))
    if said not in _PREDICTS:
        known = ", ".join(_PREDICTS)
        raise BundleError(f"scheduler has prediction_type {said!r}; these are served: {known}")
    return _PREDICTS[said]


def _kind(scheduler: Mapping[str, Any]) -> str:
    return str(scheduler.get("_class_name", ""))


def _of_scheduler(scheduler: Mapping[str, Any], family: str) -> tuple[TrainingNoise, LayoutConfig]:
    try:
        return _noise(scheduler), _layout(scheduler, family)
    except ValidationError as fault:
        first = fault.errors()[0]
        own, *inner = map(str, first["loc"])
        where = ".".join([_THEIR_NAMES.get(own, own), *inner])
        raise BundleError(f"scheduler: {where} is {first['input']!r}: {first['msg']}") from None


def _noise(scheduler: Mapping[str, Any]) -> TrainingNoise:
    betas, length = scheduler.get("trained_betas"), scheduler.get("num_train_timesteps", 1000)
    kind, name = str(scheduler.get("beta_schedule", "linear")), _kind(scheduler)
    if name.startswith(("EDM", "FlowMatch")):
        raise BundleError(f"scheduler is an {name}, whose noise is not served")
    if betas is None and kind not in _KINDS:
        raise BundleError(
            f"scheduler has beta_schedule {kind!r}; these are served: {', '.join(_KINDS)}"
        )
    return TrainingNoise(
        kind=_KINDS.get(kind, "linear"),
        length=length,
        beta_start=scheduler.get("beta_start", 0.0001),
        beta_end=scheduler.get("beta_end", 0.02),
        betas=betas,
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
    )


def _layout(scheduler: Mapping[str, Any], family: str) -> LayoutConfig:
    # Pipelines before SDXL take any other offset for an outdated file and set it to 1.
    offset = scheduler.get("steps_offset", 0) if family == "sdxl" else 1
    return LayoutConfig(
        spacing=scheduler.get("timestep_spacing"),
        offset=offset,
        ends_clean=bool(scheduler.get("set_alpha_to_one", True)),
        lcm_steps=scheduler.get("original_inference_steps", 50),
        lcm_scale=scheduler.get("timestep_scaling", 10.0),
    )


def _defaults(folder: Folder, family: str) -> tuple[Sampler, int, float]:
    """Sampler, steps and guidance of the kind of model that the files show."""
    scheduler = folder.config("scheduler")
    kind = _kind(scheduler)
    embedded = folder.config("unet").get("time_cond_proj_dim") is not None
    if kind == "LCMScheduler" or embedded:
        return "lcm", _FEW_STEPS, _EMBEDDED_GUIDANCE if embedded else 1.0
    # The turbo models; those of v that end in pure noise have that spacing, too.
    few = kind.startswith("Euler") and scheduler.get("timestep_spacing") == "trailing"
    if (
        few
        and _parameterisation(scheduler) == "eps"
        and not scheduler.get("rescale_betas_zero_snr")
    ):
        return _SAMPLERS[kind], _FEW_STEPS, 1.0
    sampler = _SAMPLERS.get(kind, _INSTEAD)
    if sampler == "dpmpp_2m" and scheduler.get("use_karras_sigmas"):
        sampler = "dpmpp_2m_karras"
    return sampler, _USUAL_STEPS, _USUAL_GUIDANCE[family]


def _sizes(folder: Folder) -> tuple[Size, ...]:
    """The size it was trained at, others of about as many pixels, and larger ones."""
    native, scale = _native(folder)
    # Latents that halve evenly at every level of the U-Net.
    unit = scale * 2 ** (len(folder.config("unet").get("block_out_channels", (0,) * 4)) - 1)
    edge = sqrt(prod(native))
    found = [native]
    for ratio in _ASPECTS:
        wide, low = (max(unit, round(edge * f / unit) * unit) for f in (ratio**0.5, ratio**-0.5))
        found += [(wide, low), (low, wide)]
    half = max(unit, round(edge * 1.5 / unit) * unit)
    even = max(unit, round(edge / unit) * unit)
    found += [(half, even), (even, half), (half, half)]
    return tuple(dict.fromkeys(found))


def _native(folder: Folder) -> tuple[Size, int]:
    """The size it was trained at, and how many pixels wide a latent is."""
    unet, vae = folder.config("unet"), folder.config("vae")
    scale = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
    side = unet.get("sample_size") or (128 if folder.is_xl else 64)
    if isinstance(side, int) and _is_before_0_9(unet) and side < 64:
        side = 64  # early files say 32, wrongly
    sides = [side, side] if isinstance(side, int) else side
    if not isinstance(sides, list | tuple) or [type(one) for one in sides] != [int, int]:
        raise BundleError(f"unet has sample_size {side!r}; it should be a whole number, or two")
    height, width = sides
    return (width * scale, height * scale), scale


def _free_sizes(folder: Folder) -> FreeSizes:
    """Any size in whole latents, neither tiny nor larger than the largest listed one."""
    native, scale = _native(folder)
    edge = sqrt(prod(native))
    return FreeSizes(
        multiple_of=scale,
        smallest_side=ceil(edge / 4 / scale) * scale,
        largest_side=int(2 * edge) // scale * scale,
        most_pixels=max(prod(size) for size in _sizes(folder)),
    )


def _is_before_0_9(unet: Mapping[str, Any]) -> bool:
    said = str(unet.get("_diffusers_version", "1.0")).split(".")
    return len(said) > 1 and said[0] == "0" and said[1].isdigit() and int(said[1]) < 9
