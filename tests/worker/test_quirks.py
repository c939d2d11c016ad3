"""Habits of public folders that change pictures, against diffusers' own reading of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.loading import load_model
from models.model import Model
from models.samplers import SAMPLERS
from models.stable_diffusion.loading import import_folder
from tests.models.tiny_diffusers import build_pipeline, reference
from tests.worker.test_imported import drawn, row, theirs

pytestmark = pytest.mark.filterwarnings("ignore")
STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.1, 0.9, 1.0, 1.3]}
# By family: what each file says otherwise.
HABITS: dict[str, tuple[str, dict[str, dict[str, Any]], dict[str, Any]]] = {
    "statistics of latents": ("sdxl", {"vae/config.json": STATISTICS}, {}),
    "empty negative prompts": (
        "sdxl",
        {"model_index.json": {"force_zeros_for_empty_prompt": False}},
        {"negative": None},
    ),
    "null components": (
        "sd1",
        {
            "model_index.json": {"image_encoder": [None, None]},
            "unet/config.json": {"upcast_attention": True},
            "vae/config.json": {"shift_factor": None, "scaling_factor": 0.2},
            "scheduler/scheduler_config.json": {"set_alpha_to_one": True, "skip_prk_steps": None},
        },
        {},
    ),
    "zero terminal SNR": (
        "sd2",
        {
            "scheduler/scheduler_config.json": {
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            }
        },
        {},
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_pictures_equal_the_reference(tmp_path: Path, habit: str) -> None:
    family, files, asked = HABITS[habit]
    source = build_pipeline(tmp_path / "source", family)
    for name, changes in files.items():
        entry = json.loads((source / name).read_text())
        assert entry.items() != (entry | changes).items()
        (source / name).write_text(json.dumps(entry | changes))
    import_folder(source, tmp_path / "m", "mine")
    model, pipeline = load_model(tmp_path / "m"), reference(source)
    found = drawn(model, [row(model, "0", steps=3, **asked)])["0"]
    assert float((found - theirs(pipeline, steps=3, **asked)).abs().max()) <= 1e-3


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_equals_the_reference_at_zero_terminal_snr(
    terminal: tuple[Model, Any], sampler: str, steps: int
) -> None:
    """Where those that do not divide by what is left of the picture have nothing left of it."""
    model, pipeline = terminal
    found = drawn(model, [row(model, "0", steps=steps, sampler=sampler)])["0"]
    expected = theirs(pipeline, steps=steps, sampler=sampler)
    assert float((found - expected).abs().max()) <= 1e-3


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any]:
    at = tmp_path_factory.mktemp("terminal")
    family, files, _ = HABITS["zero terminal SNR"]
    source = build_pipeline(at / "source", family)
    [(name, changes)] = files.items()
    (source / name).write_text(json.dumps(json.loads((source / name).read_text()) | changes))
    import_folder(source, at / "m", "mine")
    return load_model(at / "m"), reference(source)
