"""One pass from a small picture to one of twice the side, alpha included."""

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class UpscalerConfig(BaseModel):
    """Shape of an `Upscaler`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(default=4, ge=1, le=4)
    width: int = Field(default=32, ge=4, le=65536)
    blocks: int = Field(default=4, ge=1, le=1024)


class Upscaler(nn.Module):
    """A residual network at low resolution with a sub-pixel head (Shi et al. 2016).

    It predicts what bilinear enlargement lacks, so at worst it is that enlargement.
    """

    def __init__(self, config: UpscalerConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(config.channels, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(config.width, config.width, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(config.width, config.width, 3, padding=1),
            )
            for _ in range(config.blocks)
        )
        self.head = nn.Conv2d(config.width, config.channels * 4, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, factor: int = 2) -> Tensor:
        """`[B, C, H, W]` in [-1, 1] → `[B, C, fH, fW]`; factor 4 is two passes.

        Raises:
            ValueError: a factor other than 1, 2 or 4.
        """
        if factor not in (1, 2, 4):
            raise ValueError(f"factor is {factor!r}; it must be 1, 2 or 4")
        while factor > 1:
            x = self._double(x)
            factor //= 2
        return x

    def _double(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        detail = F.pixel_shuffle(self.head(F.gelu(h)), 2)
        smooth = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.clamp(smooth + detail, -1, 1)
