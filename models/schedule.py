"""Noise schedules and timestep spacings (Ho et al. 2020; Nichol & Dhariwal 2021)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.errors import ScheduleError

Kind = Literal["linear", "scaled_linear", "cosine"]
Spacing = Literal["leading", "trailing", "linspace"]
ALMOST_ZERO = 2.0**-24  # ᾱ at zero terminal SNR
KINDS: tuple[Kind, ...] = ("linear", "scaled_linear", "cosine")
SPACINGS: tuple[Spacing, ...] = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class NoiseSchedule:
    """How much of the picture is left at each timestep.

    `alphas_cumprod` is float64 `[T]`, decreasing, in (0, 1): the paper's ᾱ_t for t = 0 … T-1; the
    last may be above the one before it at zero terminal SNR.
    """

    alphas_cumprod: Tensor

    @property
    def training_length(self) -> int:
        """T, the number of timesteps the denoiser was trained on."""
        return len(self.alphas_cumprod)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1 - ᾱ_t), float64 `[T]`."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    @property
    def sigmas(self) -> Tensor:
        """Noise per signal √((1 - ᾱ_t) / ᾱ_t), float64 `[T]`, ascending."""
        return self.snr.rsqrt()

    def add_noise(self, x_0: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
        """Noise pictures in closed form: x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (Ho et al. 2020, eq. 4).

        `x_0`, `eps`: `[B, C, H, W]`; `timestep`: int64 `[B]`. Returns `[B, C, H, W]`.
        """
        alpha = self.per_row(self.alphas_cumprod.sqrt(), timestep, x_0)
        sigma = self.per_row((1 - self.alphas_cumprod).sqrt(), timestep, x_0)
        return alpha * x_0 + sigma * eps

    @staticmethod
    def per_row(table: Tensor, timestep: Tensor, like: Tensor) -> Tensor:
        """`table[timestep]` as `[B, 1, 1, 1]` in the dtype and device of `like`."""
        rows = table.to(like.device)[timestep].to(like.dtype)
        return rows.reshape(-1, *([1] * (like.ndim - 1)))


def noise_schedule(
    kind: Kind = "cosine",
    length: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> NoiseSchedule:
    """Build a schedule of `length` timesteps.

    `linear`: β from `beta_start` to `beta_end` (Ho et al. 2020, section 4); `scaled_linear`: the
    same in √β (Rombach et al. 2022); `cosine`: Nichol & Dhariwal 2021, eq. 17, β clipped at 0.999.
    `zero_terminal_snr`: see `schedule_of`; the cosine ends as near to it by itself.

    Raises:
        ScheduleError: an unknown kind or a length below 1.
    """
    if length < 1:
        raise ScheduleError(f"schedule length is {length!r}; it must be at least 1")
    if kind == "linear":
        betas = torch.linspace(beta_start, beta_end, length, dtype=torch.float64)
    elif kind == "scaled_linear":
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, length, dtype=torch.float64)
        betas = roots**2
    elif kind == "cosine":
        betas = _cosine_betas(length)
    else:
        raise ScheduleError(f"unknown schedule {kind!r}; choose one of {', '.join(KINDS)}")
    return schedule_of(betas, zero_terminal_snr=zero_terminal_snr)


def schedule_of(betas: Tensor, *, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """The schedule of given β, float64 `[T]`.

    `zero_terminal_snr` rescales it so that nothing is left of the picture at the last timestep (Lin
    et al. 2024, algorithm 1); as in the public reference ᾱ is 2⁻²⁴ there, for most samplers divide.
    """
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    if zero_terminal_snr:
        root = alphas_cumprod.sqrt()
        alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        alphas_cumprod[-1] = ALMOST_ZERO
    return NoiseSchedule(alphas_cumprod)


def _cosine_betas(length: int) -> Tensor:
    t = torch.arange(length + 1, dtype=torch.float64) / length
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def timesteps(spacing: Spacing, steps: int, length: int) -> Tensor:
    """Choose `steps` of `length` timesteps, int64 `[steps]`, strictly descending.

    Spacings as named in Lin et al. 2024, table 2. `steps == length` visits every timestep.

    Raises:
        ScheduleError: an unknown spacing, or steps outside 1 … length.
    """
    if not 1 <= steps <= length:
        raise ScheduleError(f"steps is {steps!r}; it must be from 1 to {length}")
    if spacing == "leading":
        ascending = torch.arange(steps) * (length // steps)
    elif spacing == "trailing":
        # Rounded half to even in float64, as the public reference implementations do.
        grid = length - torch.arange(steps, dtype=torch.float64) * (length / steps)
        ascending = grid.round().long().flip(0) - 1
    elif spacing == "linspace":
        ascending = torch.linspace(0, length - 1, steps, dtype=torch.float64).round().long()
        if steps == 1:
            ascending = torch.tensor([0])
    else:
        raise ScheduleError(f"unknown spacing {spacing!r}; choose one of {', '.join(SPACINGS)}")
    return ascending.flip(0)
