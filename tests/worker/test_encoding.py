"""Bytes of pictures: formats, backgrounds, and the recipe inside."""

import io
import json
from xml.etree import ElementTree

import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base

from app.jobs.recipe import Recipe
from worker.encoding import encode, on_background

ODD = 'a "cat" & <dog> 🥑 \u202eRTL\u202c \ud800 \x00 é'


def recipe(**changes: object) -> Recipe:
    fields = {
        "prompt": "a red apple", "negative_prompt": "blur", "seed": 7, "steps": 25,
        "sampler": "dpmpp_2m", "guidance_scale": 3.0, "guidance_interval": (0.0, 1.0),
        "size": "4x4", "background": "transparent", "output_format": "png", "model": "tiny",
        "bundle_sha256": "ab" * 32, "fingerprint": "f" * 32,
    }  # fmt: skip
    return Recipe.model_construct(**{**fields, "version": "0", **changes})  # type: ignore[arg-type]


def picture() -> Image.Image:
    pixels = bytes([255, 0, 0, 255] * 4 + [0, 0, 255, 128] * 4 + [0, 0, 0, 0] * 8)
    return Image.frombytes("RGBA", (4, 4), pixels)


def opened(made: Recipe) -> Image.Image:
    image = Image.open(io.BytesIO(encode(picture(), made)))
    image.load()
    return image


def mark(xmp: bytes | str) -> str | None:
    root = ElementTree.fromstring(xmp if isinstance(xmp, str) else xmp.decode())  # noqa: S314 - ours
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    return next((node.attrib[name] for node in root.iter() if name in node.attrib), None)


TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_a_png_carries_its_recipe_and_the_mark() -> None:
    image = opened(recipe())
    assert image.mode == "RGBA"
    assert image.text["parameters"].splitlines() == [
        "a red apple",
        "Negative prompt: blur",
        "Steps: 25, Sampler: dpmpp_2m, CFG scale: 3, Seed: 7, Size: 4x4, "
        "Model hash: ababababab, Model: tiny, Version: avocat 0",
    ]
    assert Recipe.model_validate_json(image.text["avocat"]) == recipe()
    assert mark(image.text["XML:com.adobe.xmp"]) == TRAINED


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_other_formats_carry_them_too(output_format: str) -> None:
    made = recipe(output_format=output_format)
    image = opened(made)
    assert mark(image.info["xmp"]) == TRAINED
    comment = image.getexif().get_ifd(IFD.Exif)[Base.UserComment]
    assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == made.as_parameters()


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_odd_prompts_fit_into_every_format(output_format: str) -> None:
    made = recipe(prompt=ODD, negative_prompt=None, output_format=output_format)
    image = opened(made)
    xmp = image.text["XML:com.adobe.xmp"] if output_format == "png" else image.info["xmp"]
    assert mark(xmp) == TRAINED
    assert json.loads(made.as_json())["prompt"] == ODD
    assert made.as_parameters().startswith('a "cat" & <dog> 🥑')


def test_webp_is_lossless() -> None:
    assert opened(recipe(output_format="webp")).tobytes() == picture().tobytes()


@pytest.mark.parametrize(
    ("background", "expected"),
    [
        ("transparent", [(255, 0, 0, 255), (0, 0, 255, 128), (0, 0, 0, 0)]),
        ("white", [(255, 0, 0), (127, 127, 255), (255, 255, 255)]),
        ("#00ff00", [(255, 0, 0), (0, 127, 128), (0, 255, 0)]),
    ],
)
def test_backgrounds(background: str, expected: list[tuple[int, ...]]) -> None:
    image = opened(recipe(background=background))
    assert [image.getpixel((0, y)) for y in range(3)] == expected


def test_a_format_without_alpha_gets_white() -> None:
    image = opened(recipe(output_format="jpeg"))
    assert image.mode == "RGB"
    assert min(image.getpixel((0, 3))) > 250


@pytest.mark.parametrize("background", ["#12", "pink", "#gggggg", "", "#1122334455"])
def test_other_backgrounds_are_refused(background: str) -> None:
    with pytest.raises(ValueError, match="should be transparent, white or #rrggbb"):
        on_background(picture(), background)


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_the_same_picture_gives_the_same_bytes(output_format: str) -> None:
    made = recipe(output_format=output_format)
    assert encode(picture(), made) == encode(picture(), made)
