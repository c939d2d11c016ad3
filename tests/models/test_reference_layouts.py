"""Whole trajectories as the public weights are sampled: the habits of their configurations."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from models.errors import ScheduleError
from models.samplers import Layout, Parameterisation, Trajectory, step, trajectory
from models.schedule import NoiseSchedule, noise_schedule, schedule_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
ROWS, SHAPE = 3, (4, 6, 6)
SCHEDULE = noise_schedule("scaled_linear", 1000, 0.00085, 0.012)
# As scheduler_config.json of Stable Diffusion 1.5 has it, whatever the scheduler.
BETAS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
OLD: dict[str, Any] = {**BETAS, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
LAST = float(SCHEDULE.alphas_cumprod[0])
CLASSES = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_karras": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
}
STEPS = {"lcm": [1, 4, 7]}


def scheduler_of(sampler: str, config: dict[str, Any]) -> Any:
    more = {"use_karras_sigmas": True} if sampler == "dpmpp_2m_karras" else {}
    return getattr(diffusers, CLASSES[sampler]).from_config(config, **more)


def network(x: Tensor, t: float) -> Tensor:
    """A stand-in of bounded values; what it predicts is the sampler's to say."""
    return torch.tanh(x * (0.3 + t / 2000)) + 0.1 * torch.sin(x + t / 100)


def reference(scheduler: Any, steps: int, start: Tensor) -> Tensor:
    scheduler.set_timesteps(steps)
    x = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        predicted = network(scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(predicted, t, x).prev_sample
    return x


def ours(way: Trajectory, start: Tensor, noises: list[Tensor]) -> Tensor:
    x, memory, draw = start * way.start, torch.zeros_like(start), iter(noises)
    for i, t in enumerate(way.timesteps.tolist()):
        noise = next(draw) if way.needs_noise[i] else torch.zeros_like(x)
        k = way.coefficients[i].expand(len(x), -1)
        x, memory = step(x, network(x, t), memory, noise, k, clip=None)
    return x


def difference(
    sampler: str,
    steps: int,
    scheduler: Any,
    way: Trajectory,
    monkeypatch: pytest.MonkeyPatch,
) -> float:
    generator = torch.Generator().manual_seed(steps)
    start, *noises = torch.randn((steps + 1, ROWS, *SHAPE), generator=generator).unbind(0)
    draw = iter(noises)
    module = type(scheduler).__module__
    if hasattr(__import__(module, fromlist=["x"]), "randn_tensor"):
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: next(draw))
    theirs = reference(scheduler, steps, start)
    return float((ours(way, start, noises) - theirs).abs().max())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", [None, "leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", CLASSES)
def test_whole_trajectories_equal_the_reference(
    sampler: str, spacing: str | None, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**OLD, "prediction_type": prediction}
    if spacing is not None:
        config["timestep_spacing"] = spacing
    layout = Layout(spacing, offset=1, last=LAST, fixed_stride=True, between=True)  # type: ignore[arg-type]
    predicts = "v" if prediction == "v_prediction" else "eps"
    for steps in STEPS.get(sampler, [1, 2, 7, 30]):
        way = trajectory(SCHEDULE, sampler, steps, layout, parameterisation=predicts)  # type: ignore[arg-type]
        found = difference(sampler, steps, scheduler_of(sampler, config), way, monkeypatch)
        assert found <= 1e-3, (steps, found)


# What else files say: noise, what is predicted, and where leading timesteps begin.
HABITS: dict[str, tuple[dict[str, Any], NoiseSchedule, Parameterisation]] = {
    "linear": (
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        noise_schedule("linear", 1000, 0.0001, 0.02),
        "eps",
    ),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, noise_schedule("cosine"), "v"),
    "picture": ({"prediction_type": "sample"}, SCHEDULE, "denoised"),
}


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("sampler", CLASSES)
def test_other_noise_predictions_and_offsets_equal_the_reference(
    sampler: str, habit: str, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (sampler, habit) in (("euler_ancestral", "picture"), ("dpmpp_2m_karras", "cosine")):
        pytest.skip("the reference does not do this: it raises, or steps out of its own table")
    said, schedule, predicts = HABITS[habit]
    names = {"eps": "epsilon", "v": "v_prediction", "denoised": "sample"}
    more = {"prediction_type": names[predicts], "timestep_spacing": "leading"}
    config = {**OLD, **said, **more, "steps_offset": offset}
    last = float(schedule.alphas_cumprod[0])
    layout = Layout("leading", offset=offset, last=last, fixed_stride=True, between=True)
    way = trajectory(schedule, sampler, 7, layout, parameterisation=predicts)  # type: ignore[arg-type]
    found = difference(sampler, 7, scheduler_of(sampler, config), way, monkeypatch)
    # Linear noise ends at σ = 157, and values of thousands have float32's last bits there.
    assert found <= (2e-3 if habit == "linear" else 1e-3), found


@pytest.mark.parametrize("sampler", CLASSES)
def test_zero_terminal_snr_equals_the_reference(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    habits = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    config = {**BETAS, **habits, "prediction_type": "v_prediction", "clip_sample": False}
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    schedule = schedule_of(roots**2, zero_terminal_snr=True)
    layout = Layout("trailing", fixed_stride=True, between=True)
    way = trajectory(schedule, sampler, 10, layout, parameterisation="v")  # type: ignore[arg-type]
    found = difference(sampler, 10, scheduler_of(sampler, config), way, monkeypatch)
    assert found <= 1e-3


def test_lcm_takes_no_more_steps_than_its_distillation() -> None:
    with pytest.raises(ScheduleError, match="lcm takes from 1 to 50"):
        trajectory(SCHEDULE, "lcm", 51)
