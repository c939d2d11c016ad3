"""docs/train-bundle.sh: every part, in calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.bundle import load_bundle
from models.judge import Judge

ROOT = Path(__file__).resolve().parents[3]


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
    command = [str(ROOT / "docs" / "train-bundle.sh"), str(folder), str(out)]
    for _ in range(2):  # the second time all parts are passed over
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stderr
    bundle = load_bundle(out, preset="turbo")
    assert bundle.config.name == "emoji-turbo"
    assert bundle.sizes[-1] == (256, 256)
    assert Judge.from_folder(Path(f"{out}-judge")).encoder.width > 0
