"""Large pictures of latent models are decoded in tiles, and shapes advance side by side."""

from pathlib import Path

import pytest
import torch

from models.loading import load_model
from models.stable_diffusion.loading import import_folder
from tests.models.tiny_diffusers import build_pipeline, reference
from tests.worker.test_imported import drawn, row, theirs
from worker.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_large_pictures_equal_the_tiled_reference(tmp_path: Path, family: str) -> None:
    source = build_pipeline(tmp_path / family, family)
    import_folder(source, tmp_path / "m", family)
    model, pipeline = load_model(tmp_path / "m"), reference(source)
    sizes = {"listed": (96, 64), "free": (88, 72), "small": (72, 56), "odd": (104, 16)}
    specs = [row(model, job, size=size, steps=3) for job, size in sizes.items()]
    found = drawn(model, specs)
    whole = {job: theirs(pipeline, size=size, steps=3) for job, size in sizes.items()}
    pipeline.vae.enable_tiling()
    tiled = {job: theirs(pipeline, size=size, steps=3) for job, size in sizes.items()}
    for job, large in {"listed": True, "free": True, "small": False, "odd": False}.items():
        expected, other = (tiled, whole) if large else (whole, tiled)
        assert found[job].shape == expected[job].shape
        assert float((found[job] - expected[job]).abs().max()) <= 1e-3, job
        assert float((found[job] - other[job]).abs().max()) > 1e-3, job
    alone = drawn(model, [specs[1]])
    assert torch.equal(alone["free"], found["free"])


def test_no_shape_is_passed_over(tmp_path: Path) -> None:
    """Short jobs of one shape come all the time; that of another ends all the same."""
    source = build_pipeline(tmp_path / "sd1", "sd1")
    import_folder(source, tmp_path / "m", "sd1")
    model = load_model(tmp_path / "m")
    engine = Engine(model, slots=6, micro_batch=2)
    engine.admit([row(model, "other", size=(88, 72), steps=4)])
    for step in range(200):
        if engine.free:
            engine.admit([row(model, f"{step}", size=(64, 64), steps=1)])
        if any(one.job == "other" for one in engine.step().finished):
            break
    assert 4 < step < 100
