"""A bundle: one folder that is one deployable model. Nothing in it is ever unpickled."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.context import LOCAL_PREFIX, ClipReference, ContextEncoder, load_clip
from models.errors import BundleError, ContextError
from models.layers import channels_last, unfilled
from models.model import ModelConfig, Origin, Shape, Size
from models.pictures import fitted, fitted_mask, to_mask, to_tensor
from models.replacing import replacing
from models.samplers import Sampler, Trajectory, trajectory
from models.schedule import Kind, NoiseSchedule, noise_schedule
from models.unet import Denoiser, Parameterisation, UNet, UNetConfig
from models.upscaler import Upscaler, UpscalerConfig

FORMAT: Literal[1] = 1
CONFIG_FILE = "bundle.json"
DENOISER_FILE = "denoiser.safetensors"
UPSCALER_FILE = "upscaler.safetensors"
TURBO_FILE = "turbo.safetensors"
CLIP_FOLDER = "clip"
PRESETS = ("", "turbo")

_Config = TypeVar("_Config")
_Network = TypeVar("_Network", bound=nn.Module)


class ScheduleConfig(BaseModel):
    """Arguments of `noise_schedule`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "cosine"
    length: int = Field(default=1000, ge=1, le=100_000)
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    zero_terminal_snr: bool = False


class Turbo(BaseModel):
    """The preset of few steps: a second network of the denoiser's form, and how to sample it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampler: Sampler = "ddim"
    steps: int = Field(default=6, ge=1)
    guidance_scale: float = Field(default=1.0, ge=0, le=20)


class BundleConfig(ModelConfig):
    """`bundle.json`: everything about a model but its weights."""

    format: Literal[1] = FORMAT
    denoiser: UNetConfig
    parameterisation: Parameterisation = "v"
    noise_schedule: ScheduleConfig = ScheduleConfig()
    clip: ClipReference = ClipReference(model=f"{LOCAL_PREFIX}{CLIP_FOLDER}")
    upscaler: UpscalerConfig | None = None
    turbo: Turbo | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict, description="sha256 of every other file")

    @model_validator(mode="after")
    def _something_is_learned_of_pure_noise(self) -> "BundleConfig":
        if self.noise_schedule.zero_terminal_snr and self.parameterisation == "eps":
            raise ValueError("with zero_terminal_snr eps says nothing of the picture: v does")
        return self

    @model_validator(mode="after")
    def _default_steps_fit(self) -> "BundleConfig":
        if self.default_steps > self.noise_schedule.length:
            raise ValueError(
                f"default_steps is {self.default_steps}; the schedule has only "
                f"{self.noise_schedule.length} timesteps"
            )
        return self

    def preset(self, name: str) -> "BundleConfig":
        """The configuration under a preset, as a model of its own name; "" is the bundle's own.

        Raises:
            BundleError: it has no such preset.
        """
        if not name:
            return self
        if name not in PRESETS or self.turbo is None:
            has = "turbo" if self.turbo is not None else "none; `avocat train distil` makes turbo"
            raise BundleError(f"model {self.name!r} has no preset {name!r} (it has {has})")
        few = {
            "name": f"{self.name}-{name}",
            "default_sampler": self.turbo.sampler,
            "default_steps": self.turbo.steps,
            "default_guidance_scale": self.turbo.guidance_scale,
            "default_guidance_interval": (0.0, 1.0),
        }
        return self.model_copy(update=few)

    @property
    def image_size(self) -> int:
        return self.denoiser.image_size

    @property
    def channels(self) -> int:
        return self.denoiser.channels

    @property
    def upscales(self) -> list[int]:
        """Factors of the native size that `size` may ask for."""
        return [1, 2, 4] if self.upscaler is not None else [1]


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle; `sha256` is that of its `bundle.json`, which names every file's.

    Under a preset it is that of the hash and the preset's name, for it is another network.
    """

    config: BundleConfig
    schedule: NoiseSchedule
    denoiser: Denoiser
    context: ContextEncoder
    upscaler: Upscaler | None
    sha256: str
    path: Path

    @property
    def clip(self) -> float | None:
        """Pixels end at 1."""
        return 1.0

    @property
    def channels(self) -> int:
        """4, with alpha, or 3."""
        return self.config.channels

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The native size, and what the upscaler makes of it."""
        side = self.config.image_size
        return tuple((side * factor, side * factor) for factor in self.config.upscales)

    @property
    def free_sizes(self) -> None:
        """It draws no others."""

    def shape(self, size: Size) -> Shape:
        """Always the native shape: larger pictures are enlarged at the end.

        Raises:
            ValueError: it draws no such size.
        """
        if size not in self.sizes:
            drawn = ", ".join(f"{width}x{height}" for width, height in self.sizes)
            raise ValueError(f"size is '{size[0]}x{size[1]}'; this model draws {drawn}")
        side = self.config.image_size
        return (self.config.channels, side, side)

    def trajectory(self, sampler: Sampler, steps: int, skipped: int = 0) -> Trajectory:
        """The way of one row, but for its first `skipped` steps.

        Raises:
            ScheduleError: a sampler it has not, more steps than that one takes, or none left.
        """
        reads = self.config.parameterisation
        return trajectory(self.schedule, sampler, steps, skipped=skipped, parameterisation=reads)

    def take_in(self, picture: Image.Image, mask: Image.Image | None, size: Size) -> Origin:
        """In native size, whatever is asked for: larger pictures are enlarged at the end."""
        native = (self.config.image_size, self.config.image_size)
        kept = None if mask is None else to_mask(fitted_mask(mask, native))
        return Origin(to_tensor(fitted(picture, native), self.channels), mask=kept)

    def lora_folder(self, path: Path) -> None:
        """It takes none."""

    @torch.inference_mode()
    def develop(self, x: Tensor, size: Size) -> Tensor:
        """A finished row `[C, H, W]` in the size that was asked for."""
        factor = size[0] // self.config.image_size
        if factor > 1 and self.upscaler is not None:
            given = x.to(self.context.device)[None]  # alone: never another batch shape
            larger: Tensor = self.upscaler(given, factor)
            return larger[0]
        return x

    def preview(self, denoised: Tensor) -> Tensor:
        """A row on its way is a picture already."""
        return denoised


def read_entry(path: Path) -> dict[str, Any]:
    """The JSON of a `bundle.json`, whatever kind of model it is of.

    Raises:
        BundleError: it is missing, not JSON, or of a newer format.
    """
    file = path / CONFIG_FILE
    try:
        entry = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise BundleError(f"no bundle at {str(path)!r}: it has no {CONFIG_FILE}") from None
    except (OSError, ValueError, RecursionError) as fault:
        raise BundleError(f"{CONFIG_FILE} of {str(path)!r} cannot be read: {fault}") from None
    if not isinstance(entry, dict):
        raise BundleError(f"{CONFIG_FILE} must hold a JSON object, not {type(entry).__name__}")
    version = entry.get("format", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise BundleError(
            f"{CONFIG_FILE} has format {version}; this version of avocat reads up to {FORMAT}"
        )
    return entry


def read_config(path: Path) -> BundleConfig:
    """Read and check `bundle.json` alone.

    Raises:
        BundleError: it is missing, not JSON, of a newer format, or not of this form.
    """
    entry = read_entry(path)
    try:
        return BundleConfig.model_validate(entry)
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(f"{CONFIG_FILE}: {where}: {first['msg']}") from None


def load_bundle(
    path: Path, device: torch.device | str = "cpu", preset: str = "", *, unchecked: str = ""
) -> Bundle:
    """Load a bundle in float32 onto `device`, every file but `unchecked` checked against its hash.

    Under the preset `turbo` it is the model `NAME-turbo`: another network of the same form, with
    the defaults that suit it.

    Raises:
        BundleError: a file is missing, damaged, or does not fit the configuration; no such preset.
    """
    path = Path(path)
    config = read_config(path).preset(preset)
    check_hashes(path, config, unchecked)
    schedule = noise_schedule(**config.noise_schedule.model_dump())
    with unfilled():
        network = _build(UNet, config.denoiser)
    _load_weights(network, path / (TURBO_FILE if preset else DENOISER_FILE))
    upscaler = None
    if config.upscaler is not None:
        with unfilled():
            upscaler = _build(Upscaler, config.upscaler)
        _load_weights(upscaler, path / UPSCALER_FILE)
        upscaler = upscaler.to(device)
    try:
        context = ContextEncoder(load_clip(config.clip, path), device)
    except ContextError as fault:
        raise BundleError(str(fault)) from fault
    if context.width != config.denoiser.context_width:
        raise BundleError(
            f"the CLIP gives contexts of width {context.width}; {CONFIG_FILE} says that "
            f"the denoiser takes {config.denoiser.context_width}"
        )
    denoiser = Denoiser(network, schedule, config.parameterisation).eval().requires_grad_(False)
    denoiser = channels_last(denoiser.to(device))
    sha256 = _sha256(path / CONFIG_FILE)
    if preset:
        sha256 = hashlib.sha256(f"{sha256}:{preset}".encode()).hexdigest()
    return Bundle(config, schedule, denoiser, context, upscaler, sha256, path)


def save_weights(module: nn.Module, file: Path) -> None:
    """Write a module's weights as safetensors, floating point in float16 to halve the file.

    Raises:
        ModelError: they cannot be written; the former file is as it was.
    """
    state = {k: _half(v).contiguous() for k, v in module.state_dict().items()}
    with replacing(file) as handle:  # safetensors' own files are for their owner alone
        handle.write(save(state))


def save_config(path: Path, config: BundleConfig) -> BundleConfig:
    """Write `bundle.json` with the hash of every weight and configuration file beside it.

    Raises:
        ModelError: it cannot be written; the former file is as it was.
    """
    names = [DENOISER_FILE, UPSCALER_FILE, TURBO_FILE]
    names += [f"{CLIP_FOLDER}/open_clip_config.json", f"{CLIP_FOLDER}/open_clip_model.safetensors"]
    files = {name: _sha256(path / name) for name in names if (path / name).exists()}
    config = config.model_copy(update={"files": files})
    with replacing(path / CONFIG_FILE) as handle:
        handle.write((config.model_dump_json(indent=2) + "\n").encode())
    return config


def _half(tensor: Tensor) -> Tensor:
    return tensor.detach().half() if tensor.is_floating_point() else tensor.detach()


def _build(kind: Callable[[_Config], _Network], config: _Config) -> _Network:
    """A network without memory: the file brings it, so that no configuration asks for more."""
    try:
        with torch.device("meta"):
            return kind(config)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as fault:
        first = str(fault).splitlines()[0]
        raise BundleError(f"{CONFIG_FILE} describes no network: {first}") from None


def _load_weights(module: nn.Module, file: Path) -> None:
    if not file.exists():
        raise BundleError(f"{file.name} is missing from {str(file.parent)!r}")
    try:
        state = load_file(file)
    except (SafetensorError, OSError, ValueError) as fault:
        raise BundleError(f"{file.name} is damaged or truncated: {fault}") from None
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as fault:
        first = str(fault).splitlines()[-1].strip()
        raise BundleError(f"{file.name} does not fit {CONFIG_FILE}: {first}") from None
    module.float().eval().requires_grad_(False)


def check_hashes(path: Path, config: BundleConfig, unchecked: str = "") -> None:
    """Compare every file that `bundle.json` names, but `unchecked`, with its hash there.

    Raises:
        BundleError: one is missing, damaged, or lies outside the bundle.
    """
    for name, expected in config.files.items():
        if name == unchecked:
            continue
        file = path / name
        try:
            inside, there = file.resolve().is_relative_to(path.resolve()), file.is_file()
        except (OSError, ValueError) as fault:  # longer than names may be, or with a NUL
            raise BundleError(f"{CONFIG_FILE} names {name!r}, which is no file: {fault}") from None
        if not inside:
            raise BundleError(f"{CONFIG_FILE} names {name!r}, which lies outside the bundle")
        if not there:
            raise BundleError(f"{name} is missing from {str(path)!r}")
        try:
            found = _sha256(file)
        except OSError as fault:
            raise BundleError(f"{name} of {str(path)!r} cannot be read: {fault.strerror}") from None
        if found != expected:
            raise BundleError(
                f"{name} is damaged: its sha256 is {found[:12]}…, {CONFIG_FILE} says "
                f"{expected[:12]}…; copy it again from where the bundle came from, or let the "
                f"training that wrote it run to its end (a CLIP's, and then the denoiser's)"
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
