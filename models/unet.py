"""The denoising network: a small U-Net over pixel-unshuffled pictures."""

import itertools
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from models.layers import Attention, Downsample, ResBlock, Upsample, timestep_embedding
from models.samplers import Parameterisation
from models.schedule import NoiseSchedule

__all__ = ["Denoiser", "Parameterisation", "UNet", "UNetConfig"]


class UNetConfig(BaseModel):
    """Shape of a `UNet`. Pictures are `[channels, image_size, image_size]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(ge=4, le=1024)
    channels: int = Field(default=4, ge=1, le=4)
    context_width: int = Field(ge=1, le=65536)
    patch: int = Field(default=2, ge=1, le=1024, description="pixel-unshuffle factor of the stem")
    width: int = Field(
        default=64, ge=8, le=65536, multiple_of=8, description="channels of the first level"
    )
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(1, 2, 4), min_length=1, max_length=11
    )
    blocks: int = Field(
        default=1, ge=1, le=64, description="residual blocks per level, down and up"
    )
    attention_levels: tuple[int, ...] = (1, 2)

    @model_validator(mode="after")
    def _sizes_divide(self) -> "UNetConfig":
        needed = self.patch * 2 ** (len(self.multipliers) - 1)
        if self.image_size % needed:
            raise ValueError(
                f"image_size is {self.image_size}; patch {self.patch} and "
                f"{len(self.multipliers)} levels need a multiple of {needed}"
            )
        return self


class UNet(nn.Module):
    """Timestep and context set the scale and shift of every residual block.

    Skips are merged by a 1x1 convolution, so that blocks keep the width of their level.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in config.multipliers]
        conditioning = 4 * config.width
        self.time_width = 2 * config.width
        self.time_in = nn.Sequential(
            nn.Linear(self.time_width, conditioning),
            nn.SiLU(),
            nn.Linear(conditioning, conditioning),
        )
        self.context_in = nn.Sequential(
            nn.Linear(config.context_width, conditioning),
            nn.SiLU(),
            nn.Linear(conditioning, conditioning),
        )
        pixels = config.channels * config.patch**2
        self.stem = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(self._level(i, w, conditioning) for i, w in enumerate(widths))
        self.downsample = nn.ModuleList(Downsample(a, b) for a, b in itertools.pairwise(widths))
        self.middle = self._level(len(widths) - 1, widths[-1], conditioning)
        self.up = nn.ModuleList(self._level(i, w, conditioning) for i, w in enumerate(widths))
        self.upsample = nn.ModuleList(Upsample(b, a) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(nn.Conv2d(2 * w, w, 1) for w in widths)
        self.norm_out = nn.GroupNorm(8, widths[0])
        self.head = nn.Conv2d(widths[0], pixels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def _level(self, index: int, width: int, conditioning: int) -> nn.ModuleList:
        layers: list[nn.Module] = []
        for _ in range(self.config.blocks):
            layers.append(ResBlock(width, conditioning))
            if index in self.config.attention_levels:
                layers.append(Attention(width))
        return nn.ModuleList(layers)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """`x` `[B, C, H, W]`, `timestep` int64 `[B]`, `context` `[B, D]` → `[B, C, H, W]`.

        Raises:
            ValueError: `x` is not of the size this network was made for.
        """
        size = (self.config.channels, self.config.image_size, self.config.image_size)
        if x.shape[1:] != size:
            raise ValueError(f"picture is {tuple(x.shape[1:])}; this network takes {size}")
        # CLIP contexts have length 1; times √D their entries are of order 1, as a layer expects.
        context = context * self.config.context_width**0.5
        time = self.time_in(timestep_embedding(timestep, self.time_width).to(x.dtype))
        conditioning = F.silu(time + self.context_in(context))
        h = self.stem(F.pixel_unshuffle(x, self.config.patch))
        skips = []
        for i, level in enumerate(self.down):
            h = _run(level, h, conditioning)
            skips.append(h)
            if i < len(self.downsample):
                h = self.downsample[i](h)
        h = _run(self.middle, h, conditioning)
        for i in reversed(range(len(self.up))):
            h = self.merge[i](torch.cat([h, skips[i]], dim=1))
            h = _run(self.up[i], h, conditioning)
            if i > 0:
                h = self.upsample[i - 1](h)
        out = self.head(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(out, self.config.patch)


def _run(level: nn.Module, h: Tensor, conditioning: Tensor) -> Tensor:
    for layer in level.children():
        h = layer(h, conditioning) if isinstance(layer, ResBlock) else layer(h)
    return h


class Denoiser(nn.Module):
    """A network, what it predicts, and the noise schedule that ties the two together.

    `eps` networks predict the noise ε; `v` networks √ᾱ ε - √(1-ᾱ) x_0 (Salimans & Ho 2022,
    appendix D), `denoised` networks x_0. Trajectories read all three; `eps` is for everyone else.
    """

    def __init__(
        self, network: nn.Module, schedule: NoiseSchedule, parameterisation: Parameterisation
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.parameterisation = parameterisation
        self._noisy_from: int = getattr(network, "noisy_from", 0)
        self.register_buffer("alpha", schedule.alphas_cumprod.sqrt().float(), persistent=False)
        self.register_buffer(
            "sigma", (1 - schedule.alphas_cumprod).sqrt().float(), persistent=False
        )

    def forward(self, x_t: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """`x_t` `[B, C, H, W]`, `timestep` int64 `[B]`, `context` `[B, D]` → the prediction."""
        out: Tensor = self.network(x_t, timestep, context)
        return out

    def part(self, timestep: float) -> int:
        """Which of the network's parts a call at that timestep needs, where it has several."""
        return int(timestep >= self._noisy_from)

    def eps(self, x_t: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """The noise ε `[B, C, H, W]`, whatever the network predicts; arguments as of `forward`."""
        out: Tensor = self(x_t, timestep, context)
        if self.parameterisation == "eps":
            return out
        alpha = self.alpha[timestep].reshape(-1, 1, 1, 1)  # type: ignore[index]
        sigma = self.sigma[timestep].reshape(-1, 1, 1, 1)  # type: ignore[index]
        if self.parameterisation == "v":
            return alpha * out + sigma * x_t
        return (x_t - alpha * out) / sigma
