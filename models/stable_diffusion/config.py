"""`bundle.json` of an imported model: what its files say, settled once, and their hashes."""

from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.knots import Layout
from models.model import FreeSizes, ModelConfig, Size
from models.samplers import SAMPLERS, Parameterisation, Sampler
from models.schedule import Kind, NoiseSchedule, Spacing, noise_schedule, schedule_of

__all__ = ["KIND", "LayoutConfig", "PipelineConfig", "TrainingNoise"]

KIND: Literal["stable_diffusion"] = "stable_diffusion"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Beta = Annotated[float, Field(gt=0, lt=1)]


class TrainingNoise(_Strict):
    """The noise that the denoiser was trained with, as `scheduler_config.json` says it."""

    kind: Kind = "scaled_linear"
    length: int = Field(default=1000, ge=1, le=100_000)
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    # Instead of kind, start and end.
    betas: Annotated[tuple[_Beta, ...], Field(min_length=1)] | None = None
    zero_terminal_snr: bool = False

    def schedule(self) -> NoiseSchedule:
        """As tensors."""
        zero = self.zero_terminal_snr
        if self.betas is not None:
            return schedule_of(
                torch.tensor(self.betas, dtype=torch.float64), zero_terminal_snr=zero
            )
        return noise_schedule(self.kind, self.length, self.beta_start, self.beta_end, zero)


class LayoutConfig(_Strict):
    """Where samplers look: see `models.knots.Layout`."""

    spacing: Spacing | None = None
    offset: int = Field(default=0, ge=0)
    ends_clean: bool = True  # ddim: on the picture, not on ᾱ_0
    lcm_steps: int = Field(default=50, ge=1)
    lcm_scale: float = Field(default=10.0, gt=0)

    def layout(self, schedule: NoiseSchedule) -> Layout:
        """With diffusers' habits."""
        return Layout(
            spacing=self.spacing,
            offset=self.offset,
            last=1.0 if self.ends_clean else float(schedule.alphas_cumprod[0]),
            fixed_stride=True,
            between=True,
            lcm_steps=self.lcm_steps,
            lcm_scale=self.lcm_scale,
        )


class PipelineConfig(ModelConfig):
    """An imported model. `files` are relative to `source`, each with its sha256."""

    format: Literal[1] = 1
    kind: Literal["stable_diffusion"]
    source: Path
    family: Literal["sd", "sdxl"]
    parameterisation: Parameterisation
    noise: TrainingNoise
    layout: LayoutConfig = LayoutConfig()
    clip_skip: int = Field(default=0, ge=0, description="layers of the text encoder left out")
    empty_is_zero: bool = Field(False, description="no negative prompt: zeros, as SDXL's")
    sizes: tuple[Size, ...] = Field(min_length=1)  # the native one first
    free_sizes: FreeSizes | None = None
    samplers: tuple[Sampler, ...] = SAMPLERS
    default_background: str = "white"
    files: dict[str, str]
    variant: str | None = None  # of the weights, as "fp16"
    # Of a single file in the original layout: which it is, whose configurations and vocabulary lie
    # beside `bundle.json`, each with its sha256.
    generation: Literal["sd1", "sd2", "sdxl"] | None = None
    parts: dict[str, str] = Field(default_factory=dict)

    @property
    def most_lcm_steps(self) -> int:
        """Those of its distillation."""
        return self.layout.lcm_steps

    @model_validator(mode="after")
    def _default_is_offered(self) -> Self:
        if self.default_sampler not in self.samplers:
            raise ValueError(f"default_sampler is {self.default_sampler}, not one of samplers")
        return self
