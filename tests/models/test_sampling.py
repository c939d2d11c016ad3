"""The plain loop: seeds, guidance, and independence of rows."""

import torch

from models.bundle import Bundle
from models.guidance import guide
from models.sampling import layer_seed, row_generator, sample
from models.upscaler import Upscaler, UpscalerConfig


def run(tiny: Bundle, prompts: list[str], seeds: list[int], **options: object) -> torch.Tensor:
    contexts = tiny.context.encode(prompts)
    return sample(
        tiny.denoiser,
        tiny.schedule,
        contexts,
        tiny.context.empty,
        seeds,
        (4, 16, 16),
        steps=5,
        parameterisation=tiny.config.parameterisation,
        **options,  # type: ignore[arg-type]
    )


def test_same_seed_same_picture_other_seed_another(tiny: Bundle) -> None:
    a, b, c = run(tiny, ["a cat"] * 3, [1, 1, 2], sampler="ddpm")
    assert torch.equal(a, b)
    assert float((a - c).abs().max()) > 0.1


def test_layers_of_a_scene_and_pictures_of_a_job_have_noise_of_their_own() -> None:
    """Seeds alone do not tell: of those 2^32 apart torch makes the same noise."""
    for first in (0, 7, 2**32 - 4, 2**53 - 8):
        seeds = [layer_seed(first + i, layer) for i in range(8) for layer in range(4)]
        noise = {float(torch.randn(1, generator=row_generator(seed))) for seed in seeds}
        assert len(noise) == len(seeds)
    assert layer_seed(7, 0) == 7


def test_a_row_hardly_depends_on_its_neighbours(tiny: Bundle) -> None:
    alone = run(tiny, ["a cat"], [7])
    among = run(tiny, ["a dog", "a cat", "a car"], [1, 7, 3])[1:2]
    assert float((alone - among).abs().max()) < 1e-3


def test_pictures_stay_in_range(tiny: Bundle) -> None:
    x = run(tiny, ["a cat", "a dog"], [1, 2], guidance_scale=8.0)
    assert x.isfinite().all()
    assert float(x.abs().max()) <= 1 + 1e-5


def test_guidance_acts_within_its_interval_alone(tiny: Bundle) -> None:
    """Of five steps, at 0, ¼, ½, ¾ and 1 of the way; elsewhere the network is asked once."""
    asked: list[int] = []

    def counted(x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        asked.append(int(timestep[0]))
        predicted: torch.Tensor = tiny.denoiser(x, timestep, context)
        return predicted

    context = tiny.context.encode(["a cat"])
    for interval, guided in (((0.0, 0.5), [0, 1, 2]), ((0.25, 0.74), [1, 2]), ((1.0, 1.0), [4])):
        asked.clear()
        sample(
            *(counted, tiny.schedule, context, tiny.context.empty, [1], (4, 16, 16)),
            **{"steps": 5, "guidance_interval": interval},
        )
        steps = sorted(set(asked), reverse=True)
        assert [steps.index(t) for t in steps if asked.count(t) == 2] == guided


def test_guidance_one_is_the_conditional_prediction_and_zero_the_other() -> None:
    cond, uncond = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    out = guide(cond, uncond, torch.tensor([1.0, 0.0]))
    assert torch.allclose(out[0], cond[0], atol=1e-6)
    assert torch.equal(out[1], uncond[1])


def test_guidance_extrapolates_per_row() -> None:
    cond, uncond = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    assert guide(cond, uncond, torch.tensor([3.0, 7.5])).flatten().tolist() == [3.0, 7.5]


def test_an_untrained_upscaler_is_bilinear_enlargement() -> None:
    x = torch.rand(1, 4, 6, 6) * 2 - 1
    up = Upscaler(UpscalerConfig(width=8, blocks=1))
    smooth = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    assert torch.allclose(up(x, 2), smooth, atol=1e-6)
    assert up(x, 4).shape == (1, 4, 24, 24)
    assert torch.equal(up(x, 1), x)
