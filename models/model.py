"""What every served model is to the engine, whether it draws pixels or latents.

A denoiser is called with `x_t` `[B, C, H, W]`, `timestep` `[B]` and the parts of a context, each
`[B, …]`; what it answers is the `parameterisation` that the model's trajectories know. The parts
are one vector for a pixel bundle; hidden states, and what else its weights ask for, for a latent
model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.samplers import UNDISTILLED, Sampler, Trajectory
from models.schedule import NoiseSchedule

__all__ = [
    "Adapters",
    "Conditioning",
    "Context",
    "Encoder",
    "FreeSizes",
    "KnownLora",
    "LoraFolder",
    "Model",
    "ModelConfig",
    "Origin",
    "Shape",
    "Size",
]

Context = tuple[Tensor, ...]  # the parts of one row's context, without a batch dimension
Shape = tuple[int, int, int]  # (C, H, W) of x_t
Size = tuple[int, int]  # width and height of a picture in pixels


class FreeSizes(BaseModel):
    """Sizes beside the listed ones: sides in pixels, and the most pixels of a picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    multiple_of: int
    smallest_side: int
    largest_side: int
    most_pixels: int

    def allow(self, size: Size) -> bool:
        """Whether a picture may have this size."""
        return prod(size) <= self.most_pixels and all(
            side % self.multiple_of == 0 and self.smallest_side <= side <= self.largest_side
            for side in size
        )

    def __str__(self) -> str:
        """For errors."""
        return (
            f"multiples of {self.multiple_of} from {self.smallest_side} to {self.largest_side}, "
            f"together at most {self.most_pixels} pixels"
        )


class ModelConfig(BaseModel):
    """What `bundle.json` says of every kind of model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    description: str = ""
    license: str = "unknown"
    samplers: tuple[Sampler, ...] = UNDISTILLED
    default_sampler: Sampler = "dpmpp_2m"
    default_steps: int = Field(default=25, ge=1)
    default_guidance_scale: float = Field(default=3.0, ge=0, le=20)
    default_guidance_interval: tuple[float, float] = (0.0, 1.0)
    default_background: str = "transparent"
    composes: bool = Field(
        default=False,
        description="paints the things that a prompt names one by one (models/layout.py)",
    )
    styles: tuple[str, ...] = Field(
        default=(), description="that prompts may name; where it composes, it is asked for no other"
    )

    @property
    def most_lcm_steps(self) -> int | None:
        """Steps that the sampler lcm takes at most, if it is served."""
        return None


class Adapters(Protocol):
    """The LoRAs that a row is drawn with; `key` names them and their weights."""

    @property
    def key(self) -> tuple[tuple[str, float], ...]: ...


class LoraFolder(Protocol):
    """LoRAs for one model, as files that may come and go."""

    def scan(self) -> Sequence["KnownLora"]:
        """What is there now."""

    def adapters(self, wanted: Sequence[tuple[str, float, str]]) -> Adapters | None:
        """Those of (name, weight, sha256); None for none.

        Raises:
            ValueError: one is gone, has changed, or does not fit.
        """


@dataclass(frozen=True)
class KnownLora:
    """A file as the model sees it; `fault` says why it cannot be applied, "" where it can."""

    name: str
    sha256: str
    fault: str = ""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a denoiser is told of one picture, and how it is guided.

    `unconditional` is the context of the empty or the negative prompt; it is not asked for where
    `guidance_scale` is 1.
    """

    context: Context
    unconditional: Context
    guidance_scale: float


@dataclass(frozen=True, eq=False)
class Origin:
    """The picture that rows start from, as x_0 `[C, H, W]` in the space of x_t, on CPU.

    `std` `[C, H, W]` is that of an autoencoder's posterior, from which each row draws its own x_0
    (Kingma & Welling 2014); None: x_0 is `mean`. `mask`, bool `[1, H, W]`, is true where the
    picture is drawn anew and false where it is kept; None: all of it is drawn anew.
    """

    mean: Tensor
    std: Tensor | None = None
    mask: Tensor | None = None


# A prompt, its negative prompt, and LoRAs, as `Encoder.conditioning` takes them.
Wanted = tuple[str, str | None, Adapters | None]


def text_rows(device: torch.device) -> int:
    """How many prompts a text tower reads at once.

    On a GPU eight take as long as one. On CPU a lone prompt would wait for seven that are padding.
    """
    return 8 if device.type == "cuda" else 1


class Encoder(Protocol):
    """Prompts to contexts."""

    @property
    def context_length(self) -> int:
        """Tokens of a prompt that are read."""

    @property
    def device(self) -> torch.device:
        """Where contexts are."""

    def conditioning(
        self,
        prompt: str,
        negative: str | None,
        guidance_scale: float,
        size: Size,
        adapters: Adapters | None = None,
    ) -> Conditioning:
        """The contexts of one picture; `negative` None is not the same as empty for all models."""

    @property
    def text_rows(self) -> int:
        """Prompts that the text tower is called with: always so many, short batches are padded."""

    def prepare(self, wanted: Sequence[Wanted]) -> None:
        """Encode what is not known yet, so that `conditioning` finds it; for many prompts."""

    def is_truncated(self, prompt: str) -> bool:
        """Whether the end of the prompt is not seen."""

    def check(self, context: Context) -> None:
        """Raise ValueError if the denoiser does not take a context of these shapes."""


class Model(Protocol):
    """A loaded model. `sha256` is that of its `bundle.json`, which names every file's."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def schedule(self) -> NoiseSchedule: ...
    @property
    def denoiser(self) -> Callable[..., Tensor]: ...
    @property
    def context(self) -> Encoder: ...
    @property
    def sha256(self) -> str: ...
    @property
    def path(self) -> Path: ...

    @property
    def clip(self) -> float | None:
        """The bound of `denoised`; None where latents have none."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Pictures it draws, the native size first."""

    @property
    def free_sizes(self) -> FreeSizes | None:
        """Further ones, if it draws any."""

    @property
    def channels(self) -> int:
        """Of its pictures: 4 with alpha, or 3."""

    def shape(self, size: Size) -> Shape:
        """Of x_t for a picture of that size.

        Raises:
            ValueError: it draws no such size.
        """

    def trajectory(self, sampler: Sampler, steps: int, skipped: int = 0) -> Trajectory:
        """The way of one row, but for its first `skipped` steps.

        Raises:
            ScheduleError: a sampler it has not, more steps than that one takes, or none left.
        """

    def take_in(self, picture: Image.Image, mask: Image.Image | None, size: Size) -> Origin:
        """What rows for pictures of `size` start from; see `models.pictures.fitted`.

        `picture` is RGBA with straight alpha, `mask` greyscale, white where to draw anew.
        """

    def lora_folder(self, path: Path) -> LoraFolder | None:
        """Its LoRAs from the files in a folder; None where it takes none.

        Before anything is drawn. From then on its denoiser takes `adapters`, those of each row or
        None, as a keyword.
        """

    def develop(self, x: Tensor, size: Size) -> Tensor:
        """A finished row `[C, H, W]` as a picture `[3 or 4, H, W]` of that size, in [-1, 1]."""

    def preview(self, denoised: Tensor) -> Tensor:
        """A row on its way as a picture, cheaply and in any size."""
