"""Images in a folder."""

from pathlib import Path

import pytest

from app.storage.base import StorageError
from app.storage.folder import FolderStorage

NAME = "01J00000000000000000000000_abc_0.png"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "images")
    assert not storage.exists(NAME)
    storage.write(NAME, b"one")
    storage.write(NAME, b"two")
    assert (storage.read(NAME), storage.exists(NAME)) == (b"two", True)
    assert [path.name for path in tmp_path.rglob("*.*")] == [NAME]  # nothing temporary is left
    assert storage.path(NAME).relative_to(tmp_path).parts[0] == "images"
    assert len(storage.path(NAME).relative_to(tmp_path).parts) == 4


def test_delete(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write(NAME, b"one")
    storage.delete(NAME)
    storage.delete(NAME)  # nothing is there to delete, which is no fault
    with pytest.raises(FileNotFoundError):
        storage.read(NAME)


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_outlives_its_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    storage, other = FolderStorage(tmp_path), NAME.replace("abc", "def")

    def no_links(*_: object) -> None:
        raise OSError(31, "Too many links")

    storage.write(NAME, b"one")
    if not links:
        monkeypatch.setattr("app.storage.folder.os.link", no_links)
    storage.copy(NAME, other)
    same = storage.path(NAME).samefile(storage.path(other))
    storage.delete(NAME)
    assert (storage.read(other), same) == (b"one", links)
    with pytest.raises(FileNotFoundError):
        storage.copy(NAME, other)


@pytest.mark.parametrize(
    "name", ["../x.png", "a/b.png", ".png", "x.gif", "x.png\n", "x.png/..", "\x00.png", "x", ""]
)
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    storage = FolderStorage(tmp_path)
    for use in (storage.read, storage.delete, storage.exists, storage.path):
        with pytest.raises(ValueError, match="image name"):
            use(name)
    with pytest.raises(ValueError, match="image name"):
        storage.write(name, b"")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FolderStorage(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.storage.folder.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        storage.write(NAME, b"one")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
