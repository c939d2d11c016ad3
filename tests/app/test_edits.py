"""OpenAI's own client, unmodified, at edits and variations; the test plays the worker."""

import asyncio
import base64
import hashlib
from io import BytesIO
from typing import Any

import openai
import pytest
from PIL import Image

from app import keys
from tests.app.service import PNG, Serve, Service
from tests.app.test_inputs import file_of
from tests.app.test_openai import canceled, drawn, queued, speaking


def cut_out(size: tuple[int, int] = (20, 10)) -> bytes:
    """A mask as OpenAI has it: what is transparent is drawn anew."""
    shown = Image.new("RGBA", size, (10, 200, 30, 255))
    shown.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    out = BytesIO()
    shown.save(out, "PNG")
    return out.getvalue()


async def test_an_edit_with_all_its_parts(service: Service) -> None:
    data = file_of()
    more = {
        "seed": 7, "steps": 10, "strength": 0.5, "guidance_scale": 2.5, "sampler": "ddim",
        "background": "opaque", "input_fidelity": "high",
    }  # fmt: skip
    async with speaking(service) as client:
        call = client.images.with_raw_response.edit(
            image=data, mask=cut_out(), prompt="a red apple", n=2, size="32x32", model="tiny",
            output_format="webp", user="me", quality="high", extra_body=more,
        )  # fmt: skip
        answer, job = await asyncio.gather(call, drawn(service))
    images = answer.parse()
    assert answer.headers["x-job-id"] == job
    assert [base64.b64decode(one.b64_json) for one in images.data] == [PNG, PNG]
    request = (await service.job(job))["request"]
    expected = {
        "prompt": "a red apple", "n": 2, "size": "32x32", "seed": 7, "steps": 10,
        "strength": 0.5, "guidance_scale": 2.5, "sampler": "ddim", "background": "white",
        "output_format": "webp", "init_image": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    assert {name: request[name] for name in expected} == expected
    record = service.store.get(job)
    assert record is not None
    mask = Image.open(BytesIO(service.storage.read(record.inputs[1].name)))
    assert (mask.mode, mask.size) == ("L", (20, 10))
    assert [mask.getpixel((x, 5)) for x in (0, 9, 10, 19)] == [255, 255, 0, 0]


async def test_several_pictures_come_as_a_list_and_the_first_is_drawn_over(
    service: Service,
) -> None:
    first, second = file_of(), file_of((8, 8), "WEBP")
    async with speaking(service) as client:
        call = client.images.edit(image=[first, second], prompt="x", response_format="url")
        images, job = await asyncio.gather(call, drawn(service))
        assert (await service.client.get(images.data[0].url)).content == PNG
    request = (await service.job(job))["request"]
    assert request["init_image"] == hashlib.sha256(first).hexdigest()
    assert (request["strength"], request["mask"]) == (0.8, None)


async def test_a_stream_of_an_edit(service: Service) -> None:
    async with speaking(service) as client:
        playing = asyncio.create_task(drawn(service))
        stream = await client.images.edit(image=file_of(), prompt="x", stream=True)
        events = [event async for event in stream]
        await playing
    assert [event.type for event in events] == ["image_edit.completed"]
    assert base64.b64decode(events[0].b64_json) == PNG


@pytest.mark.filterwarnings("ignore:deprecated")  # says the client of what OpenAI serves no more
async def test_a_variation_has_no_prompt(service: Service) -> None:
    async with speaking(service) as client:
        call = client.images.create_variation(
            image=("a.png", file_of()), n=2, size="32x32", user="me", extra_body={"seed": 3}
        )
        images, job = await asyncio.gather(call, drawn(service))
    assert len(images.data) == 2
    request = (await service.job(job))["request"]
    assert (request["prompt"], request["strength"], request["seed"]) == ("", 0.8, 3)
    record = service.store.get(job)
    assert record is not None
    assert record.request.is_variation


WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"image": b"GIF89a"}, "image", "PNG, WebP or JPEG"),
    ({"image": file_of()[:50]}, "image", "damaged or cut short"),
    ({"mask": file_of()}, "mask", "nothing of the mask is transparent"),
    ({"mask": cut_out((10, 10))}, "mask", "The mask is 10x10; it should be 20x10"),
    ({"n": 9}, "n", "less than or equal to 8"),
    ({"size": "1024x1024"}, "size", "16x16, 32x32"),
    ({"extra_body": {"seed": "seven"}}, "seed", "valid integer"),
    ({"extra_body": {"strength": 2}}, "strength", "less than or equal to 1"),
    ({"extra_body": {"setps": 3}}, "setps", "No such field"),
    ({"extra_body": {"init_image": "x"}}, "init_image", "No such field"),
    ({"extra_body": {"stream": "perhaps"}}, "stream", "valid boolean"),
    ({"prompt": " "}, "prompt", "blank"),
    ({"n": 0, "image": b"x"}, None, "n: Input should be greater"),
]


@pytest.mark.parametrize(("fields", "param", "said"), WRONG)
async def test_wrong_parts(
    service: Service, fields: dict[str, Any], param: str | None, said: str
) -> None:
    async with speaking(service) as client:
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            await client.images.edit(**{"image": file_of(), "prompt": "x"} | fields)
    assert said in caught.value.message
    assert param is None or caught.value.param == param
    assert not service.redis.llen(keys.rq_queue("normal"))
    assert not list(service.storage.files())


EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


async def test_bodies_that_are_no_form(service: Service) -> None:
    post = service.client.post
    answers = [
        await post(EDITS, json={"prompt": "x"}),
        await post(EDITS, content=b"nothing", headers={"Content-Type": "multipart/form-data"}),
        await post(EDITS, content=b"no boundary", headers=FORM),
        await post(EDITS, data={"prompt": "x", "image": "y"}, files={"other": b"z"}),
        await post(VARIATIONS, files={"image": file_of()}, data={"prompt": "x", "mask": "y"}),
    ]
    assert [answer.status_code for answer in answers] == [415, 400, 400, 422, 422]
    errors = [answer.json()["error"] for answer in answers]
    assert errors[1]["code"] == "malformed_form"
    assert "other: No such file" in errors[3]["message"]
    assert "image: Should be a file" in errors[3]["message"]
    for name in ("mask", "prompt"):
        assert f"{name}: No such field" in errors[4]["message"]


async def test_a_form_that_is_too_large(serve: Serve) -> None:
    async with serve(max_input_bytes=20_000) as service:
        for size, status, said in ((30_000, 422, "the most is 20000"), (200_000, 413, "over")):
            files = {"image": file_of() + bytes(size)}
            answer = await service.client.post(EDITS, files=files, data={"prompt": "x"})
            assert (answer.status_code, said in answer.text) == (status, True)


async def test_hanging_up_cancels(service: Service) -> None:
    async with speaking(service) as client:
        call = asyncio.create_task(client.images.edit(image=file_of(), prompt="x"))
        job = await queued(service)
        call.cancel()
        await canceled(service, job)
