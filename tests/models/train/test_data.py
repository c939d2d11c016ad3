"""Captioned pictures are read whole; bad samples are named, skipped and counted."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.errors import DatasetError
from models.train.data import Captions, load_pictures


def test_a_folder_of_pictures_with_json(folder: Path) -> None:
    data = load_pictures(folder, 12, progress=False)
    assert data.pictures.shape == (6, 4, 12, 12)
    assert data.pictures.dtype == torch.uint8
    assert {entry.name for entry in data.captions} == {"disc", "square"}
    assert data.skipped == []


def test_colour_is_premultiplied(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("nothing")
    assert not load_pictures(tmp_path, 8, progress=False).pictures.any()


def test_shards_equal_the_folder_they_were_made_of(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "shard-000.tar", "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    with tarfile.open(shards / "heldout-000.tar", "w") as tar:
        info = tarfile.TarInfo("x.png")
        tar.addfile(info, io.BytesIO())
    one, two = (load_pictures(p, 12, progress=False) for p in (folder, shards))
    assert torch.equal(one.pictures, two.pictures)
    assert one.captions == two.captions


def test_text_captions_and_wide_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text(" a red flag \n")
    data = load_pictures(tmp_path, 10, progress=False)
    assert data.captions[0].name == "red flag"
    assert int(data.pictures[0, 3, 0].max()) <= 1  # padded to a square, not stretched
    assert int(data.pictures[0, 3, 5].min()) >= 254


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("red_disc.png", b"not a picture", "of no kind that is known"),
        ("red_disc.json", b"{}", "neither a 'name' nor a 'caption'"),
        ("red_disc.json", b"{", "Expecting property name"),
    ],
)
def test_a_bad_sample_is_skipped_and_named(
    folder: Path, name: str, data: bytes, reason: str
) -> None:
    (folder / name).write_bytes(data)
    loaded = load_pictures(folder, 12, progress=False)
    assert len(loaded) == 5
    assert len(loaded.skipped) == 1
    assert "red_disc" in loaded.skipped[0]
    assert reason in loaded.skipped[0]


def test_a_missing_caption_is_named(folder: Path) -> None:
    (folder / "red_disc.json").unlink()
    assert "no caption beside the picture" in load_pictures(folder, 12, progress=False).skipped[0]


def test_an_empty_or_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no captioned picture"):
        load_pictures(tmp_path, 12, progress=False)
    with pytest.raises(DatasetError, match="there is no folder"):
        load_pictures(tmp_path / "none", 12, progress=False)


def test_caption_field_is_enough(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"caption": "a dark night", "style": " "}))
    assert load_pictures(tmp_path, 4, progress=False).captions == [Captions("dark night")]


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("The cat", Captions("cat")),
        ("an old red house", Captions("old red house")),
        ("A", Captions("A")),
        ("a red house on a table", Captions("a red house on a table", whole=True)),
        ("Two children play ball.", Captions("Two children play ball.", whole=True)),
    ],
)
def test_short_captions_are_names_and_long_ones_stay_whole(
    tmp_path: Path, text: str, known: Captions
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(text)
    assert load_pictures(tmp_path, 4, progress=False).captions == [known]
    (tmp_path / "a.json").write_text(json.dumps({"name": text}))
    assert not load_pictures(tmp_path, 4, progress=False).captions[0].whole
