"""A made-up captioned folder: coloured discs and squares, with alpha."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 90, 220)}
SHAPES = ("disc", "square")


def draw(colour: tuple[int, int, int], shape: str, side: int = 24) -> Image.Image:
    picture = Image.new("RGBA", (side, side))
    painter = ImageDraw.Draw(picture)
    box = (3, 3, side - 4, side - 4)
    (painter.ellipse if shape == "disc" else painter.rectangle)(box, fill=(*colour, 255))
    return picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "pictures"
    out.mkdir()
    for name, colour in COLOURS.items():
        for shape in SHAPES:
            draw(colour, shape).save(out / f"{name}_{shape}.png")
            entry = {"name": shape, "keywords": [f"{shape}s"], "style": "flat", "group": "objects"}
            (out / f"{name}_{shape}.json").write_text(json.dumps(entry))
    return out
