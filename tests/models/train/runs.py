"""Short runs of the training commands, and what they leave."""

import json
from pathlib import Path

from models.train.commands import main

SMALL = ["--image-size", "24", "--patch", "3", "--width", "16", "--multipliers", "1", "2"]

SMALL_CLIP = ["--image-size", "24", "--width", "32", "--teacher", "none"]


def train(part: str, folder: Path, out: Path, steps: int, *extra: str) -> int:
    common = ["--data", str(folder), "--out", str(out), "--steps", str(steps), "--batch-size", "4"]
    return main([part, *common, *extra])


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "denoiser.jsonl").read_text().splitlines()]
