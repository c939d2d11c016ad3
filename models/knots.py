"""Where a sampler asks the network: timesteps and noise levels of each of its steps.

Public weights come with habits of where their samplers look, and pictures differ with them. So a
`Layout` says them; its defaults are those of a bundle of our own.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from models.errors import ScheduleError
from models.schedule import NoiseSchedule, Spacing, timesteps

__all__ = ["Knots", "Layout", "Sampler", "knots"]

Sampler = Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "euler", "euler_ancestral", "lcm"]

_RHO = 7.0  # Karras et al. 2022, section 3.2
# Of samplers that have no wish of their own, where the configuration has none either.
_USUAL_SPACING: Final[dict[str, Spacing]] = {
    "ddpm": "leading",
    "ddim": "leading",
    "dpmpp_2m": "linspace",
    "euler": "linspace",
    "euler_ancestral": "linspace",
}


@dataclass(frozen=True)
class Layout:
    """How steps are laid over the training timesteps.

    `spacing` None is each sampler's usual one. `offset` is added to `leading` timesteps. `last` is
    the ᾱ that `ddim` ends on, 1 = the picture itself. `fixed_stride`: `ddim` steps back by
    T // steps and not to the next timestep visited. `between`: Euler's linspace asks between
    timesteps, and Karras' noise levels are not moved to those of whole timesteps. `lcm_steps` are
    those of the distillation, `lcm_scale` its timestep scaling.
    """

    spacing: Spacing | None = "trailing"
    offset: int = 0
    last: float = 1.0
    fixed_stride: bool = False
    between: bool = False
    lcm_steps: int = 50
    lcm_scale: float = 10.0


@dataclass(frozen=True)
class Knots:
    """Each step's timestep `[S]`, and ᾱ before (`now`) and after it (`then`), float64 `[S]`.

    `boundary` is the scaled timestep of a consistency model's boundary condition.
    """

    timesteps: Tensor
    now: Tensor
    then: Tensor
    boundary: Tensor
    start: float = 1.0

    def after(self, skipped: int) -> "Knots":
        """Without the first `skipped` steps: where a row goes on that starts from a picture.

        Raises:
            ScheduleError: no step would be left.
        """
        if not 0 <= skipped < len(self.timesteps):
            raise ScheduleError(
                f"{skipped!r} steps left out of {len(self.timesteps)}; at least one must remain"
            )
        t, now, then, boundary = (
            part[skipped:] for part in (self.timesteps, self.now, self.then, self.boundary)
        )
        return Knots(t, now, then, boundary, self.start)


def knots(schedule: NoiseSchedule, sampler: Sampler, steps: int, layout: Layout) -> Knots:
    """The knots of `steps` steps.

    Raises:
        ScheduleError: an unknown sampler or spacing, or more steps than the sampler has.
    """
    if sampler not in get_args(Sampler):
        known = ", ".join(get_args(Sampler))
        raise ScheduleError(f"unknown sampler {sampler!r}; choose one of {known}")
    if not 1 <= steps <= schedule.training_length:
        raise ScheduleError(f"steps is {steps!r}; it must be from 1 to {schedule.training_length}")
    if sampler == "lcm":
        return _distilled(schedule, steps, layout)
    if sampler == "dpmpp_2m_karras":
        return _karras(schedule, steps, layout)
    spacing = layout.spacing or _USUAL_SPACING[sampler]
    if sampler in ("euler", "euler_ancestral"):
        return _euler(schedule, steps, replace(layout, spacing=spacing))
    t = _visited(schedule, sampler, steps, spacing, layout.offset)
    if sampler == "ddim":
        return _at(schedule, t, _after_ddim(schedule, t, layout))
    return _at(schedule, t, _following(schedule.alphas_cumprod[t]))


def _at(schedule: NoiseSchedule, t: Tensor, then: Tensor) -> Knots:
    return Knots(t, schedule.alphas_cumprod[t], then, t.double())


def _following(now: Tensor, last: float = 1.0) -> Tensor:
    return torch.cat([now[1:], now.new_tensor([last])])


def _visited(
    schedule: NoiseSchedule, sampler: str, steps: int, spacing: Spacing, offset: int
) -> Tensor:
    length = schedule.training_length
    if sampler == "dpmpp_2m" and spacing != "trailing" and steps < length:
        # A solver ends at σ = 0, one knot past its last evaluation: that knot is not timestep 0.
        t = timesteps(spacing, steps + 1, length)[:-1]
    else:
        t = timesteps(spacing, steps, length)
    if spacing == "leading" and int(t[0]) + offset < length:
        t = t + offset
    return t


def _after_ddim(schedule: NoiseSchedule, t: Tensor, layout: Layout) -> Tensor:
    now = schedule.alphas_cumprod[t]
    if not layout.fixed_stride:
        return _following(now, layout.last)
    before = t - schedule.training_length // len(t)
    then = schedule.alphas_cumprod[before.clamp(min=0)]
    return torch.where(before >= 0, then, torch.full_like(then, layout.last))


def _euler(schedule: NoiseSchedule, steps: int, layout: Layout) -> Knots:
    spacing, length = layout.spacing, schedule.training_length
    if spacing == "linspace" and layout.between:
        t = torch.linspace(0, length - 1, steps, dtype=torch.float64).flip(0)
    else:
        t = _visited(schedule, "euler", steps, spacing or "trailing", layout.offset)
    sigma = _interpolate(t.double(), schedule.sigmas)
    now = 1 / (1 + sigma**2)
    # Noise of standard deviation σ alone, where the first knot is where training ended.
    start = 1.0 if spacing == "leading" else float((1 - now[0]).sqrt())
    return Knots(t, now, _following(now), t.double(), start)


def _karras(schedule: NoiseSchedule, steps: int, layout: Layout) -> Knots:
    """Noise levels even in σ^(1/ρ) (Karras et al. 2022, eq. 5)."""
    sigmas = schedule.sigmas
    low, high = sigmas[0] ** (1 / _RHO), sigmas[-1] ** (1 / _RHO)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigma = (high + ramp * (low - high)) ** _RHO
    t = _interpolate_inverse(sigma.log(), sigmas.log()).round().long()
    if layout.between:
        return Knots(t, now := 1 / (1 + sigma**2), _following(now), t.double())
    t = _apart(t.flip(0), schedule.training_length).flip(0)
    return _at(schedule, t, _following(schedule.alphas_cumprod[t]))


def _apart(t: Tensor, length: int) -> Tensor:
    """Ascending timesteps, some of them equal, moved as little as needed to differ."""
    place = torch.arange(len(t))
    return torch.minimum((t - place).cummax(0).values, torch.tensor(length - len(t))) + place


def _distilled(schedule: NoiseSchedule, steps: int, layout: Layout) -> Knots:
    """Evenly chosen ones of the timesteps that the distillation visited, last ones first."""
    if steps > layout.lcm_steps:
        raise ScheduleError(
            f"steps is {steps}; lcm takes from 1 to {layout.lcm_steps}, those of its distillation"
        )
    stride = schedule.training_length // layout.lcm_steps
    visited = (torch.arange(layout.lcm_steps, 0, -1) * stride - 1).clamp(min=0)
    chosen = (torch.arange(steps, dtype=torch.float64) * (layout.lcm_steps / steps)).floor().long()
    t = visited[chosen]
    now = schedule.alphas_cumprod[t]
    return Knots(t, now, _following(now), t * layout.lcm_scale)


def _interpolate(at: Tensor, values: Tensor) -> Tensor:
    """`values` at fractional indices, linearly."""
    below = at.floor().clamp(0, len(values) - 1).long()
    above = (below + 1).clamp(max=len(values) - 1)
    share = at - below
    return values[below] * (1 - share) + values[above] * share


def _interpolate_inverse(value: Tensor, values: Tensor) -> Tensor:
    """The fractional indices at which the ascending `values` are `value`."""
    below = (torch.searchsorted(values, value, right=True) - 1).clamp(0, len(values) - 2)
    low, high = values[below], values[below + 1]
    return below + ((value - low) / (high - low)).clamp(0, 1)
