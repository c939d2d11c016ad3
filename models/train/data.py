"""Captioned pictures, read from tar shards or a folder.

A sample is a picture (`KEY.webp`, `.png`, `.jpg`) and its caption beside it: `KEY.json` with
`caption`, or with `name` and `keywords`; or `KEY.txt` with the caption itself.
"""

import io
import json
import lzma
import os
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from models.errors import DatasetError

PICTURE_SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")
CAPTION_SUFFIXES = (".json", ".txt")
UNREAD_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")  # pictures all the same
_WORDS_OF_A_NAME = 3


@dataclass(frozen=True)
class Captions:
    """What is known of one picture's content.

    `name` has no article before it, unless it is `whole`: a caption to be said as it is written.
    """

    name: str
    keywords: tuple[str, ...] = ()
    style: str | None = None
    group: str | None = None
    base: str | None = None
    skin_tone: str | None = None
    whole: bool = False


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
    """Read every sample of a tar file, or of a folder.

    Of a folder its `shard-*.tar` are read, else its captioned loose pictures, else other tar files,
    and never `heldout-*.tar`. What is left out or cannot be used is skipped and named.

    Raises:
        DatasetError: the folder is missing or holds no usable sample, or a tar file is damaged.
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
    if source.is_dir() and not os.access(source, os.R_OK | os.X_OK):  # which lists as if empty
        raise DatasetError(f"{str(source)!r} cannot be read: let this user list and enter it")
    usable = False
    for key, parts in tqdm(
        _samples(source, skipped), desc="pictures", disable=not progress, unit=""
    ):
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


def _samples(source: Path, skipped: list[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`(key, {suffix: bytes})`, in an order that depends on the names alone."""
    tars, loose = ([source], {}) if source.is_file() else _chosen(source, skipped)
    for tar in tars:
        yield from _tar_samples(tar, skipped)
    for picture, beside in loose.items():
        try:
            parts = {p.suffix.lower(): _content(p) for p in (picture, *beside) if p.exists()}
        except OSError as fault:  # no file, or one that may not be read
            skipped.append(f"{picture}: it cannot be read: {fault}")
            continue
        yield str(picture), parts


def _content(file: Path) -> bytes:
    if not (file.is_file() or file.is_dir()):  # a pipe or a device, which may never end
        raise OSError("it is no file")
    return file.read_bytes()


def _chosen(source: Path, skipped: list[str]) -> tuple[list[Path], dict[Path, list[Path]]]:
    """The tar files of a folder, or else its loose pictures; what is left out is named."""
    tars = sorted(source.glob("*.tar"))
    loose = _loose(source, skipped)
    shards = [tar for tar in tars if tar.name.startswith("shard-")]
    heldout = [tar for tar in tars if tar.name.startswith("heldout-")]
    others = [tar for tar in tars if tar not in (*shards, *heldout)]
    captioned = any(loose.values())
    chosen = shards or ([] if captioned else others)
    unread = [p for p in (*others, *loose) if p not in chosen] if chosen else others
    kind = "tar files" if chosen else "loose pictures"
    skipped += [f"{tar}: it is held out" for tar in heldout]
    skipped += [f"{p}: the {kind} beside it are read instead" for p in unread]
    return chosen, {} if chosen else loose


def _loose(source: Path, skipped: list[str]) -> dict[Path, list[Path]]:
    """Every picture outside tar files, and the captions beside it; names those of other kinds."""
    files = sorted(source.rglob("*"))
    skipped += unseen_folders(source)
    captions: dict[Path, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in CAPTION_SUFFIXES:
            captions.setdefault(file.with_suffix(""), []).append(file)
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    without = captions.keys() - {picture.with_suffix("") for picture in pictures}
    skipped += [
        f"{file}: {file.suffix} is not read; save it as one of {', '.join(PICTURE_SUFFIXES)}"
        for file in files
        if file.suffix.lower() in UNREAD_SUFFIXES and file.with_suffix("") in without
    ]
    return {picture: captions.get(picture.with_suffix(""), []) for picture in pictures}


def unseen_folders(source: Path) -> list[str]:
    """The folders below `source` that `rglob` passes over in silence, and why."""
    unseen: list[str] = []

    def refused(fault: OSError) -> None:
        unseen.append(f"{fault.filename}: the folder cannot be listed: {fault.strerror}")

    for folder, below, _ in os.walk(source, onerror=refused):
        links = [path for path in (Path(folder, name) for name in below) if path.is_symlink()]
        unseen += [f"{link}: a link to a folder is not followed" for link in links]
    return sorted(unseen)


def _tar_samples(shard: Path, skipped: list[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample once it is whole: files of one follow one another, as in WebDataset, mostly."""
    begun: dict[str, dict[str, bytes]] = {}
    last = ""
    for key, suffix, content in _members(shard, skipped):
        if key != last and _is_whole(begun.get(last, {})):
            yield f"{shard.name}:{last}", begun.pop(last)
        begun.setdefault(key, {})[suffix] = content
        last = key
    for key, parts in begun.items():
        yield f"{shard.name}:{key}", parts


def _members(shard: Path, skipped: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """`(key, suffix, bytes)` of every file in a tar."""
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                try:
                    if (handle := tar.extractfile(member)) is None:
                        continue
                    path = PurePosixPath(member.name)
                    key = str(path.with_suffix(""))
                except (KeyError, RecursionError, ValueError) as fault:  # links to nothing, no name
                    skipped.append(f"{shard.name}:{member.name}: it cannot be read: {fault}")
                    continue
                yield key, path.suffix.lower(), handle.read()
            _require_end(tar)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as fault:
        why = str(fault).partition("\n")[0].rstrip(":")
        raise DatasetError(f"{str(shard)!r} is no tar file, or is cut short: {why}") from None


def _require_end(tar: tarfile.TarFile) -> None:
    """Damaged headers and missing ends, which end tarfile's loop as if all were read."""
    file = tar.fileobj
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no file and no end of the archive at byte {tar.offset}")
    while file.read(1 << 20):  # as far as the checksum of what is compressed
        pass


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
    except (ValueError, RecursionError) as fault:  # not JSON, or not UTF-8; too deep
        raise DatasetError(f"the caption cannot be read: {fault}") from None
    if not text:
        raise DatasetError("the caption is empty")
    return _named(text, plain=True)


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
    "".join((name, *kept, words["style"] or "")).encode()  # ValueError: a lone surrogate
    given: dict[str, Any] = {key: (word or "").strip() or None for key, word in words.items()}
    return replace(_named(name, plain=not entry.get("name")), keywords=kept, **given)


def _named(text: str, *, plain: bool) -> Captions:
    """A plain caption is a name if it is short ("a red apple"), else whole."""
    name = " ".join(text.split())
    bare = re.sub(r"^(?:an?|the) ", "", name, flags=re.I)
    if plain and len(bare.split()) > _WORDS_OF_A_NAME:
        return Captions(name, whole=True)
    return Captions(bare)


def _decode(data: bytes, image_size: int) -> Tensor:
    """RGBA, alpha premultiplied before the reduction, padded to a square. uint8 `[4, S, S]`.

    A photograph is turned as its camera was held.
    """
    try:
        upright = _eight_bit(ImageOps.exif_transpose(_opened(data))).convert("RGBA")
        if (factor := max(upright.size) // (4 * image_size)) > 1:
            # Thinned out before it is made square in floats: a banner would fill the memory.
            upright = upright.convert("RGBa").reduce(factor).convert("RGBA")
        rgba = np.asarray(upright, dtype=np.float32) / 255
    except UnidentifiedImageError:  # whose own words name an object in memory
        raise DatasetError("the picture cannot be read: it is of no kind that is known") from None
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


def _opened(data: bytes) -> Image.Image:
    """Large pictures too, without a warning; those of more than 179 megapixels Pillow refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data))


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of floats to 1, as 8 bits: Pillow would cut it off at 255."""
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    grey = np.asarray(picture, np.float32) / (1 if picture.mode == "F" else 65535)
    return Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8))
