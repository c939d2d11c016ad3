"""Pictures are decoded once, and mapped from a file afterwards."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.errors import DatasetError
from models.train import decoded
from models.train.data import Captions, load_pictures
from models.train.decoded import decoded_pictures


def test_mapped_pictures_are_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    mapped = decoded_pictures(folder, 12, tmp_path / "kept", progress=False)
    whole = load_pictures(folder, 12, progress=False)
    assert torch.equal(mapped.pictures, whole.pictures)
    assert mapped.captions == whole.captions


def test_nothing_is_decoded_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "red_disc.png").write_bytes(b"no picture")
    first = decoded_pictures(folder, 12, tmp_path / "kept", progress=False)
    monkeypatch.setattr(decoded, "read_pictures", None)
    again = decoded_pictures(folder, 12, tmp_path / "kept", progress=False)
    assert torch.equal(first.pictures, again.pictures)
    assert len(again.skipped) == 1
    assert again.skipped == first.skipped


def test_a_changed_file_is_decoded_again(folder: Path, tmp_path: Path) -> None:
    decoded_pictures(folder, 12, tmp_path / "kept", progress=False)
    (folder / "red_disc.json").write_text('{"name": "a red plate"}')
    os.utime(folder / "red_disc.json", (1, 1))
    again = decoded_pictures(folder, 12, tmp_path / "kept", progress=False)
    assert "red plate" in {entry.name for entry in again.captions}


def test_other_sizes_lie_side_by_side(folder: Path, tmp_path: Path) -> None:
    sides = [
        decoded_pictures(folder, size, tmp_path / "kept", progress=False).pictures.shape[-1]
        for size in (12, 16, 12)
    ]
    assert sides == [12, 16, 12]


def test_what_ends_half_way_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(*_: object, **__: object) -> Iterator[tuple[Tensor, Captions]]:
        yield torch.zeros(4, 12, 12, dtype=torch.uint8), Captions("a disc")
        raise DatasetError("the shard is cut short")

    monkeypatch.setattr(decoded, "read_pictures", cut_short)
    with pytest.raises(DatasetError, match="cut short"):
        decoded_pictures(folder, 12, tmp_path / "kept", progress=False)
    assert list((tmp_path / "kept").iterdir()) == []
