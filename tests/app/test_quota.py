"""The storage quota: what is accepted is always stored, and room comes from expired images only."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app import keys
from app.jobs.record import JobRequest, JobStatus, Problem
from app.jobs.room import Room
from app.jobs.scene import read_scene
from app.jobs.store import JobStore
from tests.app.service import CARD, PNG, Serve, Service
from worker.encoding import encode
from worker.ledger import Ledger
from worker.recovery import Recovery

REQUEST = {"prompt": "a red apple", "size": "16x16"}
NEED = JobRequest(
    prompt="a red apple", model="tiny", seed=1, steps=1, sampler="ddim", guidance_scale=1,
    size="16x16", background="white",
).most_bytes  # fmt: skip


def use(service: Service) -> tuple[int, int]:
    stored, promised = service.redis.hmget(keys.STORAGE_USE, "stored", "promised")
    return int(stored or 0), int(promised or 0)


def sweep(service: Service) -> Recovery:
    """The upkeep of a worker."""
    redis: Any = service.redis
    ledger = Ledger(redis, "sweeper", 15)
    return Recovery(redis, JobStore(redis), ledger, service.storage)


def expire(service: Service, name: str) -> None:
    service.redis.zadd(keys.IMAGE_EXPIRY, {name: time.time() - 1})


async def test_what_is_promised_and_stored_is_counted_and_given_back(serve: Serve) -> None:
    async with serve(storage_quota_bytes=10 * NEED) as service:
        job = await service.submit(**REQUEST)
        canceled = await service.submit(**REQUEST)
        failed = await service.submit(**REQUEST)
        assert use(service) == (0, 3 * NEED)
        await service.client.delete(f"/v1/jobs/{canceled['id']}")
        service.take(failed["id"], "e2")
        error = Problem(type="/problems/x", title="x", status=500, detail="x")
        service.store.finish(failed["id"], "e2", JobStatus.FAILED, error=error)
        [image] = service.draw(job["id"])
        assert use(service) == (len(PNG), 0)
        expire(service, image.name)
        assert sweep(service).expire_images() == 1
        assert use(service) == (0, 0)
        assert not service.storage.exists(image.name)


async def test_a_full_storage_refuses_and_deletes_nothing_that_is_kept(serve: Serve) -> None:
    async with serve(storage_quota_bytes=NEED + len(PNG), retention_s=30) as service:
        [kept] = service.draw((await service.submit(**REQUEST))["id"])
        waiting = await service.submit(**REQUEST)  # it has been promised the rest
        refused = await service.client.post("/v1/jobs", json=REQUEST)
        assert refused.status_code == 503
        assert refused.json()["type"] == "/problems/storage-full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert sweep(service).expire_images() == 0
        assert service.storage.exists(kept.name)
        assert (await service.job(waiting["id"]))["status"] == "queued"
        service.draw(waiting["id"])  # accepted, so there is room for it
        assert sum(use(service)) <= NEED + len(PNG)


async def test_retry_after_is_when_the_oldest_image_expires(serve: Serve) -> None:
    async with serve(storage_quota_bytes=2 * len(PNG) + NEED - 1, retention_s=40) as service:
        for _ in range(2):
            service.draw((await service.submit(**REQUEST))["id"])
        refused = await service.client.post("/v1/jobs", json=REQUEST)
        assert 40 <= int(refused.headers["retry-after"]) <= 42  # its time, and that to delete it
        oldest = service.redis.zrange(keys.IMAGE_EXPIRY, 0, 0)[0].decode()
        expire(service, oldest)
        sweep(service).expire_images()
        assert (await service.client.post("/v1/jobs", json=REQUEST)).status_code == 202


async def test_the_oldest_expired_image_goes_first(serve: Serve) -> None:
    async with serve() as service:
        names = [service.draw((await service.submit(**REQUEST))["id"])[0].name for _ in range(3)]
        now = time.time()
        service.redis.zadd(keys.IMAGE_EXPIRY, {names[0]: now - 1, names[2]: now - 9})
        assert [name.decode() for name in Room(service.redis).expired(now, 9)] == [
            names[2],
            names[0],
        ]
        assert Room(service.redis).expired(now, 1) == [names[2].encode()]


async def test_many_at_once_are_never_promised_more_than_there_is(serve: Serve) -> None:
    async with serve(storage_quota_bytes=10 * NEED + NEED // 2) as service:
        calls = (service.client.post("/v1/jobs", json=REQUEST) for _ in range(40))
        statuses = [answer.status_code for answer in await asyncio.gather(*calls)]
        assert (statuses.count(202), statuses.count(503)) == (10, 30)


async def test_pictures_of_an_earlier_job_take_room_too(serve: Serve) -> None:
    asked = REQUEST | {"seed": 7}
    async with serve(storage_quota_bytes=NEED + len(PNG) - 1) as service:
        service.draw((await service.submit(**asked))["id"])
        service.redis.hset(keys.STORAGE_USE, "stored", NEED)  # others have come meanwhile
        refused = await service.client.post("/v1/jobs", json=asked)
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/storage-full")
        assert len(list(service.storage.files())) == 1  # nothing is left of the attempt


async def test_the_books_are_mended(serve: Serve) -> None:
    """Workers of an earlier release delete images and end jobs without a word."""
    async with serve(storage_quota_bytes=10 * NEED) as service:
        [image] = service.draw((await service.submit(**REQUEST))["id"])
        ended = await service.submit(**REQUEST)
        await service.submit(**REQUEST)
        service.redis.zrem(keys.IMAGE_EXPIRY, image.name)
        service.redis.hset(keys.job(ended["id"]), "status", "failed")
        Room(service.redis).mend()
        assert use(service) == (0, NEED)


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_no_picture_takes_more_than_it_was_promised(output_format: str) -> None:
    """Noise cannot be compressed, every character is escaped, and a scene has some of it again."""
    from random import Random

    from app.jobs.recipe import Recipe

    prompt = f"a cat and a dog, {'𝔸' * 980}"
    request = JobRequest(
        prompt=prompt, negative_prompt="\U000e0001" * 1000, model="tiny", seed=1, steps=1,
        sampler="ddim", guidance_scale=1, size="64x64", background="white",
        output_format=output_format, compose=True, scene=read_scene(prompt),
    )  # fmt: skip
    assert request.scene is not None
    noise = Image.frombytes("RGBA", (64, 64), Random(1).randbytes(4 * 64 * 64))
    recipe = Recipe.of(request, 1, CARD)
    assert len(encode(noise, recipe)) <= request.most_bytes
    assert Recipe.read(recipe.as_json()) == recipe


def test_no_quota_no_limit(tmp_path: Path) -> None:
    from app.settings import Settings

    assert Settings(data_dir=tmp_path).storage_quota_bytes == 0
