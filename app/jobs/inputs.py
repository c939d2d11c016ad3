"""Pictures that jobs start from: what a file of one must be, and how it is read."""

from io import BytesIO

from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

__all__ = ["MAX_PIXELS", "MAX_SIDE", "InputError", "open_picture", "suffix_of"]

# A decoded picture takes four bytes a pixel, whatever its file takes.
MAX_PIXELS = 2**24
MAX_SIDE = 2**13
_FORMATS: dict[str, type[ImageFile]] = {
    "png": PngImageFile,
    "webp": WebPImageFile,
    "jpg": JpegImageFile,
}
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class InputError(ValueError):
    """A file is no picture that a job can start from; the message is for the job's owner."""


def suffix_of(data: bytes) -> str:
    """`png`, `webp` or `jpg`, by the first bytes.

    Raises:
        InputError: it is none of these.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    raise InputError("it should be a PNG, WebP or JPEG file")


def open_picture(data: bytes) -> Image.Image:
    """The picture in a file as RGBA, upright as its EXIF says.

    Raises:
        InputError: not such a file, damaged, animated, or larger than is read.
    """
    kind = _FORMATS[suffix_of(data)]
    try:
        with kind(BytesIO(data)) as image:  # one format: no other decoder sees the bytes
            _check(image)
            return _rgba(image)
    except InputError:
        raise
    except Exception as fault:  # decoders raise many kinds
        reason = str(fault) or type(fault).__name__
    raise InputError(f"the file is damaged or cut short ({reason[:200]})")


def _check(image: ImageFile) -> None:
    """Refuse by the header, before a pixel is decoded."""
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"it is {width}x{height}; at most {MAX_PIXELS} pixels are read, {MAX_SIDE} on a side"
        )
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise InputError(f"it has {frames} pictures; send one that stands still")


def _rgba(image: ImageFile) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _DEEP:  # 16 bits of grey: the upper eight
        upright = upright.convert("I").point(lambda value: value / 256).convert("L")
    return upright.convert("RGBA")
