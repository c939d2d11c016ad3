"""A tiny random bundle for all model tests, a pipeline to import, a made-up folder to train on."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from models.bundle import Bundle, load_bundle
from tests.models.tiny import build_tiny_bundle

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 90, 220)}
SHAPES = ("disc", "square")


def draw(colour: tuple[int, int, int], shape: str, side: int = 24) -> Image.Image:
    picture = Image.new("RGBA", (side, side))
    painter = ImageDraw.Draw(picture)
    box = (3, 3, side - 4, side - 4)
    (painter.ellipse if shape == "disc" else painter.rectangle)(box, fill=(*colour, 255))
    return picture


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Bundle:
    return load_bundle(tiny_folder)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Stable Diffusion 1's family as diffusers saves it."""
    from tests.models.tiny_diffusers import build_pipeline  # slow to import, for few tests

    return build_pipeline(tmp_path_factory.mktemp("sd") / "sd1", "sd1")


@pytest.fixture
def source(built: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "source"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Coloured discs and squares, with alpha, each with its caption beside it."""
    out = tmp_path / "pictures"
    out.mkdir()
    for name, colour in COLOURS.items():
        for shape in SHAPES:
            draw(colour, shape).save(out / f"{name}_{shape}.png")
            entry = {"name": shape, "keywords": [f"{shape}s"], "style": "flat", "group": "objects"}
            (out / f"{name}_{shape}.json").write_text(json.dumps(entry))
    return out
