"""A plain sampling loop: for training grids and evaluation. Serving has the engine."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.guidance import acts, guide
from models.samplers import Parameterisation, Sampler, step, trajectory
from models.schedule import NoiseSchedule

_FAR = 2_654_435_761  # 2^32 over the golden ratio: a few of them are far apart, modulo 2^32
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


def row_generator(seed: int) -> torch.Generator:
    """The one source of noise of a row: first its starting noise, then one draw per noisy step."""
    return torch.Generator("cpu").manual_seed(seed)


def layer_seed(seed: int, layer: int) -> int:
    """The seed of a layer of a picture's scene; that of the first is the picture's own.

    Far from it in the lower 32 bits, which are all that torch's generator on CPU takes of a seed.
    """
    return seed + layer * _FAR


@torch.inference_mode()
def sample(
    denoiser: Denoise,
    schedule: NoiseSchedule,
    contexts: Tensor,
    empty: Tensor,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    *,
    sampler: Sampler = "ddim",
    steps: int = 25,
    guidance_scale: float = 3.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    clip: float | None = 1.0,
    parameterisation: Parameterisation = "eps",
) -> Tensor:
    """Pictures for `contexts` `[B, D]`, one seed each → `[B, C, H, W]` in [-1, 1].

    `parameterisation` is what `denoiser` predicts; `empty` `[D]` is the unconditional context;
    `guidance_scale` 1 leaves guidance out, as do steps outside of `guidance_interval`.
    """
    way = trajectory(schedule, sampler, steps, parameterisation=parameterisation)
    generators = [row_generator(seed) for seed in seeds]
    device = contexts.device
    x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
    denoised = torch.zeros_like(x)
    scale = torch.full((len(x),), guidance_scale, device=device)
    uncond = empty.expand_as(contexts)
    for i, timestep in enumerate(way.timesteps.tolist()):
        t = torch.full((len(x),), timestep, device=device)
        predicted = denoiser(x, t, contexts)
        if guidance_scale != 1 and acts(i, steps, guidance_interval):
            predicted = guide(predicted, denoiser(x, t, uncond), scale)
        noise = torch.zeros_like(x)
        if way.needs_noise[i]:
            noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
        k = way.coefficients[i].to(device).expand(len(x), -1)
        x, denoised = step(x, predicted, denoised, noise, k, clip)
    return x
