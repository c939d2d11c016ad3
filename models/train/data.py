"""Captioned pictures, read from tar shards or a folder.

A sample is a picture (`KEY.webp`, `.png`, `.jpg`) and its caption beside it: `KEY.json` with
`caption`, or with `name` and `keywords`; or `KEY.txt` with the caption itself.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from models.errors import DatasetError

PICTURE_SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")
CAPTION_SUFFIXES = (".json", ".txt")


@dataclass(frozen=True)
class Captions:
    """What is known of one picture's content."""

    name: str
    keywords: tuple[str, ...] = ()
    style: str | None = None
    group: str | None = None
    base: str | None = None
    skin_tone: str | None = None


@dataclass
class PictureSet:
    """`pictures`: uint8 `[N, 4, S, S]`, RGBA with premultiplied alpha; `captions`: one per picture.

    `skipped` names every sample that could not be used, and why.
    """

    pictures: Tensor
    captions: list[Captions]
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)


def load_pictures(source: Path, image_size: int, *, progress: bool = True) -> PictureSet:
    """Read every sample of a folder of pictures, or of its `shard-*.tar` (else `*.tar`) files.

    A sample whose picture cannot be decoded or which has no caption is skipped and named.

    Raises:
        DatasetError: the folder is missing, or holds no usable sample.
    """
    skipped: list[str] = []
    read = list(read_pictures(source, image_size, skipped, progress=progress))
    pictures, captions = zip(*read, strict=True)
    return PictureSet(torch.stack(pictures), list(captions), skipped)


def read_pictures(
    source: Path, image_size: int, skipped: list[str], *, progress: bool = True
) -> Iterator[tuple[Tensor, Captions]]:
    """The samples of `load_pictures`, one in memory at a time: uint8 `[4, S, S]` with captions.

    Names what it skips in `skipped`.
    """
    if not source.exists():
        raise DatasetError(f"there is no folder {str(source)!r} to train on")
    usable = False
    for key, parts in tqdm(_samples(source), desc="pictures", disable=not progress, unit=""):
        try:
            caption = _caption(parts)
            picture = _decode(_picture(parts), image_size)
        except DatasetError as fault:
            skipped.append(f"{key}: {fault}")
            continue
        usable = True
        yield picture, caption
    if not usable:
        hint = f"; first fault: {skipped[0]}" if skipped else ""
        raise DatasetError(
            f"{str(source)!r} holds no captioned picture (KEY.webp|png|jpg with KEY.json or "
            f"KEY.txt, or shard-*.tar of them){hint}"
        )


def _samples(source: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`(key, {suffix: bytes})`, in an order that depends on the names alone."""
    if source.is_file():
        yield from _tar_samples(source)
        return
    shards = sorted(source.glob("shard-*.tar")) or sorted(source.glob("*.tar"))
    for shard in shards:
        yield from _tar_samples(shard)
    if shards:
        return
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    for picture in files:
        beside = [picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
        parts = {p.suffix.lower(): p.read_bytes() for p in (picture, *beside) if p.exists()}
        yield str(picture), parts


def _tar_samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample once it is whole: files of one follow one another, as in WebDataset, mostly."""
    begun: dict[str, dict[str, bytes]] = {}
    last = ""
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                handle = tar.extractfile(member)
                if handle is None:
                    continue
                path = PurePosixPath(member.name)
                key = str(path.with_suffix(""))
                if key != last and _is_whole(begun.get(last, {})):
                    yield f"{shard.name}:{last}", begun.pop(last)
                begun.setdefault(key, {})[path.suffix.lower()] = handle.read()
                last = key
    except (tarfile.TarError, EOFError, OSError) as fault:
        raise DatasetError(f"{str(shard)!r} is no tar file, or is cut short: {fault}") from None
    for key, parts in begun.items():
        yield f"{shard.name}:{key}", parts


def _is_whole(parts: dict[str, bytes]) -> bool:
    kinds = (PICTURE_SUFFIXES, CAPTION_SUFFIXES)
    return all(any(suffix in parts for suffix in kind) for kind in kinds)


def _picture(parts: dict[str, bytes]) -> bytes:
    for suffix in PICTURE_SUFFIXES:
        if suffix in parts:
            return parts[suffix]
    raise DatasetError(f"no picture beside the caption ({', '.join(PICTURE_SUFFIXES)})")


def _caption(parts: dict[str, bytes]) -> Captions:
    """The JSON's caption if there is a JSON, else the text's."""
    try:
        if ".json" in parts:
            return _described(json.loads(parts[".json"]))
        if ".txt" not in parts:
            raise DatasetError("no caption beside the picture (.json or .txt)")
        text = parts[".txt"].decode("utf-8-sig").strip()
    except ValueError as fault:  # not JSON, or not UTF-8
        raise DatasetError(f"the caption cannot be read: {fault}") from None
    if not text:
        raise DatasetError("the caption is empty")
    return Captions(name=" ".join(text.split()))


def _described(entry: Any) -> Captions:
    if not isinstance(entry, dict):
        raise DatasetError(f"the JSON is a {type(entry).__name__}; an object is needed")
    name = entry.get("name") or entry.get("caption")
    if not isinstance(name, str) or not name.strip():
        raise DatasetError("the JSON has neither a 'name' nor a 'caption'")
    keywords = entry.get("keywords") or ()
    if isinstance(keywords, str):
        keywords = keywords.split(",")
    if not isinstance(keywords, list | tuple):
        raise DatasetError(f"'keywords' is {keywords!r}; it should be a list of words")
    words = {key: entry.get(key) for key in ("style", "group", "base", "skin_tone")}
    if wrong := [key for key, word in words.items() if not isinstance(word, str | None)]:
        raise DatasetError(f"{wrong[0]!r} is {words[wrong[0]]!r}; it should be a word")
    kept = tuple(word for word in (str(keyword).strip() for keyword in keywords) if word)
    return Captions(" ".join(name.split()), kept, **words)


def _decode(data: bytes, image_size: int) -> Tensor:
    """RGBA, alpha premultiplied before the reduction, padded to a square. uint8 `[4, S, S]`.

    A photograph is turned as its camera was held.
    """
    try:
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA")
        if (factor := max(upright.size) // (4 * image_size)) > 1:
            # Thinned out before it is made square in floats: a banner would fill the memory.
            upright = upright.convert("RGBa").reduce(factor).convert("RGBA")
        rgba = np.asarray(upright, dtype=np.float32) / 255
    except Exception as fault:  # damaged files make Pillow raise many kinds
        raise DatasetError(f"the picture cannot be read: {fault}") from None
    rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1)
    side = max(rgba.shape[:2])
    top, left = (side - rgba.shape[0]) // 2, (side - rgba.shape[1]) // 2
    square = np.zeros((side, side, 4), np.float32)
    square[top : top + rgba.shape[0], left : left + rgba.shape[1]] = rgba
    x = torch.from_numpy(square).permute(2, 0, 1)[None]
    if side != image_size:
        x = torch.nn.functional.interpolate(
            x, size=(image_size, image_size), mode="bicubic", antialias=True
        )
    x = x.clamp(0, 1)
    x[:, :3] = torch.minimum(x[:, :3], x[:, 3:])  # what premultiplied colour can be
    return (x[0] * 255).round().byte()
