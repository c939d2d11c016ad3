"""Training for real on a made-up folder: every part, resumed, and served at the end."""

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.bundle import load_bundle, read_config
from models.schedule import noise_schedule
from models.train.arguments import parser
from models.train.checkpoint import Checkpoint
from models.train.commands import _batches
from models.train.denoiser import loss_weight
from models.train.ema import Ema
from models.train.progress import Budget
from tests.models.train.runs import SMALL, SMALL_CLIP, losses, train


def test_all_parts_make_a_bundle_that_loads(folder: Path, clip_only: Path) -> None:
    assert train("denoiser", folder, clip_only, 3, *SMALL, "--name", "mine") == 0
    assert train("upscaler", folder, clip_only, 2) == 0
    bundle = load_bundle(clip_only)
    assert bundle.config.name == "mine"
    assert bundle.config.upscales == [1, 2, 4]
    assert bundle.config.training["denoiser"]["pictures_seen"] == 12
    assert (clip_only / "grid.png").exists()


def test_an_upscaler_does_not_make_a_damaged_bundle_pass_for_whole(
    folder: Path, clip_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hashes are written anew with it: a CLIP trained on since, or a file that was bent."""
    assert train("denoiser", folder, clip_only, 2, *SMALL) == 0
    assert train("upscaler", folder, clip_only, 2) == 0
    assert train("clip", folder, clip_only, 3, *SMALL_CLIP) == 0
    assert train("upscaler", folder, clip_only, 3) == 1
    assert "clip/open_clip_model.safetensors is damaged" in capsys.readouterr().err
    (clip_only / "denoiser.checkpoint").unlink()
    assert train("denoiser", folder, clip_only, 2, *SMALL) == 0
    (clip_only / "upscaler.safetensors").write_bytes(b"")  # killed before its hash was written
    assert train("upscaler", folder, clip_only, 3) == 0
    load_bundle(clip_only)


def test_a_bundle_whose_clip_is_trained_on_is_warned_of(
    folder: Path, clip_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "cannot be served until its denoiser has followed"
    assert train("clip", folder, clip_only, 3, *SMALL_CLIP) == 0
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 0
    assert sentence not in capsys.readouterr().err
    assert train("clip", folder, clip_only, 4, *SMALL_CLIP) == 0
    assert sentence in capsys.readouterr().err


def test_a_resumed_run_has_the_curve_of_an_unbroken_one(
    folder: Path, clip_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("denoiser", folder, clip_only, 6, *SMALL) == 0
    unbroken = losses(clip_only)
    for name in ("denoiser.jsonl", "denoiser.checkpoint", "denoiser.safetensors"):
        (clip_only / name).unlink()
    killed = Budget.advance

    def kill_at_three(self: Budget, pictures: int = 0) -> int:
        step = killed(self, pictures)
        if step == 4:
            raise KeyboardInterrupt
        return step

    monkeypatch.setattr(Checkpoint, "due", lambda _: True)
    monkeypatch.setattr(Budget, "advance", kill_at_three)
    assert train("denoiser", folder, clip_only, 6, *SMALL) == 130
    monkeypatch.undo()
    assert train("denoiser", folder, clip_only, 6, *SMALL) == 0
    assert losses(clip_only) == pytest.approx(unbroken, rel=1e-2)


def test_without_a_checkpoint_a_run_goes_on_from_the_saved_weights(
    folder: Path, clip_only: Path
) -> None:
    for steps in (30, 1):
        (clip_only / "denoiser.checkpoint").unlink(missing_ok=True)
        assert train("denoiser", folder, clip_only, steps, *SMALL, "--learning-rate", "0.01") == 0
        if steps == 30:
            trained = load_file(clip_only / "denoiser.safetensors")
    again = load_file(clip_only / "denoiser.safetensors")
    assert all(torch.allclose(again[k], trained[k], atol=0.02) for k in trained)
    assert float(trained["head.weight"].abs().max()) > 0.01  # which starts at zero


def test_heldout_beside_the_pictures_is_read_unless_another_is_named(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "heldout.txt").write_text("prompt\ta blue disc\n")
    other = tmp_path / "other.txt"
    other.write_text("prompt\ta red disc\n")
    for options, word in (([], "blue"), (["--heldout", str(other)], "red")):
        common = ["--data", str(folder), "--out", str(tmp_path / "out"), "--steps", "1"]
        args = parser().parse_args(["clip", *common, *options])
        assert _batches(args, 24).heldout.prompts == (frozenset({word, "disc"}),)


def test_without_a_clip_the_denoiser_says_what_to_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("denoiser", folder, tmp_path / "none", 1, *SMALL) == 1
    assert "run `avocat train clip` first" in capsys.readouterr().err


def test_an_empty_folder_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert train("clip", empty, tmp_path / "out", 1) == 1
    assert "holds no captioned picture" in capsys.readouterr().err


def test_skipped_samples_are_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "red_disc.png").write_bytes(b"broken")
    train("clip", folder, tmp_path / "out", 1, *SMALL_CLIP)
    assert "skipped 1 samples, kept 5" in capsys.readouterr().err


def test_min_snr_weights_follow_the_paper() -> None:
    schedule = noise_schedule()
    snr = schedule.snr.float()
    low, high = 10, 900  # nearly clean; nearly noise
    assert float(loss_weight(schedule, "eps", 5.0)[low]) == pytest.approx(
        5 / float(snr[low]), rel=1e-5
    )
    assert float(loss_weight(schedule, "eps", 5.0)[high]) == pytest.approx(1.0)
    assert float(loss_weight(schedule, "denoised", 5.0)[low]) == 5.0
    v = loss_weight(schedule, "v", 5.0)
    assert float(v[high]) == pytest.approx(float(snr[high] / (snr[high] + 1)), rel=1e-5)


def test_a_floor_keeps_the_noisy_end_in_training() -> None:
    schedule = noise_schedule()
    plain, floored = (loss_weight(schedule, "v", 5.0, floor) for floor in (0.0, 0.25))
    assert float(plain[-1]) < 1e-3
    assert float(floored[-1]) == pytest.approx(0.25, abs=1e-3)
    assert float(floored[300] / plain[300]) < 1.1  # where the SNR is 3, little changes
    noise = loss_weight(schedule, "eps", 5.0, 0.25)  # whose error needs no raising there
    assert float(noise.max()) == pytest.approx(1.0)


@pytest.mark.parametrize("length", [200, 2000])
def test_the_average_spans_the_same_share_of_any_run(length: int) -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 100.0)  # a start to be forgotten
    ema = Ema(module)
    for step in range(length):
        torch.nn.init.constant_(module.weight, (step + 1) / length)
        ema.update(module, step)
    # A ramp weighted by t^γ has the mean (γ + 1) / (γ + 2).
    assert float(ema.average.weight) == pytest.approx(7.94 / 8.94, rel=0.01)


def test_the_learning_rate_warms_up_and_falls() -> None:
    budget = Budget(steps=1000, minutes=None, warmup=100)
    scales = []
    for _ in range(1000):
        scales.append(budget.learning_rate_scale())
        budget.advance()
    assert scales[0] == pytest.approx(0.01, rel=0.01)
    assert max(scales) == pytest.approx(
        0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 0.099)), rel=0.01
    )
    assert scales[-1] == pytest.approx(0.05, abs=0.001)
    assert budget.done


def test_a_budget_needs_one_length() -> None:
    with pytest.raises(ValueError, match="either steps or minutes"):
        Budget(None, None)


def test_config_keeps_the_clip_reference(folder: Path, clip_only: Path) -> None:
    train("denoiser", folder, clip_only, 1, *SMALL)
    assert read_config(clip_only).clip.model == "local-dir:clip"


def test_two_processes_make_one_bundle(folder: Path, clip_only: Path) -> None:
    """torchrun on the CPU: gradients through gloo, one writer, one metrics line per step."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    run = ["--data", str(folder), "--out", str(clip_only), "--steps", "3", "--batch-size", "4"]
    command = [sys.executable, "-m", *launcher, "models.train", "denoiser", *run, *SMALL]
    done = subprocess.run(
        [*command, "--threads", "1"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(clip_only)) == 3
    provenance = load_bundle(clip_only).config.training["denoiser"]
    assert provenance["pictures_seen"] == 24
    assert provenance["batch_size"] == 8


def test_torchrun_is_refused_where_it_would_train_two_models(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert train("clip", folder, tmp_path / "out", 1, *SMALL_CLIP) == 1
    assert "run it without torchrun" in capsys.readouterr().err


def test_a_call_may_end_before_its_run_and_the_next_goes_on(
    folder: Path, clip_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--call-minutes", "0.0001"]
    codes = [train("denoiser", folder, clip_only, 3, *SMALL, *short) for _ in range(3)]
    assert codes == [75, 75, 0]
    assert "paused after 33% of the run, 1 steps" in capsys.readouterr().err
    assert len(losses(clip_only)) == 3
    assert load_bundle(clip_only).config.training["denoiser"]["steps"] == 3


def test_a_line_that_a_kill_cut_short_is_dropped(folder: Path, clip_only: Path) -> None:
    assert train("denoiser", folder, clip_only, 2, *SMALL) == 0
    with (clip_only / "denoiser.jsonl").open("a") as file:
        file.write('{"step": 3, "seco')
    assert train("denoiser", folder, clip_only, 3, *SMALL) == 0
    assert len(losses(clip_only)) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--image-size", "25"], "image_size is 25"),
        (["--width", "20"], "--width"),
        (["--favour", "cubist"], "--favour names styles that no caption has: cubist"),
        (["--heldout", "none.txt"], "--heldout names no file"),
        (["--parameterisation", "eps", "--zero-terminal-snr"], "v does"),
        (["--width", "24"], "is of a run with other sizes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    folder: Path,
    clip_only: Path,
    options: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if sentence.startswith("is of"):
        assert train("denoiser", folder, clip_only, 1, *SMALL) == 0
    assert train("denoiser", folder, clip_only, 2, *SMALL, *options) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("avocat train: ")
    assert sentence in said


def test_training_again_keeps_what_else_the_bundle_says(folder: Path, clip_only: Path) -> None:
    (folder / "red_disc.json").write_text('{"name": "red disc", "style": "fluent-3d"}')
    assert train("denoiser", folder, clip_only, 1, *SMALL) == 0
    assert train("upscaler", folder, clip_only, 1) == 0
    (clip_only / "denoiser.checkpoint").unlink()
    assert train("denoiser", folder, clip_only, 2, *SMALL, "--schedule", "linear") == 0
    again = load_bundle(clip_only)
    assert again.config.upscales == [1, 2, 4]
    assert set(again.config.training) == {"denoiser", "upscaler"}
    assert again.config.noise_schedule.kind == "linear"
    assert again.config.styles == ("flat", "fluent 3d", "3d")  # what its captions call it


@pytest.mark.load
def test_a_killed_process_resumes_with_the_same_curve(folder: Path, clip_only: Path) -> None:
    """SIGKILL, twice, as soon as the metrics have grown; no checkpoint is younger than the kill."""
    run = ["--data", str(folder), "--out", str(clip_only), "--steps", "60", "--batch-size", "4"]
    code = "import sys, models.train.checkpoint as c; c.Checkpoint.due = lambda _: True; "
    code += "from models.train.commands import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "denoiser", *run, *SMALL, "--threads", "1"]
    metrics = clip_only / "denoiser.jsonl"
    for least in (5, 25):
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not metrics.exists() or len(metrics.read_text().splitlines()) < least:
            assert time.monotonic() < until
            time.sleep(0.005)
        child.kill()
        child.wait()
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    resumed = losses(clip_only)
    for name in ("denoiser.jsonl", "denoiser.checkpoint", "denoiser.safetensors"):
        (clip_only / name).unlink()
    assert train("denoiser", folder, clip_only, 60, *SMALL, "--threads", "1") == 0
    assert resumed == pytest.approx(losses(clip_only), rel=1e-2)
