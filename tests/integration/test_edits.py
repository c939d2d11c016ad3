"""Edits, variations and jobs that start from pictures, against a real service."""

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
from openai import OpenAI
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.client import Avocat, BadRequest
from tests.integration.service import Service, avocat

# Of the client, about what OpenAI itself serves no more: variations.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated")


def file_of(picture: Image.Image) -> bytes:
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def apple() -> Image.Image:
    shown = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    shown.paste((200, 40, 40, 255), (2, 2, 14, 14))
    return shown


def opened(b64_json: str | None) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(b64_json or ""))).convert("RGBA")


def test_openais_client_edits_and_varies(service: Service, apple: Image.Image) -> None:
    hole = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 8, 16))
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        edited = client.images.edit(
            image=file_of(apple), mask=file_of(hole), prompt="a green pear", size="16x16",
            extra_body={"seed": 3, "steps": 4},
        )  # fmt: skip
        [one] = [opened(image.b64_json) for image in edited.data or []]
        right = (8, 0, 16, 16)
        assert one.crop(right).tobytes() == apple.crop(right).tobytes()
        assert one.tobytes() != apple.tobytes()
        events = list(client.images.edit(
            image=[file_of(apple)], prompt="a green pear", stream=True, partial_images=1,
            extra_body={"seed": 3, "steps": 12},
        ))  # fmt: skip
        assert events[-1].type == "image_edit.completed"
        varied = client.images.create_variation(
            image=file_of(apple), n=2, extra_body={"seed": 3, "steps": 4}
        )
        assert len({image.b64_json for image in varied.data or []}) == 2


def test_a_picture_is_proved_while_what_it_started_from_is_there(
    service: Service, apple: Image.Image
) -> None:
    with Avocat(service.url) as client:
        [picture] = client.generate(
            "a green pear", init_image=file_of(apple), strength=0.5, seed=4, steps=6
        )
        assert client.verify(picture).verdict == "identical"
        [again] = client.generate(
            "a green pear", init_image=file_of(apple), strength=0.5, seed=4, steps=6
        )
        assert (again.job.cached, again.data) == (True, picture.data)
        [further] = client.generate("a fox", init_image=picture, strength=0.5, seed=4, steps=6)
        assert further.job.request.init_image == picture.image.sha256
        recipe = Image.open(BytesIO(picture.data)).info["avocat"]
        forged = json.loads(recipe) | {"init_image": "0" * 64}
        texts, out = PngInfo(), BytesIO()
        texts.add_text("avocat", json.dumps(forged))
        Image.open(BytesIO(picture.data)).save(out, "PNG", pnginfo=texts)
        said = client.verify(out.getvalue())
        assert said.verdict == "unverifiable"
        assert "no job of yours has the file any more" in said.reason
        with pytest.raises(BadRequest, match="/init_image"):
            client.submit("a fox", init_image=b"no picture")


def test_a_variation_is_proved_as_well(service: Service, apple: Image.Image) -> None:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        varied = client.images.create_variation(
            image=file_of(apple), extra_body={"seed": 9, "steps": 4}
        )
    with Avocat(service.url) as client:
        said = client.verify(base64.b64decode((varied.data or [])[0].b64_json or ""))
    assert said.verdict == "identical", said.reason


def test_the_command_line_starts_from_files(
    service: Service, apple: Image.Image, tmp_path: Path
) -> None:
    apple.save(tmp_path / "apple.png")
    anew = Image.new("L", (16, 16))
    anew.paste(255, (0, 0, 8, 16))
    anew.save(tmp_path / "mask.png")
    given = ["--init-image", str(tmp_path / "apple.png"), "--mask", str(tmp_path / "mask.png")]
    common = ["--server", service.url, "--steps", "4", "--size", "16x16", "--seed", "1"]
    out = tmp_path / "pear.png"
    ran = avocat("generate", "a pear", *given, *common, "-o", str(out))
    assert ran.returncode == 0, ran.stderr
    right = (8, 0, 16, 16)
    assert Image.open(out).crop(right).tobytes() == apple.crop(right).tobytes()
    missing = avocat("generate", "a pear", "--init-image", "nothing.png", *common)
    assert missing.returncode == 2
    assert "nothing.png" in missing.stderr
