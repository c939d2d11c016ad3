"""The peers of the Stable Diffusion benchmark draw the same jobs, each in its own way."""

import random
from collections.abc import Callable

import pytest
import torch

from benchmarks import sd_pipeline, stable_diffusion
from benchmarks.arrivals import Arrival
from benchmarks.sd_pipeline import Shape
from benchmarks.stable_diffusion import Studio, draw, draw_in_batches, draw_one_by_one, mixed
from benchmarks.subject import Plan
from worker.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore")
SMALLEST = Shape((16, 16, 16, 16), (8, 8, 8, 8), 32, 4, 4, 8)


@pytest.fixture(scope="module")
def studio(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stable_diffusion, "SMALL", SMALLEST)
        folder = tmp_path_factory.mktemp("sd")
        return stable_diffusion.studio(plan.settings, folder, torch.device("cpu"), 1)


def jobs(*at_s: float) -> list[Arrival]:
    return [Arrival(at, mixed(random.Random(i))) for i, at in enumerate(at_s)]


@torch.inference_mode()
@pytest.mark.parametrize("serve", [draw, draw_one_by_one, draw_in_batches])
def test_every_side_ends_every_job(studio: Studio, serve: Callable[..., list[float]]) -> None:
    asked = jobs(0.0, 0.0, 0.3)
    found = serve(studio, asked)
    assert len(found) == 3
    assert min(found) > 0


@torch.inference_mode()
def test_a_static_batch_leaves_as_one(studio: Studio) -> None:
    first, second, late = draw_in_batches(studio, jobs(0.0, 0.0, 0.3))
    assert first == second
    assert late > 0


@torch.inference_mode()
def test_both_draw_the_same_picture(studio: Studio) -> None:
    asked = {"sampler": "ddim", "steps": 10, "guidance_scale": 5.0}
    request = mixed(random.Random(0)).model_copy(update=asked)
    engine: Engine = studio.engine(1)
    engine.admit([studio.row(request, "0")])
    done = []
    while not engine.idle:
        done += engine.step().finished
    mine = studio.model.develop(done[0].picture, studio.model.sizes[0])
    theirs = stable_diffusion.call(studio.pipeline, request, "pt")
    assert float(((mine.clamp(-1, 1) + 1) / 2 - theirs).abs().max()) <= 1e-3


def test_the_scaled_shape_is_the_architecture_of_sd_15() -> None:
    with torch.device("meta"):
        whole = sd_pipeline._parts(sd_pipeline.FULL)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in whole.items()}
    assert counts["unet"] == 859_520_964  # of the public one
    assert counts["vae"] == 83_653_863
    assert counts["text_encoder"] == 123_060_480


@torch.inference_mode()
def test_it_gives_its_lines(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stable_diffusion, "FIRST_JOBS", 1)
    found = stable_diffusion.lines(studio, 0.1, (2.0, 1.5))
    limits = [2.0, 1.5, None, 2.0, 1.5, None, None]
    assert [least for _, _, _, least in found] == limits
    assert all(len(rounds) == 1 and rounds[0] > 0 for _, rounds, _, _ in found)
