"""Distillation: what the student is to predict, that it learns it, and that turbo is served."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from models.bundle import Bundle, Turbo, load_bundle, read_config
from models.errors import BundleError
from models.evaluate import Painter
from models.train.batches import Batches, Mix
from models.train.checkpoint import Checkpoint
from models.train.commands import main
from models.train.data import load_pictures
from models.train.distil import DistilTrainer, DistilTraining
from models.train.heldout import HeldOut
from models.train.progress import Budget, TrainingState
from tests.models.tiny import build_tiny_bundle

SEGMENTED = DistilTraining(steps=4, substeps=1, guidance_scale=2.0)


@pytest.fixture
def rows(tiny: Bundle) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t where segments start; t; contexts."""
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([999, 249, 749, 999, 499])
    x_t = torch.randn(len(t), 4, 16, 16, generator=generator)
    return x_t, t, tiny.context.encode([f"thing {i}" for i in range(len(t))])


def test_guidance_is_aimed_at_in_one_forward(
    tiny: Bundle, rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    x_t, t, context = rows
    trainer = DistilTrainer(tiny, SEGMENTED, Budget(2, None))
    eps, empty = tiny.denoiser.eps(x_t, t, context), tiny.context.empty.expand_as(context)
    twice = eps + (eps - tiny.denoiser.eps(x_t, t, empty))  # w = 2
    aim = trainer._guidance(x_t, t, context)
    assert torch.allclose(aim, trainer._picture(x_t, twice, t), atol=1e-5)


def test_a_segment_walked_in_one_stride_aims_at_the_guided_picture(
    tiny: Bundle, rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    x_t, t, context = rows
    trainer = DistilTrainer(tiny, SEGMENTED, Budget(2, None))
    guided = trainer._picture(
        x_t, tiny.denoiser.eps(x_t, t, context), t
    )  # which starts as the teacher
    assert torch.allclose(trainer._leaving(x_t, t, context), guided, atol=2e-3)


def test_a_segment_walked_in_more_strides_aims_where_they_end(tiny: Bundle) -> None:
    """From 999 over 874 to 749, by the teacher's own DDIM."""
    trainer = DistilTrainer(tiny, DistilTraining(steps=4, substeps=2), Budget(2, None))
    x_t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    context = tiny.context.encode(["a star"])
    start, between, end = (torch.tensor([t]) for t in (999, 874, 749))
    x = x_t
    for now, then in ((start, between), (between, end)):
        x = trainer._ddim(
            x, trainer._picture(x, tiny.denoiser.eps(x, now, context), now), now, then
        )
    aim = trainer._leaving(x_t, start, context)
    assert torch.allclose(trainer._ddim(x_t, aim, start, end), x, atol=1e-4)


def test_what_is_predicted_reads_as_the_picture_aimed_at(
    tiny: Bundle, rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    x_t, t, _ = rows
    trainer = DistilTrainer(tiny, SEGMENTED, Budget(2, None))
    aim = torch.rand(x_t.shape) * 2 - 1
    v = trainer._as_predicted(aim, x_t, t)
    alpha, sigma = trainer._level(t, x_t)
    assert torch.allclose(alpha * x_t - sigma * v, aim, atol=1e-4)


def test_the_student_learns_guidance_first_and_then_few_steps(folder: Path, tiny: Bundle) -> None:
    """Always the same batch and noise, so that what is learned can be seen in a few updates."""
    batches = Batches(load_pictures(folder, 16, progress=False), HeldOut(), 0, Mix())
    budget = Budget(80, None)
    trainer = DistilTrainer(tiny, DistilTraining(guidance_scale=4.0, learning_rate=2e-3), budget)
    losses: dict[float, list[float]] = {1.0: [], 2.0: []}
    while not budget.done:
        values = trainer.step(batches.draw(0, 8), 0, 1.0)
        losses[values["stage"]].append(values["loss"])
        budget.advance()
    assert len(losses[1.0]) == len(losses[2.0]) == 40
    assert losses[1.0][-1] < 0.5 * losses[1.0][0]
    assert losses[2.0][-1] < 0.7 * losses[2.0][0]


def distil(bundle: Path, folder: Path, *extra: str) -> int:
    run = ["--out", str(bundle), "--data", str(folder), "--steps", "6", "--batch-size", "2"]
    return main(["distil", *run, *extra])


def test_turbo_joins_the_bundle_and_draws_as_a_model_of_its_own(
    folder: Path, tmp_path: Path
) -> None:
    path = build_tiny_bundle(tmp_path / "bundle")
    before = load_bundle(path)
    assert distil(path, folder, "--turbo-steps", "4") == 0
    after, turbo = load_bundle(path), load_bundle(path, preset="turbo")
    assert (after.config.name, turbo.config.name) == ("tiny", "tiny-turbo")
    assert after.config.default_steps == before.config.default_steps
    assert (turbo.config.default_steps, turbo.config.default_guidance_scale) == (4, 1.0)
    assert turbo.config.default_sampler == "ddim"
    weights = [bundle.denoiser.state_dict()["network.head.weight"] for bundle in (before, after)]
    assert torch.equal(*weights)  # the bundle's own denoiser is as it was
    assert Painter(turbo)(["a star"], 0).isfinite().all()
    assert turbo.sha256 != after.sha256  # caches and fingerprints go by it
    assert "turbo.safetensors" in read_config(path).files


def test_a_bundle_without_turbo_says_how_to_make_one(tiny_folder: Path) -> None:
    with pytest.raises(BundleError, match="avocat train distil"):
        load_bundle(tiny_folder, preset="turbo")


def test_a_killed_distillation_goes_on_with_the_same_curve(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = []
    for name, killed_at in (("unbroken", None), ("early", 2), ("late", 5)):
        path = build_tiny_bundle(tmp_path / name)
        if killed_at:
            with monkeypatch.context() as patch:
                patch.setattr(Checkpoint, "due", lambda _: True)
                patch.setattr(Checkpoint, "save", killing(killed_at))
                assert distil(path, folder) == 130
        assert distil(path, folder) == 0
        rows = (path / "distil.jsonl").read_text().splitlines()
        curves.append([json.loads(row)["loss"] for row in rows])
    assert len(curves[0]) == 6
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert curves[2] == pytest.approx(curves[0], rel=1e-3)


def test_turbo_is_taught_anew_by_a_denoiser_that_was_trained_since(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = build_tiny_bundle(tmp_path / "bundle")
    assert distil(path, folder) == 0
    old = (path / "turbo.safetensors").read_bytes()
    other = build_tiny_bundle(tmp_path / "other", seed=1)
    shutil.copytree(other, path, dirs_exist_ok=True)  # with another denoiser, and no turbo
    assert distil(path, folder) == 0
    assert "turbo.checkpoint' is of another denoiser" in capsys.readouterr().err
    assert distil(other, folder) == 0
    assert (path / "turbo.safetensors").read_bytes() != old
    assert (path / "turbo.safetensors").read_bytes() == (other / "turbo.safetensors").read_bytes()


def test_turbo_of_another_denoiser_is_no_start_without_its_checkpoint(
    folder: Path, tmp_path: Path
) -> None:
    path, other = (build_tiny_bundle(tmp_path / name) for name in ("bundle", "other"))
    (path / "turbo.safetensors").write_bytes(b"not even read")
    assert distil(path, folder) == distil(other, folder) == 0
    assert (path / "turbo.safetensors").read_bytes() == (other / "turbo.safetensors").read_bytes()


def test_a_turbo_of_six_steps_is_not_called_one_of_three(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = build_tiny_bundle(tmp_path / "bundle")
    assert distil(path, folder) == 0
    assert distil(path, folder, "--turbo-steps", "3") == 1
    assert "of a run with --turbo-steps 6, not 3" in capsys.readouterr().err
    assert read_config(path).turbo == Turbo(steps=6)


def test_a_kill_between_weights_and_their_hash_is_mended_by_the_same_command(
    folder: Path, tmp_path: Path
) -> None:
    path = build_tiny_bundle(tmp_path / "bundle", turbo=True)
    (path / "turbo.safetensors").write_bytes(
        (path / "denoiser.safetensors").read_bytes()
    )  # of another hash than bundle.json says
    with pytest.raises(BundleError, match=r"turbo.safetensors is damaged"):
        load_bundle(path)
    assert distil(path, folder) == 0
    assert load_bundle(path, preset="turbo").config.default_steps == 6


def killing(step: int) -> object:
    """A `Checkpoint.save` that is interrupted before it writes the state of `step`."""
    save = Checkpoint.save

    def save_or_die(self: Checkpoint, progress: TrainingState) -> None:
        if progress.step == step:
            raise KeyboardInterrupt
        save(self, progress)

    return save_or_die
