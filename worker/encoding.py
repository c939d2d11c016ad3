"""Pictures to bytes, with their recipe inside; the same bytes for the same picture and recipe."""

from io import BytesIO

from PIL import Image, features
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from app.jobs.recipe import PNG_TEXT, PNG_XMP, Recipe

__all__ = ["CONTENT_TYPES", "SUFFIXES", "encode", "encoder_version", "on_background"]

CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
SUFFIXES = {"png": "png", "webp": "webp", "jpeg": "jpg"}
_JPEG_QUALITY = 95


def encode(picture: Image.Image, recipe: Recipe) -> bytes:
    """Put `picture` on the recipe's background and write it in the recipe's format.

    Raises:
        ValueError: a format or background that does not exist.
    """
    shown = on_background(picture, recipe.background, alpha=recipe.output_format != "jpeg")
    out = BytesIO()
    match recipe.output_format:
        case "png":
            shown.save(out, "PNG", pnginfo=_png_texts(recipe))
        case "webp":
            xmp, exif = recipe.as_xmp().encode(), _exif(recipe)
            shown.save(out, "WEBP", lossless=True, exact=True, xmp=xmp, exif=exif)
        case "jpeg":
            xmp, exif = recipe.as_xmp().encode(), _exif(recipe)
            shown.save(out, "JPEG", quality=_JPEG_QUALITY, subsampling=0, xmp=xmp, exif=exif)
    return out.getvalue()


def encoder_version() -> str:
    """Names what turns pixels into bytes: other versions may compress otherwise."""
    parts = ("pil", "zlib", "zlib_ng", "webp", "libjpeg_turbo")
    return " ".join(f"{part} {features.version(part)}" for part in parts)


def on_background(picture: Image.Image, background: str, *, alpha: bool = True) -> Image.Image:
    """`picture` over a colour, as RGB; as it is for `transparent`, if the format has `alpha`.

    Raises:
        ValueError: `background` is neither transparent, white nor #rrggbb.
    """
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    if background == "transparent" and alpha:
        return picture
    canvas = Image.new("RGBA", picture.size, (*_colour(background), 255))
    canvas.alpha_composite(picture)
    return canvas.convert("RGB")


def _colour(background: str) -> tuple[int, int, int]:
    if background in ("white", "transparent"):
        return (255, 255, 255)
    try:
        red, green, blue = bytes.fromhex(background.removeprefix("#"))
    except ValueError:
        raise ValueError(
            f"background {background!r} should be transparent, white or #rrggbb"
        ) from None
    return red, green, blue


def _png_texts(recipe: Recipe) -> PngInfo:
    texts = PngInfo()
    texts.add_text("parameters", recipe.as_parameters())
    texts.add_text(PNG_TEXT, recipe.as_json())
    texts.add_itxt(PNG_XMP, recipe.as_xmp())
    return texts


def _exif(recipe: Recipe) -> Image.Exif:
    """The parameters as EXIF user comment, where other programs look in formats without texts."""
    exif = Image.Exif()
    exif[Base.Software] = f"Avocat {recipe.version}"
    comment = b"UNICODE\0" + recipe.as_parameters().encode("utf-16-be")
    exif.get_ifd(IFD.Exif)[Base.UserComment] = comment
    return exif
