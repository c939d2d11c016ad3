"""Pictures decoded once into a memory-mapped file, for sets larger than memory.

Every later call, and the next part at the same size, starts at once.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from models.train.data import Captions, PictureSet, read_pictures

_FORMAT = 2  # of the two files, and of what decoding makes of a picture


def decoded_pictures(
    source: Path, image_size: int, folder: Path, *, progress: bool = True
) -> PictureSet:
    """`load_pictures`, kept in `folder` as long as no file of `source` changes.

    Raises:
        DatasetError: as of `load_pictures`.
    """
    name = f"{image_size}-{_fingerprint(source)[:16]}"
    pixels, index = folder / f"{name}.pixels", folder / f"{name}.json"
    if not index.exists():
        _decode_into(pixels, index, source, image_size, progress)
    known = json.loads(index.read_text("utf-8"))
    captions = [
        Captions(**{**entry, "keywords": tuple(entry["keywords"])}) for entry in known["captions"]
    ]
    return PictureSet(_mapped(pixels, len(captions), image_size), captions, known["skipped"])


def _fingerprint(source: Path) -> str:
    """Changes with the names, sizes and times of the files that lie there."""
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    seen = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.exists()]
    return hashlib.sha256(repr((_FORMAT, str(source), seen)).encode()).hexdigest()


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
    finally:
        partial.unlink(missing_ok=True)
    described = {"captions": [asdict(entry) for entry in captions], "skipped": skipped}
    whole = index.with_suffix(f".{os.getpid()}.partial")
    whole.write_text(json.dumps(described), "utf-8")
    os.replace(whole, index)


def _mapped(pixels: Path, count: int, size: int) -> Tensor:
    flat = torch.from_file(str(pixels), shared=False, size=count * 4 * size**2, dtype=torch.uint8)
    return flat.view(count, 4, size, size)
