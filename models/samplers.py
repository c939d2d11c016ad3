"""Samplers as one linear update, so that rows of any sampler, step and step count mix in a batch.

Every sampler here moves a row by

    x_prev = k₀ x_t + k₁ denoised + k₂ previous_denoised + k₃ ε + k₄ noise,
    denoised = clip((x_t - k₅ ε) k₆)

and differs only in the numbers k, which depend on the trajectory and not on the picture. So a
sampler is a table of them, made in float64 when a row is admitted, and `step` is shared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.errors import ScheduleError
from models.schedule import NoiseSchedule, Spacing, timesteps

Sampler = Literal["ddpm", "ddim", "dpmpp_2m"]
SAMPLERS: tuple[Sampler, ...] = ("ddpm", "ddim", "dpmpp_2m")
Variance = Literal["small", "large"]

_ALWAYS_CLEAN = 1.0  # ᾱ "before" timestep 0: the picture itself


@dataclass(frozen=True)
class Trajectory:
    """The way of one row from noise to picture.

    `timesteps`: int64 `[S]`, descending; `coefficients`: float32 `[S, 7]`, the k of the module
    docstring; `needs_noise`: bool `[S]`, where fresh noise is to be drawn.
    """

    timesteps: Tensor
    coefficients: Tensor

    @property
    def needs_noise(self) -> Tensor:
        return self.coefficients[:, 4] != 0

    def __len__(self) -> int:
        return len(self.timesteps)


def trajectory(
    schedule: NoiseSchedule,
    sampler: Sampler,
    steps: int,
    spacing: Spacing = "trailing",
    *,
    eta: float = 0.0,
    variance: Variance = "small",
) -> Trajectory:
    """Lay out `steps` denoising steps of `sampler` over `schedule`.

    `eta` is DDIM's share of fresh noise (Song et al. 2021, eq. 16); `variance` is DDPM's posterior
    variance, `small` = β̃_t or `large` = β_t (Ho et al. 2020, section 3.2).

    Raises:
        ScheduleError: an unknown sampler or spacing, or steps outside 1 … T.
    """
    t = _visited(schedule, sampler, steps, spacing)
    now = schedule.alphas_cumprod[t]
    then = torch.cat([now[1:], now.new_tensor([_ALWAYS_CLEAN])])
    tables: dict[str, Callable[[], Tensor]] = {
        "ddpm": lambda: _ddpm(now, then, variance),
        "ddim": lambda: _ddim(now, then, eta),
        "dpmpp_2m": lambda: _dpmpp_2m(now, then),
    }
    if sampler not in tables:
        raise ScheduleError(f"unknown sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    to_denoised = torch.stack([(1 - now).sqrt(), now.rsqrt()], dim=1)
    return Trajectory(t, torch.cat([tables[sampler](), to_denoised], dim=1).float())


def _visited(schedule: NoiseSchedule, sampler: str, steps: int, spacing: Spacing) -> Tensor:
    length = schedule.training_length
    if sampler == "dpmpp_2m" and spacing != "trailing" and steps < length:
        # A solver ends at σ = 0, one knot past its last evaluation: that knot is not timestep 0.
        return timesteps(spacing, steps + 1, length)[:-1]
    return timesteps(spacing, steps, length)


def _ddpm(now: Tensor, then: Tensor, variance: Variance) -> Tensor:
    """Posterior mean and noise of the chain (Ho et al. 2020, eqs. 6-7), float64 `[S, 5]`."""
    alpha = now / then
    beta = 1 - alpha
    small = (1 - then) / (1 - now) * beta
    std = (small if variance == "small" else beta).clamp(min=1e-20).sqrt()
    std[-1] = 0.0  # the last step shows the mean: nothing follows that could remove noise
    k = torch.zeros(len(now), 5, dtype=torch.float64)
    k[:, 0] = alpha.sqrt() * (1 - then) / (1 - now)
    k[:, 1] = then.sqrt() * beta / (1 - now)
    k[:, 4] = std
    return k


def _ddim(now: Tensor, then: Tensor, eta: float) -> Tensor:
    """The non-Markovian step (Song et al. 2021, eq. 12), float64 `[S, 5]`."""
    sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
    k = torch.zeros(len(now), 5, dtype=torch.float64)
    k[:, 1] = then.sqrt()
    k[:, 3] = (1 - then - sigma**2).clamp(min=0).sqrt()
    k[:, 4] = sigma
    return k


def _dpmpp_2m(now: Tensor, then: Tensor) -> Tensor:
    """Second-order multistep, data prediction (Lu et al. 2022, algorithm 2), float64 `[S, 5]`.

    The first step has no memory and the last ends at σ = 0: both are first order.
    """
    lam = 0.5 * (now / (1 - now)).log()  # λ = log(α/σ)
    h = torch.cat([lam[1:] - lam[:-1], lam.new_tensor([torch.inf])])
    decay = torch.expm1(-h)
    k = torch.zeros(len(now), 5, dtype=torch.float64)
    k[:, 0] = ((1 - then) / (1 - now)).sqrt()
    k[:, 1] = -then.sqrt() * decay
    if len(now) > 2:
        half_over_r = 0.5 * h[1:-1] / h[:-2]  # 1 / (2 r), r = h_previous / h
        extra = k[1:-1, 1] * half_over_r
        k[1:-1, 1] += extra
        k[1:-1, 2] = -extra
    return k


def step(
    x_t: Tensor,
    eps: Tensor,
    previous_denoised: Tensor,
    noise: Tensor,
    coefficients: Tensor,
    clip: float | None = 1.0,
) -> tuple[Tensor, Tensor]:
    """Move every row one step, each by its own coefficients.

    All pictures are `[B, C, H, W]`; `coefficients` is `[B, 7]`, one row of each `Trajectory`;
    `previous_denoised` and `noise` are zeros where a row has none. `clip` bounds `denoised` to
    [-clip, clip]; None leaves it. Returns `(x_prev, denoised)`.
    """
    k = coefficients.reshape(*coefficients.shape, *([1] * (x_t.ndim - 1))).unbind(1)
    denoised = (x_t - k[5] * eps) * k[6]
    if clip is not None:
        denoised = denoised.clamp(-clip, clip)
    x_prev = k[0] * x_t + k[1] * denoised + k[2] * previous_denoised + k[3] * eps + k[4] * noise
    return x_prev, denoised
