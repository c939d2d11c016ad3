"""Every sampler, row by row, against the public reference implementation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from models.errors import ScheduleError
from models.samplers import SAMPLERS, Layout, Trajectory, step, trajectory
from models.schedule import NoiseSchedule, noise_schedule

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
SHAPE = (4, 6, 6)
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


Predict = Callable[[Tensor, int], Tensor]


def denoiser_for(schedule: NoiseSchedule) -> Predict:
    """A stand-in network whose x_0 and ε are bounded, as those of a trained one are."""

    def predict(x: Tensor, t: int) -> Tensor:
        alpha_bar = schedule.alphas_cumprod[t]
        x_0 = 1.1 * torch.tanh(x.double() * (0.3 + t / 2000)) + 0.1 * torch.sin(x.double() + t)
        eps = (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        return eps.clamp(-4, 4).float()

    return predict


def differences(
    scheduler: Any, way: Trajectory, predict: Predict, clip: float | None, monkeypatch: Any
) -> list[float]:
    """Largest difference after each step, both taking that step from the reference's picture."""
    x, noises = rows_and_noises(len(way))
    draw = iter(noises)
    for module in ("ddpm", "ddim"):
        path = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
        monkeypatch.setattr(path, lambda *_, **__: next(draw))
    scheduler.set_timesteps(len(way))
    assert scheduler.timesteps.tolist() == way.timesteps.tolist()
    found, memory = [], torch.zeros_like(x)
    for i, t in enumerate(way.timesteps.tolist()):
        eps = predict(x, t)
        noise = noises[i] if way.needs_noise[i] else torch.zeros_like(x)
        k = way.coefficients[i].expand(len(x), -1)
        ours, memory = step(x, eps, memory, noise, k, clip)
        x = scheduler.step(eps, t, x, **scheduler_options(scheduler)).prev_sample
        found.append(float((ours - x).abs().max()))
    return found


def scheduler_options(scheduler: Any) -> dict[str, float]:
    return {"eta": 0.7} if isinstance(scheduler, DDIMScheduler) else {}


def rows_and_noises(steps: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(steps)
    noises = [torch.randn((3, *SHAPE), generator=generator) for _ in range(steps - 1)]
    # Algorithm 2 draws none at its last step; the reference may (large variance, trailing).
    noises.append(torch.zeros((3, *SHAPE)))
    return torch.randn((3, *SHAPE), generator=generator), noises


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 10, 25, 1000])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_ddpm_equals_the_reference(
    kind: str, steps: int, spacing: str, variance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = DDPMScheduler(
        beta_schedule=SCHEDULES[kind],
        beta_start=1e-4,
        beta_end=0.02,
        timestep_spacing=spacing,
        variance_type=f"fixed_{variance}",
        clip_sample=True,
        steps_offset=0,
    )
    schedule = noise_schedule(kind)  # type: ignore[arg-type]
    way = trajectory(schedule, "ddpm", steps, Layout(spacing), variance=variance)  # type: ignore[arg-type]
    found = differences(scheduler, way, denoiser_for(schedule), 1.0, monkeypatch)
    assert max(found) <= 1e-4, found


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [2, 10, 25, 200])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_ddim_equals_the_reference(
    kind: str, steps: int, spacing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With `linspace` the reference steps back by T // steps, not to the next visited timestep.
    scheduler = DDIMScheduler(
        beta_schedule=SCHEDULES[kind],
        beta_start=1e-4,
        beta_end=0.02,
        timestep_spacing=spacing,
        clip_sample=True,
        set_alpha_to_one=True,
        steps_offset=0,
    )
    schedule = noise_schedule(kind)  # type: ignore[arg-type]
    way = trajectory(schedule, "ddim", steps, Layout(spacing), eta=0.7)  # type: ignore[arg-type]
    found = differences(scheduler, way, denoiser_for(schedule), 1.0, monkeypatch)
    assert max(found) <= 1e-4, found


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 10, 20, 50])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_dpmpp_2m_equals_the_reference(
    kind: str, steps: int, spacing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule=SCHEDULES[kind],
        beta_start=1e-4,
        beta_end=0.02,
        timestep_spacing=spacing,
        final_sigmas_type="zero",
        lower_order_final=False,
        steps_offset=0,
    )
    schedule = noise_schedule(kind)  # type: ignore[arg-type]
    way = trajectory(schedule, "dpmpp_2m", steps, Layout(spacing))  # type: ignore[arg-type]
    found = differences(scheduler, way, denoiser_for(schedule), None, monkeypatch)
    assert max(found) <= 1e-4, found


def mixed(schedule: NoiseSchedule) -> list[tuple[Trajectory, int]]:
    """Rows, each of another sampler, step count and place on its way."""
    return [
        (trajectory(schedule, sampler, steps, eta=0.5), steps * place // 3)
        for sampler in SAMPLERS
        for steps, place in ((4, 0), (25, 1), (40, 2))
    ]


def test_rows_of_every_sampler_and_step_mix_in_one_call() -> None:
    rows = mixed(noise_schedule())
    x, eps, memory, noise = torch.randn(4, len(rows), *SHAPE).unbind(0)
    k = torch.stack([way.coefficients[i] for way, i in rows])
    together = step(x, eps, memory, noise, k)
    for row in range(len(rows)):
        one = slice(row, row + 1)
        alone = step(x[one], eps[one], memory[one], noise[one], k[one])
        assert torch.equal(together[0][one], alone[0])
        assert torch.equal(together[1][one], alone[1])


def test_without_fresh_noise_ddpm_collapses_towards_the_mean() -> None:
    """Data N(0, 1) per pixel: the exact ε is known, so only the missing noise can be at fault."""
    schedule = noise_schedule("linear")
    way = trajectory(schedule, "ddpm", 1000)
    x = start = torch.randn((1, 1, 100, 100), generator=torch.Generator().manual_seed(0))
    quiet = start
    generator = torch.Generator().manual_seed(1)
    for i, t in enumerate(way.timesteps.tolist()):
        sigma = float((1 - schedule.alphas_cumprod[t]).sqrt())
        k = way.coefficients[i][None]
        zeros = torch.zeros_like(x)
        noise = torch.randn(x.shape, generator=generator)
        x, _ = step(x, sigma * x, zeros, noise, k, clip=None)
        quiet, _ = step(quiet, sigma * quiet, zeros, zeros, k, clip=None)
    assert float(x.var()) == pytest.approx(1.0, rel=0.1)
    assert float(quiet.var()) < 0.1


def test_only_noisy_steps_ask_for_noise() -> None:
    schedule = noise_schedule()
    assert not trajectory(schedule, "dpmpp_2m", 20).needs_noise.any()
    assert not trajectory(schedule, "ddim", 20).needs_noise.any()
    ddpm = trajectory(schedule, "ddpm", 20).needs_noise
    assert ddpm[:-1].all()
    assert not ddpm[-1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_ends_on_a_clean_picture(sampler: str) -> None:
    way = trajectory(noise_schedule(), sampler, 7)  # type: ignore[arg-type]
    x, eps = torch.randn(2, 1, *SHAPE).unbind(0)
    zeros = torch.zeros_like(x)
    x_prev, denoised = step(x, eps, zeros, zeros, way.coefficients[-1:], 1.0)
    assert torch.allclose(x_prev, denoised, atol=1e-5)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 50, 1000])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "lcm"])
def test_shortest_and_longest_trajectories_are_finite(
    sampler: str, steps: int, kind: str, zero_terminal_snr: bool
) -> None:
    schedule = noise_schedule(kind, zero_terminal_snr=zero_terminal_snr)  # type: ignore[arg-type]
    way = trajectory(schedule, sampler, steps)  # type: ignore[arg-type]
    assert len(way) == steps
    assert way.coefficients.isfinite().all()
    assert (way.timesteps[:-1] > way.timesteps[1:]).all()


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(ScheduleError, match="ddpm, ddim, dpmpp_2m"):
        trajectory(noise_schedule(), "heun", 10)  # type: ignore[arg-type]
