"""Pictures that start from others, against diffusers' own pipelines with the same noise."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from models.model import Model
from models.samplers import SAMPLERS
from tests.models.test_reference_layouts import scheduler_of
from tests.models.tiny_diffusers import FAMILIES, diffusers
from tests.worker.test_imported import _built, _original, drawn, folders, row  # noqa: F401
from worker.rows import RowSpec

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT, NEGATIVE = "a red apple on a table, oil painting", "blurry, low quality"


@cache
def picture(size: tuple[int, int]) -> Image.Image:
    x = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(x[None], size=size[::-1], mode="bicubic")[0]
    pixels = (smooth.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous()
    return Image.frombytes("RGB", size, pixels.numpy().tobytes())


@cache
def mask(size: tuple[int, int]) -> Image.Image:
    shown = Image.new("L", size)
    shown.paste(255, (size[0] // 4, 0, size[0], size[1] // 2 + 3))
    return shown


def edit(model: Model, job: str, *, masked: bool, strength: float, **changes: Any) -> RowSpec:
    one = row(model, job, **changes)
    size = changes.get("size", model.sizes[0])
    origin = model.take_in(picture(size), mask(size) if masked else None, size)
    skipped = one.steps - int(one.steps * strength)
    return RowSpec(**{**vars(one), "origin": origin, "skipped": skipped})


def theirs(family: str, pipeline: Any, *, masked: bool, strength: float, **changes: Any) -> Tensor:
    asked = {
        "prompt": PROMPT, "negative": NEGATIVE, "scale": 5.0, "size": (64, 64), "seed": 3,
        "sampler": "ddim", "steps": 4, **changes,
    }  # fmt: skip
    xl = "XL" if family in ("sdxl", "turbo") else ""
    kind = f"StableDiffusion{xl}{'Inpaint' if masked else 'Img2Img'}Pipeline"
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    if not xl:
        none = {"safety_checker": None, "feature_extractor": None}
        parts |= {**none, "requires_safety_checker": False}
    parts["scheduler"] = scheduler_of(asked["sampler"], _original(pipeline))
    other = getattr(diffusers, kind)(**parts)
    other.set_progress_bar_config(disable=True)
    width, height = asked["size"]
    more: dict[str, Any] = {}
    if masked:
        # Given, so that nothing is drawn for what a network of four channels does not look at.
        more = {"mask_image": mask(asked["size"]), "width": width, "height": height,
                "masked_image_latents": torch.zeros(1, 4, height // 8, width // 8)}  # fmt: skip
    return other(
        asked["prompt"], negative_prompt=asked["negative"], guidance_scale=asked["scale"],
        image=picture(asked["size"]), strength=strength, num_inference_steps=asked["steps"],
        generator=[torch.Generator().manual_seed(asked["seed"])], output_type="pt", **more,
    ).images[0]  # fmt: skip


STRENGTHS = (0.5, 0.75, 1.0)
CASES: list[dict[str, Any]] = [
    {"sampler": sampler, "seed": 10 + i, "steps": 4 + i % 3, "masked": masked,
     "strength": STRENGTHS[(i + masked) % 3]}
    for i, sampler in enumerate(SAMPLERS) for masked in (False, True)
] + [
    {"size": (80, 48), "sampler": "euler", "negative": None, "seed": 50, "masked": True,
     "strength": 0.6},
    {"size": (48, 80), "sampler": "dpmpp_2m", "scale": 1.0, "seed": 51, "masked": False,
     "strength": 0.8, "steps": 7},
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sampler_alone_and_mixed_equals_the_reference(
    folders: Path,  # noqa: F811 - a fixture
    family: str,
) -> None:
    model, pipeline = _built(folders, family)
    specs = [edit(model, str(i), **case) for i, case in enumerate(CASES)]
    without = row(model, "without", sampler="euler_ancestral", seed=99)
    mixed = drawn(model, [*specs, without])
    for i, case in enumerate(CASES):
        expected = theirs(family, pipeline, **case)
        assert mixed[str(i)].shape == expected.shape
        assert float((mixed[str(i)] - expected).abs().max()) <= 1e-3, case
        assert torch.equal(drawn(model, [specs[i]])[str(i)], mixed[str(i)]), case
    assert torch.equal(drawn(model, [without])["without"], mixed["without"])
