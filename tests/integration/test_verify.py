"""Every format, size and background through the whole service, and the pictures verified again."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from app.client import AsyncAvocat, Avocat, BadRequest
from tests.integration.service import Service, avocat

pytestmark = pytest.mark.slow

FORMATS = ("png", "webp", "jpeg")
BACKGROUNDS = ("transparent", "white", "#ff0088")
MARK = b"digitalsourcetype/trainedAlgorithmicMedia"


def parameters(image: Image.Image) -> str:
    """The text that other programs look for."""
    if image.format == "PNG":
        return str(image.info["parameters"])
    comment = image.getexif().get_ifd(IFD.Exif)[Base.UserComment]
    return str(comment.removeprefix(b"UNICODE\0").decode("utf-16-be"))


def check(data: bytes, request: dict[str, Any]) -> Image.Image:
    """The file is what was asked for, and says so; its picture."""
    image = Image.open(io.BytesIO(data))
    assert image.format == request["output_format"].upper()
    assert f"{image.width}x{image.height}" == request["size"]
    assert image.mode == ("RGBA" if request["background"] == "transparent" else "RGB")
    assert parameters(image).splitlines()[0] == request["prompt"]
    assert f"Seed: {request['seed']}," in parameters(image)
    assert MARK in data
    return image


def test_every_format_size_and_background(service: Service) -> None:
    [model] = service.http.get("/v1/models").json()["data"]
    assert len(model["sizes"]) == 3
    asked = {
        (name, size, background): service.submit(
            "a key", seed=3, steps=2, size=size, output_format=name, background=background
        )["id"]
        for name, size, background in itertools.product(FORMATS, model["sizes"], BACKGROUNDS)
        if (name, background) != ("jpeg", "transparent")
    }
    jobs = {what: service.finished(job) for what, job in asked.items()}
    files = {what: service.pictures(job)[0] for what, job in jobs.items()}
    images = {what: check(files[what], jobs[what]["request"]) for what in files}
    for (name, size, background), image in images.items():
        if name == "webp":  # without loss
            assert image.tobytes() == images["png", size, background].tobytes()
    with Avocat(service.url) as client:
        for (name, *_), data in files.items():
            if name == "jpeg":
                with pytest.raises(BadRequest) as refused:
                    client.verify(data)
                assert refused.value.problem.type == "/problems/unsupported-media-type"
            else:
                said = client.verify(data)
                assert (said.verdict, said.fingerprint) == ("identical", model["fingerprint"])


def test_the_best_of_several_verify_by_their_own_seeds(service: Service) -> None:
    with Avocat(service.url) as client:
        for picture in client.generate("a cat", n=2, best_of=5, seed=90, steps=3):
            said = client.verify(picture)
            assert said.recipe is not None
            assert (said.verdict, said.recipe.seed) == ("identical", picture.seed)


@pytest.mark.parametrize("size", ["16x16", "64x64"])
def test_a_scene_verifies_as_one_and_painted_whole(
    service: Service, tmp_path: Path, size: str
) -> None:
    prompt, fields = "two cats wearing sunglasses inside an avocado", {"seed": 5, "steps": 3}
    with Avocat(service.url) as client:
        [scene] = client.generate(prompt, size=size, **fields)
        [whole] = client.generate(prompt, size=size, compose=False, **fields)
        assert scene.job.request.scene is not None
        assert scene.job.request.scene.layers == ("a cat", "sunglasses", "an avocado")
        assert (scene.job.request.compose, whole.job.request.compose) == (True, False)
        assert whole.job.request.scene is None
        assert scene.data != whole.data
        for picture in (scene, whole):
            said = client.verify(picture)
            assert said.recipe is not None
            assert (said.verdict, said.recipe.prompt) == ("identical", prompt)
    given = ("--seed", "5", "--steps", "3", "--size", size, "--server", service.url)
    for option, picture in (("--compose", scene), ("--whole", whole)):
        file = tmp_path / f"{option}.png"
        assert avocat("generate", prompt, option, *given, "-o", str(file)).returncode == 0
        assert file.read_bytes() == picture.data


async def test_one_pixel_is_found(service: Service, tmp_path: Path) -> None:
    async with AsyncAvocat(service.url) as client:
        [picture] = await client.generate("a cat", seed=1, steps=3)
        again = await client.generate("a cat", seed=1, steps=3)
        assert (again[0].job.cached, again[0].data) == (True, picture.data)
        image = Image.open(io.BytesIO(picture.data))
        red, *others = image.getpixel((3, 5))
        image.putpixel((3, 5), (red ^ 1, *others))
        changed, info = tmp_path / "changed.png", PngInfo()
        info.add_text("avocat", image.info["avocat"])
        image.save(changed, pnginfo=info)
        said = await client.verify(changed)
    assert (said.verdict, said.reason) == ("different", "1 of 256 pixels differ")
    whole = picture.save(tmp_path / "whole.png")
    server = ("--server", service.url)
    both = avocat("verify", str(whole), str(changed), "--json", *server)
    assert both.returncode == 1
    lines = [json.loads(line) for line in both.stdout.splitlines()]
    assert [line["verdict"] for line in lines] == ["identical", "different"]
    assert avocat("verify", str(whole), *server).returncode == 0
    text = tmp_path / "text.png"
    text.write_text("no picture")
    three = avocat("verify", str(text), str(changed), str(whole), *server)
    assert (three.returncode, len(three.stdout.splitlines())) == (2, 2)
    assert str(text) in three.stderr
    for option in ("--cache", "--no-cache"):
        out = ("-o", str(tmp_path / "cat.png"), "--size", "16x16", option, "--json", *server)
        made = avocat("generate", "a cat", "--seed", "1", "--steps", "3", *out)
        assert json.loads(made.stdout)["cached"] is (option == "--cache")
        assert (tmp_path / "cat.png").read_bytes() == picture.data
