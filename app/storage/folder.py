"""Images in a local folder."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from app.storage.base import IMAGE_NAME, StorageError, StoredFile, check_name

__all__ = ["FolderStorage"]


class FolderStorage:
    """Images under `root`, spread over 65,536 folders by the hash of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Where the image lies.

        Raises:
            ValueError: `name` is not an image name.
        """
        digest = hashlib.sha256(check_name(name).encode()).hexdigest()
        return self.root / digest[:2] / digest[2:4] / name

    def write(self, name: str, data: bytes) -> None:
        """Write under a temporary name, fsync, rename, fsync the folder: whole or not at all."""
        path = self.path(name)
        temporary = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
        try:
            _make_folders(path.parent)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            _sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StorageError(f"image {name!r} could not be stored: {error.strerror}") from error

    def read(self, name: str) -> bytes:
        """The image's bytes; FileNotFoundError when there is none."""
        return self.path(name).read_bytes()

    def copy(self, name: str, to: str) -> None:
        """Give the file a second name, which costs no space; copy it where that cannot be."""
        source, target = self.path(name), self.path(to)
        try:
            _make_folders(target.parent)
            os.link(source, target)
            _sync_folder(target.parent)
        except FileNotFoundError:
            raise
        except OSError:  # no links on this file system, or too many of this file
            self.write(to, source.read_bytes())

    def delete(self, name: str) -> None:
        """Remove an image, if it is there."""
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"image {name!r} could not be deleted: {error.strerror}") from error

    def exists(self, name: str) -> bool:
        """Whether there is such an image."""
        return self.path(name).is_file()

    def files(self) -> Iterator[StoredFile]:
        """All images, folder by folder."""
        for path in self._walk():
            if IMAGE_NAME.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found = path.stat()
                    yield StoredFile(path.name, found.st_size, found.st_mtime)

    def broken_off(self, before: float, *, remove: bool) -> int:
        """Count, and remove, the temporary files of writers that were killed."""
        count = 0
        for path in self._walk():
            if not (path.name.startswith(".") and path.name.endswith(".tmp")):
                continue
            try:
                if path.stat().st_mtime < before:
                    if remove:
                        path.unlink()
                    count += 1
            except FileNotFoundError:  # its writer lives
                continue
            except OSError as error:
                raise StorageError(
                    f"{path.name!r} could not be deleted: {error.strerror}"
                ) from error
        return count

    def _walk(self) -> Iterator[Path]:
        def refuse(error: OSError) -> None:
            raise StorageError(f"{str(self.root)!r} cannot be listed: {error.strerror}")

        if self.root.is_dir():
            for folder, _, names in os.walk(self.root, onerror=refuse):
                yield from (Path(folder, name) for name in names)

    @property
    def link_origin(self) -> None:
        """There are no links to files."""

    def link(self, name: str, seconds: float) -> None:
        """There are no links to files."""

    def check(self) -> None:
        """Make the folder where it is missing."""
        try:
            _make_folders(self.root)
        except OSError as error:
            raise StorageError(f"{str(self.root)!r} cannot be used: {error.strerror}") from error


def _make_folders(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)  # else a crash could lose the new folder with the image in it


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
