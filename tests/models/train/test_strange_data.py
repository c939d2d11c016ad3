"""Folders as people have them: what cannot be used is named, skipped and counted, never a crash."""

import io
import json
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from models.errors import DatasetError
from models.train.data import load_pictures
from tests.models.conftest import COLOURS, draw


def picture(**options: object) -> bytes:
    buffer = io.BytesIO()
    draw(COLOURS["red"], "disc").save(buffer, **{"format": "PNG"} | options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ({"a.json": b"{"}, "cannot be read"),
        ({"a.json": b'["a cat"]'}, "is a list"),
        ({"a.json": b'{"name": 3}'}, "neither a 'name' nor a 'caption'"),
        ({"a.json": b'{"name": "cat", "keywords": 7}'}, "'keywords' is 7"),
        ({"a.json": b'{"name": "cat", "style": ["flat"]}'}, "'style' is"),
        ({"a.txt": b"  \n"}, "caption is empty"),
        ({"a.txt": b"\xff\xfe\x00"}, "cannot be read"),
        ({}, "no caption beside the picture"),
    ],
)
def test_a_caption_that_cannot_be_used_is_named(
    folder: Path, caption: dict[str, bytes], reason: str
) -> None:
    (folder / "a.png").write_bytes(picture())
    for name, content in caption.items():
        (folder / name).write_bytes(content)
    data = load_pictures(folder, 16, progress=False)
    assert len(data) == 6
    assert [str(folder / "a.png") in line and reason in line for line in data.skipped] == [True]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_no_damage_to_a_picture_is_a_crash(folder: Path, kind: str) -> None:
    """A hundred files with bytes changed or cut: each is read or named."""
    rng = random.Random(0)
    whole = io.BytesIO()
    draw(COLOURS["blue"], "disc").convert("RGB").save(whole, kind)
    for i in range(100):
        broken = bytearray(whole.getvalue())
        for _ in range(rng.randrange(1, 20)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        cut = len(broken) if i % 2 else rng.randrange(len(broken))
        (folder / f"{i}.png").write_bytes(broken[:cut])
        (folder / f"{i}.txt").write_text("a disc")
    data = load_pictures(folder, 8, progress=False)
    assert len(data) + len(data.skipped) == 106
    assert all("cannot be read" in line for line in data.skipped)
    assert data.skipped


def test_a_picture_too_large_to_open_is_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match="exceeds limit"):
        load_pictures(folder, 8, progress=False)


def test_a_banner_is_read_without_a_square_of_its_length(tmp_path: Path) -> None:
    Image.new("RGBA", (40_000, 30), (255, 0, 0, 128)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a banner")
    banner = load_pictures(tmp_path, 8, progress=False).pictures[0]
    assert banner[3].sum() > 0
    assert (banner[0] == banner[3]).all()  # premultiplied red


def test_keywords_in_one_text_and_lines_in_a_caption_are_understood(folder: Path) -> None:
    (folder / "a.png").write_bytes(picture())
    (folder / "a.json").write_text(json.dumps({"caption": "a\n cat ", "keywords": "pet, kitten,"}))
    entry = load_pictures(folder, 8, progress=False).captions[0]
    assert (entry.name, entry.keywords) == ("a cat", ("pet", "kitten"))


def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    photo = Image.new("RGB", (8, 8), "white")
    photo.paste("red", (0, 0, 8, 4))  # red above
    exif = Image.Exif()
    exif[0x0112] = 3  # held upside down
    photo.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("half red")
    turned = load_pictures(tmp_path, 8, progress=False).pictures[0]
    assert turned[:3, 0, 4].tolist() == [255, 255, 255]
    assert turned[:3, 7, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, None])
def test_a_shard_that_is_no_tar_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    shard = tmp_path / "shard-000.tar"
    if content is None:
        with tarfile.open(shard, "w") as tar:
            info = tarfile.TarInfo("a.png")
            info.size = 5000
            tar.addfile(info, io.BytesIO(bytes(5000)))
        content = shard.read_bytes()[:3000]
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"shard-000\.tar' is no tar file, or is cut short"):
        load_pictures(tmp_path, 8, progress=False)
