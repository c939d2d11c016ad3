"""`POST /v1/verify`; the test plays the worker that draws the picture again."""

import asyncio
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app import keys
from app.jobs.recipe import PNG_TEXT, PNG_XMP, Recipe, recipe_in_xmp
from app.jobs.record import JobStatus, Problem
from tests.app.service import CARD, Serve, Service, listening, until
from worker.encoding import encode

RECIPE = Recipe(
    prompt="a red apple", negative_prompt=None, seed=7, steps=20, sampler="dpmpp_2m",
    guidance_scale=3.0, guidance_interval=(0.0, 1.0), size="16x16", background="transparent",
    output_format="png", model="tiny", bundle_sha256=CARD.bundle_sha256,
    fingerprint=CARD.fingerprint,
)  # fmt: skip
QUEUE = keys.rq_queue("normal")


def recipe(**changes: Any) -> Recipe:
    return RECIPE.model_copy(update=changes)


def drawing(size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Many alphas, and a colour under full transparency."""
    image = Image.frombytes("RGBA", (16, 16), bytes(i * 7 % 256 for i in range(1024)))
    image.putpixel((5, 5), (9, 8, 7, 0))
    return image.resize(size)


PNG = encode(drawing(), RECIPE)
WEBP = encode(drawing(), recipe(output_format="webp"))


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def texts(made: Recipe = RECIPE, key: str = PNG_TEXT) -> PngInfo:
    info = PngInfo()
    info.add_itxt(key, made.as_json() if key == PNG_TEXT else made.as_xmp())
    return info


def png_of(made: Recipe) -> bytes:
    return saved(drawing(), pnginfo=texts(made))


async def ask(service: Service, data: bytes, kind: str = "image/png") -> httpx.Response:
    return await service.client.post("/v1/verify", content=data, headers={"content-type": kind})


async def answered(service: Service, data: bytes, kind: str = "image/png") -> Any:
    """The answer to a picture that should need no drawing."""
    answer = await ask(service, data, kind)
    assert answer.status_code == 200, answer.text
    assert (service.redis.llen(QUEUE), answer.json()["job_id"]) == (0, None)
    return answer.json()


async def verified(
    service: Service, data: bytes, kind: str = "image/png", redrawn: bytes = PNG
) -> Any:
    """The answer to a picture, where the worker draws `redrawn`."""

    async def draw() -> str:
        await until(lambda: service.redis.llen(QUEUE))
        job = service.redis.lindex(QUEUE, 0).decode()
        service.draw(job, data=redrawn)
        return str(job)

    answer, job = await asyncio.gather(ask(service, data, kind), draw())
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-job-id"] == answer.json()["job_id"] == job
    return answer.json()


async def test_a_picture_as_it_was_given(service: Service) -> None:
    said = await verified(service, PNG)
    assert said["verdict"] == "identical"
    assert said["recipe"] == RECIPE.model_dump(mode="json")
    assert (said["fingerprint"], "256" in said["reason"]) == (RECIPE.fingerprint, True)
    request = (await service.job(said["job_id"]))["request"]
    assert {name: request[name] for name in ("seed", "n", "cache", "priority")} == {
        "seed": 7, "n": 1, "cache": False, "priority": "normal"
    }  # fmt: skip
    assert (await verified(service, PNG))["job_id"] != said["job_id"]  # never from storage


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (saved(drawing(), pnginfo=texts(), compress_level=1), "image/png"),
        (saved(drawing(), pnginfo=texts(key=PNG_XMP)), "image/png"),
        (saved(drawing(), "WEBP", lossless=True, exact=True, xmp=RECIPE.as_xmp()), "image/webp"),
    ],
)
async def test_the_same_pixels_in_another_file(service: Service, data: bytes, kind: str) -> None:
    assert data != PNG
    assert (await verified(service, data, kind))["verdict"] == "identical"


async def test_a_text_behind_the_pixels_and_a_palette(service: Service) -> None:
    plain = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    redrawn = encode(plain, RECIPE)
    text = b"tEXt" + PNG_TEXT.encode() + b"\0" + RECIPE.as_json().encode()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    small = saved(plain.convert("RGB").quantize(2))
    moved = small[:-12] + chunk + small[-12:]
    assert (await verified(service, moved, redrawn=redrawn))["verdict"] == "identical"


def changed(change: Callable[[Image.Image], object]) -> bytes:
    image = drawing()
    change(image)
    return saved(image, pnginfo=texts())


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda image: image.putpixel((3, 3), (1, 2, 3, 4)), 1),
        (lambda image: image.putpixel((5, 5), (9, 8, 6, 0)), 1),  # though nobody sees it
        (lambda image: image.putalpha(255), 256),
    ],
)
async def test_other_pixels(
    service: Service, change: Callable[[Image.Image], object], count: int
) -> None:
    said = await verified(service, changed(change))
    assert (said["verdict"], said["reason"]) == ("different", f"{count} of 256 pixels differ")


async def test_what_is_different_without_drawing(service: Service) -> None:
    larger = saved(drawing((32, 32)), pnginfo=texts())
    huge = saved(Image.new("1", (9000, 9000)), pnginfo=texts(recipe(size="32x32")))
    frames = [drawing(), drawing().rotate(90)]
    moving = saved(frames[0], pnginfo=texts(), save_all=True, append_images=frames[1:])
    reasons = []
    for data in (larger, huge, moving):
        said = await answered(service, data)
        assert said["verdict"] == "different"
        reasons.append(said["reason"])
    assert ["32x32" in reasons[0], "9000x9000" in reasons[1], "2 pictures" in reasons[2]] == [
        *(True, True, True)
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (saved(drawing()), "no recipe"),
        (saved(Image.new("1", (9000, 9000))), "no recipe"),
        (png_of(recipe(steps=10**30)), "/steps"),
        (png_of(recipe(prompt="a\nb", size="1x1")), "/size"),
        (png_of(recipe(sampler="plms")), "no recipe"),
        (png_of(recipe(guidance_scale=float("nan"))), "no recipe"),
        (png_of(recipe(prompt="\ud800")), "no recipe"),
        (png_of(recipe(prompt="x" * 70000)), "no recipe"),
        (png_of(recipe(fingerprint="0" * 32)), "another kind of device"),
        (png_of(recipe(fingerprint="0" * 32, bundle_sha256="0" * 64)), "not served here"),
    ],
)
async def test_what_cannot_be_verified(service: Service, data: bytes, said: str) -> None:
    answer = await answered(service, data)
    assert answer["verdict"] == "unverifiable"
    assert said in answer["reason"]
    assert (answer["recipe"] is None) == (said == "no recipe")


@pytest.mark.parametrize(
    ("claimed", "redrawn", "names"),
    [
        ({"model": "dall-e"}, {}, "model"),
        ({"prompt": " a red apple"}, {}, "prompt"),
        ({"bundle_sha256": "0" * 64}, {}, "bundle_sha256"),
        ({}, {"fingerprint": "0" * 32}, "fingerprint"),  # another kind of worker took the job
    ],
)
async def test_a_claim_is_not_taken_for_true(
    service: Service, claimed: dict[str, Any], redrawn: dict[str, Any], names: str
) -> None:
    said = await verified(
        service, png_of(recipe(**claimed)), redrawn=encode(drawing(), recipe(**redrawn))
    )
    assert said["verdict"] == "unverifiable"
    assert said["reason"].endswith(f": {names}")


async def test_another_version_may_have_drawn_it(service: Service) -> None:
    assert (await verified(service, png_of(recipe(version="0.0.1"))))["verdict"] == "identical"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("image/jpeg", 415), ("", 415), ("application/json", 415), ("image/png, image/webp", 415),
        ("image/png", 422), ("IMAGE/WEBP; q=1", 422),
    ],
)  # fmt: skip
async def test_other_bodies_are_refused(service: Service, kind: str, status: int) -> None:
    answer = await ask(service, saved(drawing().convert("RGB"), "JPEG"), kind)
    assert answer.status_code == status
    assert answer.json()["type"].startswith("/problems/")


async def test_compressed_bodies_are_refused(service: Service) -> None:
    headers = {"content-type": "image/png", "content-encoding": "gzip"}
    answer = await service.client.post("/v1/verify", content=PNG, headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "image/png"), (PNG[:-200], "image/png"), (PNG[:40], "image/png"),
        (PNG, "image/webp"), (WEBP, "image/png"), (WEBP[: len(WEBP) // 2], "image/webp"),
        (PNG.replace(b"IDAT", b"IDAX"), "image/png"), (b"RIFF" + b"\xff" * 99, "image/webp"),
    ],
)  # fmt: skip
async def test_damaged_files_are_refused(service: Service, data: bytes, kind: str) -> None:
    answer = await ask(service, data, kind)
    assert answer.status_code == 422, answer.text
    [error] = answer.json()["errors"]
    assert error["message"].startswith(f"Not a whole {kind} file: ")
    assert service.redis.llen(QUEUE) == 0


async def test_large_bodies_over_a_real_connection(serve: Serve) -> None:
    padded = PNG + b"\0" * (5 << 20)
    async with serve(api_keys="ann:a", queue_cap=1) as service, listening(service.app) as url:
        headers = {"content-type": "image/png"}
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            stranger = await client.post("/v1/verify", content=padded, headers=headers)
            headers["authorization"] = "Bearer a"
            over = await client.post("/v1/verify", content=b"\0" * (9 << 20), headers=headers)
            await service.submit(headers={"authorization": "Bearer a"})
            full = await client.post("/v1/verify", content=padded, headers=headers)
    assert [one.status_code for one in (stranger, over, full)] == [401, 413, 503]
    assert over.json()["type"] == "/problems/body-too-large"
    assert full.json()["type"] == "/problems/queue-full"  # so it was read and understood


async def test_limits_and_ends_of_the_job(serve: Serve) -> None:
    async with serve(rate_limit_per_minute=2, sync_timeout_s=1) as service:
        late = await ask(service, PNG)
        assert (late.status_code, late.json()["type"]) == (504, "/problems/job-not-finished")
        assert late.headers["x-job-id"] in late.json()["detail"]
        assert (await service.job(late.headers["x-job-id"]))["status"] == "queued"
        service.redis.delete(QUEUE)

        async def fail() -> None:
            await until(lambda: service.redis.llen(QUEUE))
            job = service.redis.lindex(QUEUE, 0).decode()
            service.take(job)
            problem = Problem(type="/problems/x", title="X", status=500, detail="The device")
            service.store.finish(job, "e1", JobStatus.FAILED, error=problem)

        failed, _ = await asyncio.gather(ask(service, PNG), fail())
        assert (failed.status_code, failed.json()["type"]) == (500, "/problems/job-failed")
        assert (await ask(service, PNG)).status_code == 429


async def test_hanging_up_cancels(service: Service) -> None:
    async with listening(service.app) as url, httpx.AsyncClient(base_url=url) as client:
        headers = {"content-type": "image/png"}
        call = asyncio.create_task(client.post("/v1/verify", content=PNG, headers=headers))
        await until(lambda: service.redis.llen(QUEUE))
        job = service.redis.lindex(QUEUE, 0).decode()
        call.cancel()
        await until(lambda: service.redis.hget(keys.job(job), "status") == b"canceled")


def test_recipes_in_xmp() -> None:
    packet = RECIPE.as_xmp()
    odd = RECIPE.model_copy(update={"prompt": "<!DOCTYPE \"'&> 🥑"})
    assert Recipe.read(recipe_in_xmp(odd.as_xmp().encode()) or "") == odd
    attribute = packet[packet.index("\n avocat:recipe=") : packet.index("/>\n</rdf:RDF>")]
    inner = attribute.partition("=")[2][1:-1]
    element = f"><avocat:recipe>{inner}</avocat:recipe></rdf:Description>\n</rdf:RDF>"
    moved = packet.replace(attribute, "").replace("/>\n</rdf:RDF>", element)
    assert Recipe.read(recipe_in_xmp(moved.encode()) or "") == RECIPE
    growing = f'<!DOCTYPE x [<!ENTITY a "aaaa">]>{packet}'
    for other in (b"", b"<", b"\xff\xfe", b"<x/>", growing.encode(), packet[:400].encode()):
        assert recipe_in_xmp(other) is None
