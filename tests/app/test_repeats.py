"""Repeats of a request: answered from storage, byte for byte, to its owner alone."""

import asyncio
from typing import Any

import pytest
from httpx_sse import aconnect_sse
from openai import AsyncOpenAI

from app import keys
from app.jobs.record import JobRecord, JobRequest
from app.jobs.repeats import repeat_key
from tests.app.service import CARD, PNG, Serve, Service, listening

ASKED: dict[str, Any] = {"prompt": "a red apple", "seed": 7, "n": 2}


async def drawn(service: Service, **fields: Any) -> Any:
    """A job that a worker drew."""
    job = await service.submit(**(ASKED | fields))
    service.draw(job["id"])
    return job


async def ask(service: Service, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    answer = await service.client.post("/v1/jobs", json=ASKED | fields, headers=headers)
    assert answer.status_code in (200, 202), answer.text
    return answer.json() | {"http": answer.status_code}


async def test_a_repeat_has_its_pictures_at_once(service: Service) -> None:
    first = await drawn(service)
    assert not (await service.job(first["id"]))["cached"]
    again = await ask(service, metadata={"order": "2"}, priority="low")
    assert (again["http"], again["status"], again["cached"]) == (200, "succeeded", True)
    assert again["id"] != first["id"]
    assert (again["progress"]["fraction"], again["attempts"]) == (1.0, 0)
    assert (again["started_at"], again["finished_at"]) == (None, again["created_at"])
    assert again["metadata"] == {"order": "2"}
    assert [image["seed"] for image in again["images"]] == [7, 8]
    for image in again["images"]:
        assert (await service.client.get(image["url"])).content == PNG
    assert await service.job(again["id"]) | {"http": 200} == again
    assert service.redis.llen(keys.rq_queue("low")) == 0
    listed = (await service.client.get("/v1/jobs")).json()["data"]
    assert [job["id"] for job in listed] == [again["id"], first["id"]]


@pytest.mark.parametrize(
    "other",
    [
        *({"prompt": "a red Apple"}, {"n": 1}, {"seed": 8}, {"cache": False}, {"seed": None}),
        *({"negative_prompt": "x"}, {"steps": 19}, {"sampler": "ddim"}, {"guidance_scale": 2.5}),
        *({"guidance_interval": [0, 0.5]}, {"size": "32x32"}, {"output_format": "webp"}),
        *({"background": "white"}, {"best_of": 3}),
    ],
)
async def test_another_request_is_drawn(service: Service, other: dict[str, Any]) -> None:
    await drawn(service)
    job = await ask(service, **other)
    assert (job["http"], job["status"], job["cached"]) == (202, "queued", False)


async def test_a_drawn_seed_can_be_asked_for_again(service: Service) -> None:
    first = await drawn(service, seed=None)
    assert (await ask(service, seed=first["request"]["seed"]))["cached"]


async def test_another_owner_or_model_draws(serve: Serve) -> None:
    ann, bob = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
    async with serve(api_keys="ann:a,bob:b") as service:
        service.draw((await ask(service, ann))["id"])
        assert not (await ask(service, bob))["cached"]
        assert (await ask(service, ann))["cached"]
        service.app.state.services.cards.FRESH_S = 0
        other = CARD.model_copy(update={"fingerprint": "e" * 32})
        service.redis.hset(keys.MODELS, CARD.name, other.model_dump_json())
        assert not (await ask(service, ann))["cached"]


async def test_the_earlier_job_may_go(service: Service) -> None:
    first = await drawn(service)
    again = await ask(service)
    record = service.store.get(first["id"])
    assert record is not None
    for image in record.images:
        service.storage.delete(image.name)
    service.redis.delete(keys.job(first["id"]))
    third = await ask(service)  # from the second
    assert third["cached"]
    for image in (*again["images"], *third["images"]):
        assert (await service.client.get(image["url"])).content == PNG
        name = image["url"].partition("?")[0].rpartition("/")[2]
        assert service.redis.zscore(keys.IMAGE_EXPIRY, name) is not None


@pytest.mark.parametrize("harm", ["lost", "damaged", "record"])
async def test_what_is_not_whole_is_drawn(service: Service, harm: str) -> None:
    first = await drawn(service)
    record = service.store.get(first["id"])
    assert record is not None
    path = service.storage.path(record.images[1].name)
    if harm == "lost":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(PNG[:-1] + b"!")
    else:
        service.redis.delete(keys.job(first["id"]))
    again = await ask(service)
    assert (again["status"], again["cached"]) == ("queued", False)
    assert not list(service.storage.root.rglob(f"{again['id']}*"))  # nothing half done is left
    service.draw(again["id"])
    assert (await ask(service))["cached"]


async def test_a_repeat_meets_no_cap_but_the_rate(serve: Serve) -> None:
    limits = {"queue_cap": 1, "max_active_jobs_per_key": 1, "rate_limit_per_minute": 3}
    async with serve(**limits) as service:
        await drawn(service)
        await service.submit()
        assert (await ask(service))["cached"]
        assert (await service.client.post("/v1/jobs", json=ASKED)).status_code == 429


async def test_idempotency_keys_of_repeats(service: Service) -> None:
    await drawn(service)
    headers = {"idempotency-key": "k"}
    ids = [one["id"] for one in await asyncio.gather(*(ask(service, headers) for _ in range(9)))]
    assert len(set(ids)) == 1
    wrong = await service.client.post("/v1/jobs", json=ASKED | {"n": 1}, headers=headers)
    assert wrong.json()["type"] == "/problems/idempotency-key-reused"
    kept = [path for path in service.storage.root.rglob("*.png") if ids[0] in path.name]
    assert len(kept) == 2
    assert len(list(service.storage.root.rglob("*.png"))) == 4  # none of those that came second


async def test_waiting_events_and_cancel(service: Service) -> None:
    await drawn(service)
    job = await ask(service, {"prefer": "wait=5"})
    assert job["http"] == 200
    path = f"/v1/jobs/{job['id']}/events"
    async with aconnect_sse(service.client, "GET", path) as source:
        events = [event async for event in source.aiter_sse()]
    assert [event.event for event in events] == ["succeeded"]
    assert events[0].json()["cached"]
    canceled = await service.client.delete(f"/v1/jobs/{job['id']}")
    assert canceled.json()["status"] == "succeeded"


async def test_openais_client_is_answered_from_storage(service: Service) -> None:
    await drawn(service, n=1)
    async with (
        listening(service.app) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        asked = {"prompt": "a red apple", "extra_body": {"seed": 7}}
        images = await client.images.generate(**asked)
        stream = await client.images.generate(**asked, stream=True, partial_images=1)
        events = [event async for event in stream]
    assert [event.type for event in events] == ["image_generation.completed"]
    assert images.data[0].b64_json == events[0].b64_json


def test_the_key_is_of_owner_fingerprint_and_what_decides() -> None:
    request = JobRequest(
        prompt="x", model="m", seed=1, steps=3, sampler="ddim", guidance_scale=1.5, size="8x8",
        background="white",
    )  # fmt: skip
    usual = repeat_key("o", request, "f")
    same = request.model_copy(update={"priority": "high", "cache": False})
    assert repeat_key("o", same, "f") == usual
    assert len({usual, repeat_key("p", request, "f"), repeat_key("o", request, "g")}) == 3
    assert JobRecord.model_fields["cached"].default is False
