"""Pictures decoded once into a memory-mapped file, for sets larger than memory.

Every later call, and the next part at the same size, starts at once.
"""

import hashlib
import json
import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from models.errors import DatasetError
from models.train.data import (
    CAPTION_SUFFIXES,
    PICTURE_SUFFIXES,
    UNREAD_SUFFIXES,
    Captions,
    PictureSet,
    read_pictures,
    unseen_folders,
)

_FORMAT = 3  # of the two files, and of what decoding makes of a picture
_LONG_S = 3600.0  # without a byte written
_SUFFIXES = (".tar", *PICTURE_SUFFIXES, *UNREAD_SUFFIXES, *CAPTION_SUFFIXES)


def decoded_pictures(
    source: Path, image_size: int, folder: Path, *, progress: bool = True
) -> PictureSet:
    """`load_pictures`, kept in `folder` as long as no sample of `source` changes.

    Raises:
        DatasetError: as of `load_pictures`, or the folder cannot be listed.
    """
    _forget_the_killed(folder)
    name = f"{image_size}-{_fingerprint(source)[:16]}"
    pixels, index = folder / f"{name}.pixels", folder / f"{name}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):  # not there, or damaged
        return _kept(pixels, index, image_size)
    _decode_into(pixels, index, source, image_size, progress)
    for former in folder.glob(f"{image_size}-*"):
        if former.suffix in (".pixels", ".json") and former.stem != name:
            former.unlink(missing_ok=True)
    return _kept(pixels, index, image_size)


def _forget_the_killed(folder: Path) -> None:
    """Remove what processes were killed at; what one writes now is younger."""
    for partial in folder.glob("*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime > _LONG_S:
                partial.unlink()


def _kept(pixels: Path, index: Path, image_size: int) -> PictureSet:
    known = json.loads(index.read_text("utf-8"))
    captions = [
        Captions(**{**entry, "keywords": tuple(entry["keywords"])}) for entry in known["captions"]
    ]
    if pixels.stat().st_size != len(captions) * 4 * image_size**2:
        raise ValueError("more or fewer pixels than captions")
    return PictureSet(_mapped(pixels, len(captions), image_size), captions, known["skipped"])


def _fingerprint(source: Path) -> str:
    """Changes with the names, sizes, times and rights of the tar files and samples there, and with
    the folders that cannot be looked into.

    A picture or text that stands alone is no sample, but often what training itself writes there.
    """
    try:
        states = [(str(p), p.stat()) for p in _read(source) if p.exists()]
    except OSError as fault:
        raise DatasetError(f"{str(source)!r} cannot be listed: {fault}") from None
    seen = [(path, s.st_size, s.st_mtime_ns, s.st_mode) for path, s in states]
    state = (_FORMAT, str(source), seen, unseen_folders(source))
    return hashlib.sha256(repr(state).encode()).hexdigest()


def _read(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in _SUFFIXES)
    beside = Counter(p.with_suffix("") for p in files)
    return [p for p in files if p.suffix == ".tar" or beside[p.with_suffix("")] > 1]


def _decode_into(pixels: Path, index: Path, source: Path, image_size: int, progress: bool) -> None:
    """Write both files, one picture in memory at a time; a kill leaves neither."""
    pixels.parent.mkdir(parents=True, exist_ok=True)
    partial = pixels.with_suffix(f".{os.getpid()}.partial")  # processes may decode at once
    skipped: list[str] = []
    captions: list[Captions] = []
    try:
        with partial.open("wb") as file:
            for picture, caption in read_pictures(source, image_size, skipped, progress=progress):
                file.write(picture.numpy().tobytes())
                captions.append(caption)
        os.replace(partial, pixels)
    except OSError as fault:
        if fault.filename is not None:
            raise
        raise DatasetError(  # a full disk, whose fault names no file
            f"{str(pixels.parent)!r} cannot be written: {fault.strerror}"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    described = {"captions": [asdict(entry) for entry in captions], "skipped": skipped}
    whole = index.with_suffix(f".{os.getpid()}.partial")
    whole.write_text(json.dumps(described), "utf-8")
    os.replace(whole, index)


def _mapped(pixels: Path, count: int, size: int) -> Tensor:
    flat = torch.from_file(str(pixels), shared=False, size=count * 4 * size**2, dtype=torch.uint8)
    return flat.view(count, 4, size, size)
