"""Pictures are decoded once, and mapped from a file afterwards."""

import os
import time
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


def test_a_full_disk_is_told_with_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> Iterator[tuple[Tensor, Captions]]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded, "read_pictures", full)
    with pytest.raises(DatasetError, match=r"kept' cannot be written: No space left"):
        decoded_pictures(folder, 12, tmp_path / "kept", progress=False)
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("pixels", None),
        ("pixels", b"short"),
        ("json", b'{"captions": ['),
        ("json", b"[]"),
        ("json", b"{}"),
        ("json", b'{"captions": [{"colour": 1}], "skipped": []}'),
        ("json", b'{"captions": [], "skipped": []}'),
    ],
)
def test_damaged_files_are_decoded_again(
    folder: Path, tmp_path: Path, kind: str, content: bytes | None
) -> None:
    kept = tmp_path / "kept"
    first = decoded_pictures(folder, 12, kept, progress=False).pictures.clone()
    (damaged,) = kept.glob(f"*.{kind}")
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    again = decoded_pictures(folder, 12, kept, progress=False)
    assert torch.equal(again.pictures, first)
    assert len(again) == 6


def test_what_training_writes_among_the_pictures_is_not_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded_pictures(folder, 12, folder / "out" / "decoded", progress=False)
    for name in ("grid.png", "bundle.json", "clip.checkpoint", "clip.safetensors", "clip.jsonl"):
        (folder / "out" / name).write_bytes(b"written")
    monkeypatch.setattr(decoded, "read_pictures", None)
    assert len(decoded_pictures(folder, 12, folder / "out" / "decoded", progress=False)) == 6


def test_former_pictures_of_the_size_are_removed(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for size in (12, 16):
        decoded_pictures(folder, size, kept, progress=False)
    (folder / "red_disc.png").unlink()
    assert len(decoded_pictures(folder, 12, kept, progress=False)) == 5
    assert sorted(p.name[:3] + p.suffix for p in kept.iterdir()) == [
        "12-.json",
        "12-.pixels",
        "16-.json",
        "16-.pixels",
    ]


def test_a_file_that_may_be_read_at_last_is_decoded(folder: Path, tmp_path: Path) -> None:
    (folder / "red_disc.png").chmod(0o200)
    first = decoded._fingerprint(folder)
    (folder / "red_disc.png").chmod(0o644)
    assert decoded._fingerprint(folder) != first


def test_a_folder_that_is_not_looked_into_is_named_though_all_else_is_as_before(
    folder: Path, tmp_path: Path
) -> None:
    decoded_pictures(folder, 12, tmp_path / "kept", progress=False)
    (folder / "linked").symlink_to(tmp_path)
    [line] = decoded_pictures(folder, 12, tmp_path / "kept", progress=False).skipped
    assert line == f"{folder / 'linked'}: a link to a folder is not followed"


def test_a_folder_that_cannot_be_listed_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(DatasetError, match=r"pictures' cannot be listed: .*Permission denied"):
        decoded_pictures(folder, 12, tmp_path / "kept", progress=False)


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


def test_what_a_kill_left_is_removed_and_what_is_being_written_is_not(
    folder: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    old, new = kept / "12-abc.77.partial", kept / "12-abc.78.partial"
    for partial in (old, new):
        partial.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    decoded_pictures(folder, 12, kept, progress=False)
    assert (old.exists(), new.exists()) == (False, True)
