"""What a run goes on from, what it refuses to, and that nothing damaged is ever saved."""

import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.train.denoiser import DenoiserTrainer
from tests.models.train.runs import SMALL, SMALL_CLIP, losses, train


def test_a_damaged_checkpoint_says_what_to_do(
    folder: Path, clip_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clip_only / "denoiser.checkpoint").write_bytes(b"cut short")
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 1
    assert "denoiser.checkpoint' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--parameterisation", "eps"], "with --parameterisation v, not eps"),
        (["--schedule", "linear"], "with --schedule cosine, not linear"),
        (["--image-size", "48"], "with --image-size 24, not 48"),
        (["--seed", "3"], "with --seed 0, not 3"),
        (["--batch-size", "5"], "with --batch-size 4, not 5"),
    ],
)
def test_a_run_is_not_called_what_it_was_not(
    folder: Path,
    clip_only: Path,
    options: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 0
    before = (clip_only / "bundle.json").read_text()
    assert train("denoiser", folder, clip_only, 1, *SMALL, *options) == 1
    assert sentence in capsys.readouterr().err
    assert (clip_only / "bundle.json").read_text() == before


def test_a_denoiser_is_not_resumed_with_another_clip(
    folder: Path, clip_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 0
    assert train("clip", folder, clip_only, 3, *SMALL_CLIP) == 0
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 1
    assert "of a run with a CLIP of sha256" in capsys.readouterr().err


def test_a_checkpoint_of_before_runs_were_named_is_resumed(folder: Path, clip_only: Path) -> None:
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 0
    state = torch.load(clip_only / "denoiser.checkpoint", weights_only=True)
    del state["of"]
    torch.save(state, clip_only / "denoiser.checkpoint")
    assert train("denoiser", folder, clip_only, 2, *SMALL) == 0
    assert len(losses(clip_only)) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--width", "24"], ") there and ("),
        (["--multipliers", "1", "2", "2"], "it has "),
        ([], "is damaged"),
    ],
)
def test_weights_that_do_not_fit_are_no_start(
    folder: Path,
    clip_only: Path,
    options: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 0
    (clip_only / "denoiser.checkpoint").unlink()
    if not options:
        (clip_only / "denoiser.safetensors").write_bytes(b"cut short")
    assert train("denoiser", folder, clip_only, 2, *SMALL, *options) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "denoiser.safetensors' " in said
    assert sentence in said


def test_two_runs_are_not_made_in_one_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor of two parts: what ends later would write `bundle.json` as it was before the other."""
    holds = "import sys, pathlib, models.train.alone as a\n"
    holds += "with a.alone(pathlib.Path(sys.argv[1])): print(flush=True), input()"
    other = subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    for part, options in (("clip", SMALL_CLIP), ("denoiser", SMALL), ("upscaler", ())):
        assert train(part, folder, tmp_path, 1, *options) == 1
        assert "another `avocat train` is at work" in capsys.readouterr().err
    other.kill()
    other.communicate()
    assert train("clip", folder, tmp_path, 1, *SMALL_CLIP) == 0


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_what_is_not_finite_is_never_saved(
    folder: Path,
    clip_only: Path,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 0
    kept = {file: file.read_bytes() for file in clip_only.glob("denoiser.[cs]*")}
    assert len(kept) == 2

    def step(self: DenoiserTrainer, *_: object) -> dict[str, float]:
        if broken == "weights":
            torch.nn.init.constant_(next(self.network.parameters()), math.nan)
        return {"loss": math.nan if broken == "loss" else 1.0}

    monkeypatch.setattr(DenoiserTrainer, "step", step)
    assert train("denoiser", folder, clip_only, 2, *SMALL) == 1
    said = capsys.readouterr().err
    assert "not finite" in said
    assert all(file.read_bytes() == before for file, before in kept.items())


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(
    folder: Path, clip_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 0
    before = (clip_only / "denoiser.checkpoint").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        assert train("denoiser", folder, clip_only, 2, *SMALL) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "denoiser.checkpoint' cannot be written: " in capsys.readouterr().err
    assert (clip_only / "denoiser.checkpoint").read_bytes() == before
    assert not list(clip_only.rglob("*.partial"))


def test_a_folder_that_cannot_be_made_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert train("clip", folder, tmp_path / "file" / "out", 1, *SMALL_CLIP) == 1
    assert "cannot be written: Not a directory" in capsys.readouterr().err
