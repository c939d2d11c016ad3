"""Noise schedules against closed form and the step-by-step chain."""

import math

import pytest
import torch

from models.errors import ScheduleError
from models.schedule import KINDS, SPACINGS, noise_schedule, timesteps


def test_linear_schedule_is_the_product_of_one_minus_beta() -> None:
    schedule = noise_schedule("linear", 10, 0.1, 0.2)
    expected = 1.0
    for t in range(10):
        expected *= 1 - (0.1 + t * 0.1 / 9)
        assert float(schedule.alphas_cumprod[t]) == pytest.approx(expected, rel=1e-12)


def test_cosine_schedule_follows_its_closed_form() -> None:
    schedule = noise_schedule("cosine", 1000)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 501)]
    assert float(schedule.alphas_cumprod[500]) == pytest.approx(f[1] / f[0], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_signal_only_falls(kind: str) -> None:
    schedule = noise_schedule(kind)  # type: ignore[arg-type]
    assert (schedule.alphas_cumprod.diff() < 0).all()
    assert 0 < schedule.alphas_cumprod[-1] < schedule.alphas_cumprod[0] < 1
    assert (schedule.snr.diff() < 0).all()


def test_closed_form_noising_equals_the_chain_of_steps() -> None:
    schedule = noise_schedule("linear", 50, 1e-3, 0.2)
    x_0 = torch.full((20_000, 1, 1, 1), 0.7)
    generator = torch.Generator().manual_seed(0)
    x = x_0.clone()
    previous = 1.0
    for alpha_bar in schedule.alphas_cumprod.tolist():
        alpha = alpha_bar / previous
        fresh = torch.randn(x.shape, generator=generator)
        x = alpha**0.5 * x + (1 - alpha) ** 0.5 * fresh  # Ho et al. 2020, eq. 2
        previous = alpha_bar
    eps = torch.randn(x.shape, generator=generator)
    closed = schedule.add_noise(x_0, eps, torch.full((len(x),), 49))
    assert float(x.mean()) == pytest.approx(float(closed.mean()), abs=0.03)
    assert float(x.var()) == pytest.approx(float(closed.var()), rel=0.03)


def test_rows_are_noised_to_their_own_timestep() -> None:
    schedule = noise_schedule()
    x_0, eps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    together = schedule.add_noise(x_0, eps, torch.tensor([0, 500, 999]))
    for i, t in enumerate((0, 500, 999)):
        alone = schedule.add_noise(x_0[i : i + 1], eps[i : i + 1], torch.tensor([t]))
        assert torch.equal(together[i], alone[0])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 25, 999, 1000])
def test_timesteps_descend_and_stay_in_range(spacing: str, steps: int) -> None:
    t = timesteps(spacing, steps, 1000)  # type: ignore[arg-type]
    assert len(t) == steps
    assert (t.diff() < 0).all()
    assert int(t.min()) >= 0
    assert int(t.max()) <= 999


def test_all_timesteps_are_the_full_reverse_loop() -> None:
    for spacing in SPACINGS:
        assert timesteps(spacing, 1000, 1000).tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ScheduleError, match="from 1 to 1000"):
        timesteps("leading", steps, 1000)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ScheduleError, match="linear, scaled_linear, cosine"):
        noise_schedule("sigmoid")  # type: ignore[arg-type]
    with pytest.raises(ScheduleError, match="leading, trailing, linspace"):
        timesteps("karras", 10, 1000)  # type: ignore[arg-type]
