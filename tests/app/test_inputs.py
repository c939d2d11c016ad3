"""Pictures that jobs start from: what is taken, what is refused, and where the files go."""

import base64
import hashlib
import json
import struct
import time
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from app import keys
from app.bodies import largest
from app.garbage import collect
from app.jobs.record import JobStatus, Problem
from app.settings import Settings
from tests.app.service import CARD, Serve, Service

PROBLEM = Problem(type="/problems/x", title="X", status=500, detail="The device is gone")
KINDS = {"PNG": "png", "WEBP": "webp", "JPEG": "jpeg"}


def file_of(size: tuple[int, int] = (20, 10), kind: str = "PNG", mode: str = "RGB") -> bytes:
    out = BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, kind)
    return out.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def noisy_file(side: int) -> bytes:
    out = BytesIO()
    Image.effect_noise((side, side), 90).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_picture_is_stored_before_a_worker_can_know(service: Service, kind: str) -> None:
    data = file_of(kind=kind)
    job = await service.submit(init_image=data_url(data, KINDS[kind]))
    sha256 = hashlib.sha256(data).hexdigest()
    asked = job["request"]
    assert (asked["init_image"], asked["mask"], asked["strength"]) == (sha256, None, 0.8)
    assert job["progress"]["total_steps"] == 16  # of 20
    record = service.store.get(job["id"])
    assert record is not None
    [stored] = record.inputs
    assert (stored.role, stored.sha256, stored.bytes) == ("init_image", sha256, len(data))
    assert stored.name.startswith(job["id"])
    assert service.storage.read(stored.name) == data
    answer = await service.client.get(f"/v1/images/{stored.name}")
    assert answer.status_code == 404  # it is nobody's image


async def test_a_mask_and_the_defaults_under_it(service: Service) -> None:
    fields = {"init_image": data_url(file_of()), "mask": data_url(file_of(mode="L"))}
    job = await service.submit(**fields)
    assert job["request"]["strength"] == 1.0
    assert job["request"]["mask"] == hashlib.sha256(file_of(mode="L")).hexdigest()
    job = await service.submit(**fields, strength=0.25)
    assert job["progress"]["total_steps"] == 5


async def test_an_image_of_an_earlier_job_is_named_by_its_url(service: Service) -> None:
    earlier = await service.submit()
    service.draw(earlier["id"], data=file_of((16, 16)))
    [image] = (await service.job(earlier["id"]))["images"]
    path = image["url"].partition("?")[0]
    # The last one is what /v1/images/generations answers with.
    for reference in (image["url"], path, f"http://test:80{path}", f"https://test{image['url']}"):
        job = await service.submit(init_image=reference)
        assert job["request"]["init_image"] == image["sha256"]


async def test_an_image_of_another_key_is_none(serve: Serve) -> None:
    async with serve(api_keys="ann:aaaaaaaaaaaaaaaa,bob:bbbbbbbbbbbbbbbb") as service:
        ann, bob = ({"Authorization": f"Bearer {letter * 16}"} for letter in "ab")
        earlier = await service.submit(headers=ann)
        service.draw(earlier["id"], data=file_of((16, 16)))
        [image] = (await service.job_as(earlier["id"], ann))["images"]
        body = {"prompt": "x", "init_image": image["url"]}
        answer = await service.client.post("/v1/jobs", json=body, headers=bob)
        assert answer.status_code == 422
        assert "of yours" in answer.json()["errors"][0]["message"]


def bomb() -> bytes:
    """A PNG of 60,000 × 60,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def animated() -> bytes:
    out = BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"init_image": "https://example.com/a.png"}, "/init_image", "give a data URL"),
    ({"init_image": "data:image/gif;base64,R0lG"}, "/init_image", "give a data URL"),
    ({"init_image": "data:image/png;base64,@@"}, "/init_image", "not base64"),
    ({"init_image": data_url(b"GIF89a")}, "/init_image", "PNG, WebP or JPEG"),
    ({"init_image": data_url(file_of(), "jpeg")}, "/init_image", "says jpg, and the file is png"),
    ({"init_image": data_url(file_of()[:60])}, "/init_image", "damaged or cut short"),
    ({"init_image": data_url(bomb())}, "/init_image", "it is 60000x60000; at most"),
    ({"init_image": data_url(animated(), "webp")}, "/init_image", "it has 2 pictures"),
    ({"init_image": 7}, "/init_image", "valid string"),
    ({"init_image": data_url(file_of((9000, 1)))}, "/init_image", "8192 on a side"),
    ({"mask": data_url(file_of())}, "/mask", "needs an init_image"),
    ({"strength": 0.5}, "/strength", "needs an init_image"),
    ({"init_image": data_url(file_of()), "strength": 0}, "/strength", "greater than 0"),
    ({"init_image": data_url(file_of()), "strength": 0.01}, "/strength", "less than one"),
    (
        {"init_image": data_url(file_of()), "strength": 0.333, "steps": 3},
        "/strength",
        "least 0.334",
    ),
    (
        {"init_image": data_url(file_of()), "strength": 0.09, "steps": 11},
        "/strength",
        "least 0.091",
    ),
    ({"init_image": data_url(file_of()), "mask": data_url(file_of((10, 20)))}, "/mask", "20x10"),
    ({"init_image": data_url(file_of()), "mask": data_url(file_of()[:60])}, "/mask", "damaged"),
    (
        {"init_image": "/v1/images/01M83E76RQEB75JJK6YCCBPSR8_3f2a9c01_0.png"},
        "/init_image",
        "no image",
    ),
]


async def test_of_one_step_all_is_taken_unless_less_is_asked_for(service: Service) -> None:
    job = await service.submit(init_image=data_url(file_of()), steps=1)
    assert (job["request"]["strength"], job["progress"]["total_steps"]) == (1.0, 1)
    answer = await service.client.post(
        "/v1/jobs",
        json={"prompt": "x", "init_image": data_url(file_of()), "steps": 1, "strength": 0.8},
    )
    assert answer.status_code == 422


async def test_from_a_picture_guidance_acts_all_the_way(service: Service) -> None:
    """What a model saves at the end of the way may be all that is left of it."""
    card = CARD.model_copy(update={"default_guidance_interval": (0.0, 0.6)})
    service.redis.hset(keys.MODELS, card.name, card.model_dump_json())
    plain = await service.submit(seed=1)
    from_one = await service.submit(init_image=data_url(file_of()), strength=0.3)
    asked = await service.submit(
        init_image=data_url(file_of()), strength=0.3, guidance_interval=[0, 0.5]
    )
    intervals = [job["request"]["guidance_interval"] for job in (plain, from_one, asked)]
    assert intervals == [[0.0, 0.6], [0.0, 1.0], [0.0, 0.5]]


@pytest.mark.parametrize(("fields", "pointer", "said"), WRONG)
async def test_what_cannot_be_started_from_is_named(
    service: Service, fields: dict[str, Any], pointer: str, said: str
) -> None:
    answer = await service.client.post("/v1/jobs", json={"prompt": "x", **fields})
    assert answer.status_code == 422, answer.text
    [error] = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert said in error["message"]
    assert not list(service.storage.files())


@pytest.mark.parametrize("steps", [1, 3, 7, 49])
async def test_the_least_strength_that_is_named_is_taken(service: Service, steps: int) -> None:
    body = {"prompt": "x", "steps": steps, "init_image": data_url(file_of())}
    answer = await service.client.post("/v1/jobs", json={**body, "strength": 1e-6})
    [error] = answer.json()["errors"]
    least = float(error["message"].rpartition(" ")[2])
    job = await service.submit(**body, strength=least)
    assert job["progress"]["total_steps"] == 1


async def test_a_mask_with_transparency_is_taken_for_neither_kind(service: Service) -> None:
    shown = Image.new("RGBA", (20, 10), (255, 255, 255, 0))
    out = BytesIO()
    shown.save(out, "PNG")
    body = {"init_image": data_url(file_of()), "mask": data_url(out.getvalue())}
    answer = await service.client.post("/v1/jobs", json={"prompt": "x", **body})
    [error] = answer.json()["errors"]
    assert "has transparency; white is what a mask draws anew" in error["message"]


async def test_large_pictures_are_read_and_all_else_stays_small(serve: Serve) -> None:
    data = noisy_file(400)
    assert len(data) > 65536
    async with serve() as service:
        url = data_url(data)
        job = await service.submit(init_image=url)
        assert job["request"]["init_image"] == hashlib.sha256(data).hexdigest()
        escaped = json.dumps({"prompt": "x", "init_image": url}).replace("/", "\\/")
        kind = {"Content-Type": "application/json"}
        answer = await service.client.post("/v1/jobs", content=escaped, headers=kind)
        assert answer.status_code == 202
        for body in (
            {"prompt": "x", "init_image": url, "metadata": {"a": "b" * 70_000}},
            {"prompt": "x", "metadata": {"mask": url}},
            {"prompt": url},
        ):
            answer = await service.client.post("/v1/jobs", json=body)
            assert (answer.status_code, answer.json()["type"]) == (413, "/problems/body-too-large")


async def test_limits_of_a_picture_and_of_the_body(serve: Serve) -> None:
    async with serve(max_input_bytes=20_000) as service:
        body = {"prompt": "x", "init_image": data_url(noisy_file(150))}
        answer = await service.client.post("/v1/jobs", json=body)
        assert "the most is 20000" in answer.json()["errors"][0]["message"]
        body["init_image"] = data_url(b"\x89PNG\r\n\x1a\n" + bytes(100_000))
        answer = await service.client.post("/v1/jobs", json=body)
        assert answer.status_code == 413
        assert str(largest(Settings(max_input_bytes=20_000))) in answer.json()["detail"]


async def test_refused_and_replayed_submissions_leave_no_file(serve: Serve) -> None:
    async with serve(queue_cap=1) as service:
        key = {"Idempotency-Key": "one"}
        picture = data_url(file_of())
        job = await service.submit(init_image=picture, headers=key)
        body = {"prompt": "a red apple", "init_image": picture}
        again = await service.client.post("/v1/jobs", json=body, headers=key)
        assert (again.status_code, again.json()["id"]) == (200, job["id"])
        full = await service.client.post("/v1/jobs", json=body)
        assert full.status_code == 503
        assert [one.name.partition("_")[0] for one in service.storage.files()] == [job["id"]]


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled", "canceled in the queue"])
async def test_files_go_with_their_job(service: Service, status: str) -> None:
    data = file_of()
    job = await service.submit(init_image=data_url(data), mask=data_url(file_of(mode="L")))
    record = service.store.get(job["id"])
    assert record is not None
    names = {one.name for one in record.inputs}
    assert len(names) == 2
    assert not service.redis.zrange(keys.IMAGE_EXPIRY, 0, -1)
    if status == "canceled in the queue":
        await service.client.post(f"/v1/jobs/{job['id']}/cancel")
    elif status == "succeeded":
        service.draw(job["id"])
    else:
        service.take(job["id"])
        error = PROBLEM if status == "failed" else None
        assert service.store.finish(job["id"], "e1", JobStatus(status), error=error)
    expiring = dict(service.redis.zrange(keys.IMAGE_EXPIRY, 0, -1, withscores=True))
    assert names <= {name.decode() for name in expiring}
    assert all(at > time.time() for at in expiring.values())
    named = service.redis.get(keys.stored_input("anonymous", hashlib.sha256(data).hexdigest()))
    assert named is not None
    assert named.decode() in names


async def test_gc_keeps_what_jobs_start_from_and_finds_the_rest(service: Service) -> None:
    job = await service.submit(init_image=data_url(file_of()))
    gone = await service.submit(init_image=data_url(file_of()))
    service.redis.delete(keys.job(gone["id"]))
    found = collect(service.redis, service.storage, older_than_s=0, dry_run=False)
    assert [one.name.partition("_")[0] for one in found.images] == [gone["id"]]
    assert [one.name.partition("_")[0] for one in service.storage.files()] == [job["id"]]
    service.draw(job["id"])
    assert not collect(service.redis, service.storage, older_than_s=0, dry_run=True).images


async def test_a_repeat_starts_from_the_same_file(service: Service) -> None:
    first = {"init_image": data_url(file_of()), "seed": 7}
    job = await service.submit(**first)
    service.draw(job["id"])
    again = await service.client.post("/v1/jobs", json={"prompt": "a red apple", **first})
    assert (again.status_code, again.json()["cached"]) == (200, True)
    others = [{"init_image": data_url(file_of((22, 10)))}, {"strength": 0.5},
              {"mask": data_url(file_of(mode="L")), "strength": 0.8}]  # fmt: skip
    for other in others:
        assert (await service.submit(**first | other))["cached"] is False
    assert (await service.submit(seed=7))["cached"] is False


async def test_workers_of_the_release_before_leave_it_alone(service: Service) -> None:
    """They would draw it from noise."""
    plain, edited = await service.submit(), await service.submit(init_image=data_url(file_of()))
    formats = [service.redis.hget(keys.job(job["id"]), "format") for job in (plain, edited)]
    assert formats == [b"1", b"2"]
