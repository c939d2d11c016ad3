"""Samplers as one linear update, so that rows of any sampler, step and step count mix in a batch.

Every sampler here moves a row by

    x_prev = k₀ x_t + k₁ denoised + k₂ previous_denoised + k₃ predicted + k₄ noise,
    denoised = clip((k₅ x_t + k₆ predicted) k₇)

and differs only in the numbers k, which depend on the trajectory and not on the picture. So a
sampler is a table of them, made in float64 when a row is admitted, and `step` is shared. What the
network `predicted` may be ε, v or the picture: k₅ … k₇ know which, and k₀ and k₃ hold what is
asked of ε = k₈ x_t + k₉ predicted.

All rows are variance preserving, x_t = √ᾱ x_0 + √(1-ᾱ) ε. Samplers written for x_0 + σ ε, as
Euler's, are the same update there, with ᾱ = 1 / (1 + σ²).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from models.knots import Knots, Layout, Sampler, knots
from models.schedule import ALMOST_ZERO, NoiseSchedule

__all__ = [
    "NOISE",
    "PREVIOUS",
    "SAMPLERS",
    "UNDISTILLED",
    "Layout",
    "Parameterisation",
    "Sampler",
    "Trajectory",
    "columns",
    "step",
    "trajectory",
]

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
# Those that suit every denoiser: `lcm` is for distilled ones.
UNDISTILLED: tuple[Sampler, ...] = tuple(name for name in SAMPLERS if name != "lcm")
Variance = Literal["small", "large"]
Parameterisation = Literal["eps", "v", "denoised"]
# Those that at zero terminal SNR are as exact with nothing left of the picture, unless ε is read.
_UNDIVIDED: tuple[Sampler, ...] = ("ddpm", "ddim", "lcm")
# Terms of the update, bit j for that of k_j.
_X, _DENOISED, PREVIOUS, _PREDICTED, NOISE, _READ, _, _DIVIDED = (1 << j for j in range(8))
_ALL = (1 << 8) - 1
_KEPT = 64  # trajectories: most rows go one of few ways, and to lay one out takes a millisecond


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The way of one row from noise to picture.

    `timesteps`: `[S]`, descending, int64, or float64 where a sampler asks between two of them;
    `alphas_cumprod`: float64 `[S]`, ᾱ before each step; `coefficients`: float32 `[S, 8]`, the k of
    the module docstring; `start`: standard deviation of the noise it begins with, where it begins
    with nothing else; `needs_noise`: bool `[S]`, where fresh noise is to be drawn.
    """

    timesteps: Tensor
    alphas_cumprod: Tensor
    coefficients: Tensor
    start: float = 1.0

    @property
    def needs_noise(self) -> Tensor:
        return self.coefficients[:, 4] != 0

    @cached_property
    def terms(self) -> list[int]:
        """Of each step, the terms that change something: bit j is set where k_j does."""
        idle = torch.zeros(8)
        idle[7] = 1.0  # a factor
        bits = torch.tensor([1 << j for j in range(8)])
        found: list[int] = ((self.coefficients != idle) * bits).sum(1).tolist()
        return found

    @cached_property
    def mixture(self) -> list[tuple[float, float]]:
        """√ᾱ and √(1-ᾱ) before each step: what x_t has of the picture, and of noise."""
        signal, noise = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        return list(zip(signal.tolist(), noise.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.timesteps)


@lru_cache(_KEPT)
def trajectory(
    schedule: NoiseSchedule,
    sampler: Sampler,
    steps: int,
    layout: Layout | None = None,
    *,
    skipped: int = 0,
    parameterisation: Parameterisation = "eps",
    eta: float = 0.0,
    variance: Variance = "small",
) -> Trajectory:
    """Lay out `steps` denoising steps of `sampler` over `schedule`, but for the first `skipped`.

    Those who ask for the same get the same one, which is not to be changed.

    `parameterisation` is what the denoiser predicts; `eta` is DDIM's share of fresh noise (Song et
    al. 2021, eq. 16); `variance` is DDPM's posterior variance, `small` = β̃_t or `large` = β_t (Ho
    et al. 2020, section 3.2).

    Raises:
        ScheduleError: an unknown sampler or spacing, more steps than the sampler has, or none left.
    """
    at = knots(schedule, sampler, steps, layout or Layout()).after(skipped)
    if sampler in _UNDIVIDED and parameterisation != "eps":
        at = replace(at, now=at.now.masked_fill(at.now == ALMOST_ZERO, 0.0))
    tables: dict[Sampler, Callable[[], Tensor]] = {
        "ddpm": lambda: _ddpm(at.now, at.then, variance),
        "ddim": lambda: _ddim(at.now, at.then, eta),
        "dpmpp_2m": lambda: _dpmpp_2m(at.now, at.then),
        "dpmpp_2m_karras": lambda: _dpmpp_2m(at.now, at.then),
        "euler": lambda: _euler(at.now, at.then, 0.0),
        "euler_ancestral": lambda: _euler(at.now, at.then, 1.0),
        "lcm": lambda: _lcm(at),
    }
    update, reading = tables[sampler](), _reading(at.now, parameterisation)
    eps = update[:, 3:4] * reading[:, 3:]  # k₃ ε, by what it is made of
    update[:, 0] += eps[:, 0]
    update[:, 3] = eps[:, 1]
    coefficients = torch.cat([update, reading[:, :3]], dim=1).float()
    return Trajectory(at.timesteps, at.now, coefficients, at.start)


def _reading(now: Tensor, parameterisation: Parameterisation) -> Tensor:
    """How `denoised` and ε follow from x_t and the prediction, float64 `[S, 5]`.

    v = √ᾱ ε - √(1-ᾱ) x_0 (Salimans & Ho 2022, appendix D).
    """
    alpha, sigma = now.sqrt(), (1 - now).sqrt()
    zero, one = torch.zeros_like(now), torch.ones_like(now)
    k = {
        # Divided last: near the end of training ᾱ is tiny, and x_t - σ ε close to exact.
        "eps": (one, -sigma, 1 / alpha, zero, one),
        "v": (alpha, -sigma, one, sigma, alpha),
        "denoised": (zero, one, one, 1 / sigma, -alpha / sigma),
    }
    return torch.stack(k[parameterisation], dim=1)


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
    # At zero terminal SNR ᾱ may rise at the end (`schedule_of`): there is no noise to add there.
    sigma = eta * ((1 - then) / (1 - now) * (1 - now / then).clamp(min=0)).sqrt()
    k = torch.zeros(len(now), 5, dtype=torch.float64)
    k[:, 1] = then.sqrt()
    k[:, 3] = (1 - then - sigma**2).clamp(min=0).sqrt()
    k[:, 4] = sigma
    return k


def _euler(now: Tensor, then: Tensor, ancestral: float) -> Tensor:
    """Along (x_t - denoised) / σ (Karras et al. 2022, algorithm 1), float64 `[S, 5]`.

    DDIM's step, with `ancestral` for its η, but for what clipping makes of it: here the direction
    follows the clipped picture.
    """
    k = _ddim(now, then, ancestral)
    k[:, 0] = k[:, 3] / (1 - now).sqrt()
    k[:, 1] -= k[:, 0] * now.sqrt()
    k[:, 3] = 0
    return k


def _dpmpp_2m(now: Tensor, then: Tensor) -> Tensor:
    """Second-order multistep, data prediction (Lu et al. 2022, algorithm 2), float64 `[S, 5]`.

    The first step has no memory and the last, which ends at σ = 0, is not extrapolated: both are
    first order.
    """
    lam, ahead = (0.5 * (a / (1 - a)).log() for a in (now, then))  # λ = log(α/σ)
    h = ahead - lam
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


def _lcm(at: Knots) -> Tensor:
    """Consistency sampling (Luo et al. 2023, algorithm 3): to the picture, and noised again."""
    quarter = 0.25  # σ_data², with σ_data = 0.5
    skip = quarter / (at.boundary**2 + quarter)
    out = at.boundary / (at.boundary**2 + quarter).sqrt()
    k = torch.zeros(len(at.now), 5, dtype=torch.float64)
    k[:, 0] = at.then.sqrt() * skip
    k[:, 1] = at.then.sqrt() * out
    k[:, 4] = (1 - at.then).sqrt()
    return k


def columns(coefficients: Tensor) -> tuple[Tensor, ...]:
    """The eight numbers of rows, `[B, 8]`, each as `[B, 1, 1, 1]`."""
    return coefficients[..., None, None, None].unbind(1)


def step(
    x_t: Tensor,
    predicted: Tensor,
    previous_denoised: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor | Sequence[Tensor],
    clip: float | None = 1.0,
    terms: int = _ALL,
) -> tuple[Tensor, Tensor]:
    """Move every row one step, each by its own coefficients.

    All pictures are `[B, C, H, W]`; `coefficients` is `[B, 8]`, one row of each `Trajectory`, or
    what `columns` makes of that; `previous_denoised` and `noise` are zeros where a row has none.
    `clip` bounds `denoised` to [-clip, clip]; None leaves it. `terms` are those that any row has
    (`Trajectory.terms`): without `PREVIOUS` and `NOISE`, `previous_denoised` and `noise` may be
    None. As long as all numbers are finite, a row's result does not depend on the terms of others.
    Returns `(x_prev, denoised)`.
    """
    k = columns(coefficients) if isinstance(coefficients, Tensor) else coefficients
    denoised = (k[5] * x_t).addcmul_(k[6], predicted) if terms & _READ else k[6] * predicted
    if terms & _DIVIDED:
        denoised.mul_(k[7])
    if clip is not None:
        denoised.clamp_(-clip, clip)
    x_prev = (k[0] * x_t).addcmul_(k[1], denoised) if terms & _X else k[1] * denoised
    for term, factor, of in (
        (PREVIOUS, k[2], previous_denoised),
        (_PREDICTED, k[3], predicted),
        (NOISE, k[4], noise),
    ):
        if terms & term and of is not None:
            x_prev.addcmul_(factor, of)
    return x_prev, denoised
