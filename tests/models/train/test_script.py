"""docs/train-bundle.sh: every part, in calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.bundle import load_bundle
from models.judge import Judge

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = str(ROOT / "docs" / "train-bundle.sh")


@pytest.mark.parametrize("words", [[], ["in"], ["in", "out", "0.5"], ["in", "out", "9", "x"]])
def test_wrong_words_are_answered_with_the_usage(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[1:]) == (2, [])
    assert done.stderr.startswith(f"usage: {SCRIPT} PICTURES OUT [MINUTES")
    assert list(tmp_path.iterdir()) == []


def test_parts_that_are_done_are_named(tmp_path: Path) -> None:
    parts = ["clip", "denoiser", "upscaler", "distil", "judge"]
    for part in parts:
        (tmp_path / f".{part}.done").touch()
    done = subprocess.run([SCRIPT, "in", str(tmp_path)], capture_output=True, text=True, check=True)
    assert [line.split(",")[0] for line in done.stderr.splitlines()] == [
        f"{part} is done" for part in parts
    ]


@pytest.mark.load
def test_the_script_makes_a_bundle_with_every_part(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "mine"
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "LENGTH": "--steps 2",
        "BATCH": "4",
        "TEACHER": "none",
    }
    command = [SCRIPT, str(folder), str(out)]
    for _ in range(2):  # the second time all parts are passed over
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stderr
    bundle = load_bundle(out, preset="turbo")
    assert bundle.config.name == "emoji-turbo"
    assert bundle.sizes[-1] == (256, 256)
    assert Judge.from_folder(Path(f"{out}-judge")).encoder.width > 0
