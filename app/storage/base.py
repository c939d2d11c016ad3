"""What a place for images has to offer."""

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

__all__ = ["IMAGE_NAME", "ImageStorage", "StorageError", "StoredFile", "check_name"]

IMAGE_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}\.(?:png|webp|jpg)")


class StorageError(Exception):
    """An image could not be written, read or deleted."""


class StoredFile(NamedTuple):
    """An image as it lies in storage."""

    name: str
    bytes: int
    written_at: float  # unix seconds


class ImageStorage(Protocol):
    """Images by name. A name is written once, whole, and never changed."""

    def write(self, name: str, data: bytes) -> None:
        """Store an image; when this returns, it survives a crash.

        Raises:
            ValueError: `name` is not an image name.
            StorageError: it could not be stored; nothing is left under `name`.
        """
        ...

    def read(self, name: str) -> bytes:
        """The image's bytes.

        Raises:
            ValueError: `name` is not an image name.
            FileNotFoundError: there is none.
            OSError, StorageError: it cannot be read at the moment.
        """
        ...

    def copy(self, name: str, to: str) -> None:
        """Store the image under a further name; each of the two is deleted by itself.

        Raises:
            ValueError: one of them is not an image name.
            FileNotFoundError: there is no image `name`.
            StorageError: it could not be stored; nothing is left under `to`.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove an image, if it is there.

        Raises:
            ValueError: `name` is not an image name.
            StorageError: it could not be deleted.
        """
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such an image."""
        ...

    def files(self) -> Iterator[StoredFile]:
        """All images, in no order; those that come or go meanwhile may be missed.

        Raises:
            StorageError: they cannot be listed.
        """
        ...

    def broken_off(self, before: float, *, remove: bool) -> int:
        """How many writes that began before this time never ended; `remove` what they left.

        Raises:
            StorageError: it cannot be looked for, or not removed.
        """
        ...

    @property
    def link_origin(self) -> str | None:
        """The origin (scheme, host, port) that links lead to, None where there are none."""
        ...

    def link(self, name: str, seconds: float) -> str | None:
        """A URL by which anybody may fetch the image for so long; None: only by `read`.

        Raises:
            ValueError: `name` is not an image name.
            StorageError: it could not be signed.
        """
        ...

    def check(self) -> None:
        """Try whether it can be used.

        Raises:
            StorageError: not as it is set up, or not now.
        """
        ...


def check_name(name: str) -> str:
    """Give the name back when it is one.

    Raises:
        ValueError: it could leave the folder, or has no image suffix.
    """
    if IMAGE_NAME.fullmatch(name) is None:
        raise ValueError(
            f"image name {name!r} should be letters, digits, - or _ and .png/.webp/.jpg"
        )
    return name
