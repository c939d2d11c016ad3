"""`Idempotency-Key`: a retry never makes a second job."""

import asyncio
from typing import Any

import httpx
import pytest

from app import keys
from tests.app.service import Serve, Service


async def post(service: Service, key: str | bytes, auth: str = "", **fields: Any) -> httpx.Response:
    headers: dict[str, Any] = {"idempotency-key": key}
    if auth:
        headers["authorization"] = f"Bearer {auth}"
    body = {"prompt": "x"} | fields
    return await service.client.post("/v1/jobs", json=body, headers=headers)


async def test_the_same_again_is_the_same_job(service: Service) -> None:
    first, again = await post(service, "k1"), await post(service, "k1")
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    assert first.json()["request"] == again.json()["request"]  # the drawn seed too
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert service.redis.llen(keys.rq_queue("normal")) == 1


async def test_bare_and_quoted_are_one_key(service: Service) -> None:
    first, again = await post(service, 'a"b'), await post(service, '"a\\"b"')
    assert first.json()["id"] == again.json()["id"]


async def test_the_order_of_fields_does_not_matter(service: Service) -> None:
    first = await post(service, "k", seed=1, metadata={"a": "1", "b": "2"})
    again = await post(service, "k", metadata={"b": "2", "a": "1"}, seed=1)
    assert first.json()["id"] == again.json()["id"]


async def test_another_body_is_refused(service: Service) -> None:
    await post(service, "k", seed=1)
    answer = await post(service, "k", seed=2)
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/idempotency-key-reused"


@pytest.mark.parametrize("key", ["", '""', '"a', "x" * 256, b"caf\xe9", "a\tb"])
async def test_bad_keys_are_refused(service: Service, key: str | bytes) -> None:
    answer = await post(service, key)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/Idempotency-Key"


async def test_the_longest_key_works(service: Service) -> None:
    assert (await post(service, "x" * 255)).status_code == 202


async def test_keys_belong_to_their_owner(serve: Serve) -> None:
    async with serve(api_keys="ann:a,bob:b") as service:
        ids = {(await post(service, "k", auth)).json()["id"] for auth in ("a", "b")}
    assert len(ids) == 2


async def test_fifty_at_once_are_one_job(service: Service) -> None:
    answers = await asyncio.gather(*(post(service, "k") for _ in range(50)))
    codes = [answer.status_code for answer in answers]
    assert {*codes} <= {200, 202}, [answer.text for answer in answers if answer.status_code > 202]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert (codes.count(202), codes.count(200)) == (1, 49)
    assert service.redis.llen(keys.rq_queue("normal")) == 1


async def test_keys_survive_a_restart(serve: Serve) -> None:
    async with serve() as service:
        first = await post(service, "k")
    async with serve() as service:
        again = await post(service, "k")
        name = keys.idempotency("anonymous", "k")
        assert again.json()["id"] == first.json()["id"]
        assert 86300 < service.redis.ttl(name) <= 86400


async def test_a_replay_is_answered_when_the_queue_is_full(serve: Serve) -> None:
    async with serve(queue_cap=1) as service:
        await post(service, "k")
        assert (await post(service, "k")).status_code == 200
        assert (await post(service, "other")).status_code == 503


async def test_a_refused_job_leaves_the_key_free(serve: Serve) -> None:
    async with serve(queue_cap=1) as service:
        first = await post(service, "a")
        assert (await post(service, "b")).status_code == 503
        await service.client.delete(f"/v1/jobs/{first.json()['id']}")
        assert (await post(service, "b")).status_code == 202


async def test_a_replayed_job_may_be_done(service: Service) -> None:
    first = await post(service, "k")
    service.draw(first.json()["id"])
    again = await post(service, "k")
    assert (again.status_code, again.json()["status"]) == (200, "succeeded")
    assert "retry-after" not in again.headers
