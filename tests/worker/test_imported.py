"""Imported models in the engine, against diffusers' own pipelines with the same noise."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.loading import load_model
from models.model import Model
from models.samplers import SAMPLERS
from models.stable_diffusion.loading import import_folder
from models.stable_diffusion.settle import Wishes
from tests.models.test_reference_layouts import scheduler_of
from tests.models.tiny_diffusers import FAMILIES, build_pipeline, reference
from tests.worker.test_engine import drain
from worker.capacity import streams
from worker.engine import Engine
from worker.rows import RowSpec

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT, NEGATIVE = "a red apple on a table, oil painting", "blurry, low quality"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@cache
def _built(folders: Path, family: str) -> tuple[Model, Any]:
    source = build_pipeline(folders / family, family)
    import_folder(source, folders / "models" / family, family)
    torch.set_num_threads(1)
    return load_model(folders / "models" / family), reference(source)


def row(model: Model, job: str, **changes: Any) -> RowSpec:
    asked = {
        "prompt": PROMPT, "negative": NEGATIVE, "scale": 5.0, "size": model.sizes[0], "seed": 3,
        "sampler": "ddim", "steps": 4, **changes,
    }  # fmt: skip
    size = asked["size"]
    adapters = asked.get("adapters")
    given = model.context.conditioning(
        asked["prompt"], asked["negative"], asked["scale"], size, adapters
    )
    return RowSpec(
        job=job, index=0, seed=asked["seed"], sampler=asked["sampler"], steps=asked["steps"],
        guidance_scale=given.guidance_scale, guidance_interval=(0.0, 1.0), context=given.context,
        unconditional=given.unconditional, shape=model.shape(size), adapters=adapters,
    )  # fmt: skip


def drawn(model: Model, specs: list[RowSpec], micro_batch: int = 2) -> dict[str, Tensor]:
    engine = Engine(model, slots=len(specs), micro_batch=micro_batch)
    engine.admit(specs)
    scale = 8
    found = {}
    for name, x in drain(engine).items():
        size = (x.shape[2] * scale, x.shape[1] * scale)
        found[name.split("/")[0]] = (model.develop(x, size).clamp(-1, 1) + 1) / 2
    return found


def theirs(pipeline: Any, **changes: Any) -> Tensor:
    asked = {
        "prompt": PROMPT, "negative": NEGATIVE, "scale": 5.0, "size": (64, 64), "seed": 3,
        "sampler": "ddim", "steps": 4, **changes,
    }  # fmt: skip
    pipeline.scheduler = scheduler_of(asked["sampler"], _original(pipeline))
    width, height = asked["size"]
    out = pipeline(
        asked["prompt"], negative_prompt=asked["negative"], guidance_scale=asked["scale"],
        num_inference_steps=asked["steps"], width=width, height=height, output_type="pt",
        generator=[torch.Generator().manual_seed(asked["seed"])], clip_skip=asked.get("clip_skip"),
    )  # fmt: skip
    return out.images[0]


def _original(pipeline: Any) -> dict[str, Any]:
    """The configuration that the folder came with, also after another scheduler was set."""
    if not hasattr(pipeline, "first_scheduler"):
        pipeline.first_scheduler = pipeline.scheduler.config
    return pipeline.first_scheduler


@pytest.mark.parametrize(
    ("family", "scale", "expected"),
    [
        ("sd1", None, 2),
        ("sd1", 1.0, 1),
        ("turbo", None, 1),
        ("turbo", 2.0, 2),
        ("lcm", None, 1),  # its scale is not 1, and is what the network itself is told
    ],
)
def test_a_lone_picture_keeps_all_cores_busy_as_the_model_is_usually_drawn(
    family: str, scale: float | None, expected: int, folders: Path, tmp_path: Path
) -> None:
    """Guided: one call on half of them for each context; else each call on all."""
    source = build_pipeline(tmp_path / family, family)
    import_folder(source, tmp_path / "model", family, Wishes(guidance_scale=scale))
    assert streams(load_model(tmp_path / "model"), micro_batch=1, threads=8) == expected


LONG = ", ".join(f"a {colour} apple on a {colour} table" for colour in ("red", "blue") * 8)


def test_long_prompts_are_read_in_chunks_and_both_sides_get_as_many(folders: Path) -> None:
    model, pipeline = _built(folders, "sdxl")
    asked = row(model, "long", prompt=LONG, steps=4, sampler="euler")
    count = len(asked.context[0]) // 77
    assert count == -(-len(pipeline.tokenizer(LONG, add_special_tokens=False).input_ids) // 75) > 1
    assert asked.unconditional[0].shape == asked.context[0].shape
    pipeline.scheduler = scheduler_of("euler", _original(pipeline))
    [latents] = pipeline(
        prompt_embeds=asked.context[0][None], pooled_prompt_embeds=asked.context[1][None],
        negative_prompt_embeds=asked.unconditional[0][None],
        negative_pooled_prompt_embeds=asked.unconditional[1][None], guidance_scale=5.0,
        num_inference_steps=4, width=64, height=64, output_type="pt",
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    found = drawn(model, [asked, row(model, "short", seed=4)])
    assert float((found["long"] - latents).abs().max()) <= 1e-3
    # The first chunk is what a prompt of its tokens alone gives.
    first = pipeline.tokenizer(LONG, truncation=True, max_length=77).input_ids
    assert model.context.towers[0].chunks(LONG)[0] == first  # type: ignore[attr-defined]


def test_layers_of_the_text_encoder_are_left_out_of_the_prompt_alone(
    folders: Path, tmp_path: Path
) -> None:
    _, pipeline = _built(folders, "sdxl")
    import_folder(folders / "sdxl", tmp_path / "skips", "skips", Wishes(clip_skip=1))
    model = load_model(tmp_path / "skips")
    case = {"sampler": "ddim", "steps": 3}
    expected = theirs(pipeline, **case, clip_skip=1)
    found = drawn(model, [row(model, "0", **case)])["0"]
    assert float((found - expected).abs().max()) <= 1e-3
    assert float((found - theirs(pipeline, **case)).abs().max()) > 1e-3


CASES: list[dict[str, Any]] = [
    {"sampler": sampler, "seed": 10 + i, "steps": 3 + i % 3} for i, sampler in enumerate(SAMPLERS)
] + [
    {"size": (80, 48), "sampler": "euler", "negative": None, "seed": 50},
    {"size": (48, 80), "sampler": "dpmpp_2m", "negative": "", "scale": 9.0, "seed": 51},
    {"scale": 1.0, "sampler": "euler_ancestral", "prompt": "", "seed": 52},
    {"scale": 0.0, "sampler": "lcm", "prompt": "🥑 ÅÄÖ   日本", "seed": 53},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sampler_alone_and_mixed_equals_the_reference(folders: Path, family: str) -> None:
    model, pipeline = _built(folders, family)
    specs = [row(model, str(i), **case) for i, case in enumerate(CASES)]
    mixed = drawn(model, specs)
    for i, case in enumerate(CASES):
        expected = theirs(pipeline, **case)
        assert mixed[str(i)].shape == expected.shape
        assert float((mixed[str(i)] - expected).abs().max()) <= 1e-3, case
        assert torch.equal(drawn(model, [specs[i]])[str(i)], mixed[str(i)]), case
