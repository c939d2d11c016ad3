"""What a file is that cannot be read as what its name says, by its first bytes. No torch here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["mistaken_for"]

_PICKLE = (
    "a pickle under another name, which can run any program when it is read, so it is not read "
    "here: give it the ending .ckpt (in a folder: .bin), and the import says how to convert it"
)
_PAGE = "a web page: the download was answered with one, so fetch the file again"
_BEGINNINGS: Final[Mapping[bytes, str]] = {
    b"version https://git-lfs": "a pointer of Git LFS and not the file: run `git lfs pull` there",
    b"pk\x03\x04": _PICKLE,  # as torch writes it since 1.6
    b"\x80\x02\x8a\x0a": _PICKLE,  # and before
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
}
_LOOKED_AT = 64  # bytes


def mistaken_for(file: Path) -> str | None:
    """In words, for "FILE is …"; None where that is not known."""
    try:
        with file.open("rb") as handle:
            start = handle.read(_LOOKED_AT).lstrip().lower()
    except OSError:
        return None
    return next((what for mark, what in _BEGINNINGS.items() if start.startswith(mark)), None)
