"""Files of pictures: the recipe inside and the pixels, read with limits."""

from dataclasses import dataclass
from functools import reduce
from typing import IO

from PIL import Image, ImageChops, PngImagePlugin
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.jobs.recipe import PNG_TEXT, PNG_XMP, Recipe, recipe_in_xmp

__all__ = ["Picture", "UnreadablePicture", "differing_pixels", "read_picture"]

_FORMATS: dict[str, type[ImageFile]] = {
    "image/png": PngImagePlugin.PngImageFile,
    "image/webp": WebPImageFile,
    "image/jpeg": JpegImageFile,
}
# Texts of a PNG are compressed: this much of them is unpacked, not Pillow's 64 MiB.
PngImagePlugin.MAX_TEXT_MEMORY = 2**21


class UnreadablePicture(Exception):
    """A file is not a whole picture of its type."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture's file; `pixels` (RGBA) is None where there are more than were wanted."""

    width: int
    height: int
    frames: int
    recipe: Recipe | None
    pixels: Image.Image | None


def read_picture(file: IO[bytes], media_type: str, most_pixels: int) -> Picture:
    """Decode a picture, but for its pixels where they are more than `most_pixels`.

    Raises:
        UnreadablePicture: it cannot be decoded as `media_type`.
    """
    try:
        file.seek(0)
        with _FORMATS[media_type](file) as image:  # one format: no other decoder sees the bytes
            pixels = image.convert("RGBA") if image.width * image.height <= most_pixels else None
            frames = getattr(image, "n_frames", 1)
            return Picture(*image.size, frames, _recipe(image), pixels)
    except Exception as fault:  # decoders raise many kinds
        reason = str(fault) or type(fault).__name__
    raise UnreadablePicture(reason)  # out here it does not keep what was decoded


def differing_pixels(one: Picture, other: Picture) -> int:
    """How many pixels of two pictures of one size differ.

    Raises:
        ValueError: the pixels of one were not decoded.
    """
    if one.pixels is None or other.pixels is None:
        raise ValueError("a picture has more pixels than were decoded")
    bands = ImageChops.difference(one.pixels, other.pixels).split()
    same = reduce(ImageChops.lighter, bands).histogram()[0]
    return one.width * one.height - same


def _recipe(image: ImageFile) -> Recipe | None:
    text = image.info.get(PNG_TEXT)
    if text is None:
        packet = image.info.get("xmp") or image.info.get(PNG_XMP) or b""
        text = recipe_in_xmp(packet.encode() if isinstance(packet, str) else packet)
    try:
        return Recipe.read(text) if isinstance(text, str) else None
    except ValueError:
        return None
