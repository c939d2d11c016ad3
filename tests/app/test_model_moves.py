"""Workers and their models over HTTP: who may look and move them, and what is answered."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app import keys
from app.api_keys import KeyRing, KeyStore, Scope, new_key
from app.jobs.fleet import ModelState, Placement, Standing
from tests.app.service import Serve, Service, until

GB = 10**9
JSON = {"Content-Type": "application/json"}


def write(service: Service, worker: str, free: int = 8, **states: ModelState | Placement) -> None:
    """As a worker tells of itself."""
    models = tuple(
        one if isinstance(one, Placement) else Placement(model=name, state=one, weights_bytes=GB)
        for name, one in states.items()
    )
    standing = Standing(worker=worker, device="cpu", free_bytes=free * GB, models=models)
    service.redis.sadd(keys.RQ_WORKERS, f"rq:worker:{worker}")
    service.redis.hset(f"rq:worker:{worker}", keys.WORKER_STANDING, standing.model_dump_json())


@asynccontextmanager
async def listening(service: Service, *workers: str) -> AsyncIterator[list[tuple[str, Any]]]:
    """What workers are told meanwhile."""
    heard: list[tuple[str, Any]] = []
    with service.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(*(f"rq:pubsub:{worker}" for worker in workers))
        while pubsub.subscribed and pubsub.get_message(timeout=0.2):
            pass

        async def listen() -> None:
            while True:
                message = pubsub.get_message()
                if message is not None:
                    worker = message["channel"].decode().removeprefix("rq:pubsub:")
                    heard.append((worker, json.loads(message["data"])))
                await asyncio.sleep(0.01)

        task = asyncio.create_task(listen())
        try:
            yield heard
            await asyncio.sleep(0.2)
        finally:
            task.cancel()


async def post(service: Service, path: str, wait: int = 0, **body: Any) -> Any:
    headers = {"Prefer": f"wait={wait}"} if wait else {}
    return await service.client.post(f"/v1/models/{path}", json=body, headers=headers)


async def test_workers_are_listed_with_their_models(service: Service) -> None:
    write(service, "b", tiny=ModelState.LOADED)
    write(service, "a", tiny=ModelState.LOADED, sd15=ModelState.AVAILABLE)
    answer = (await service.client.get("/v1/workers")).json()
    assert [one["id"] for one in answer["data"]] == ["a", "b"]
    [tiny, sd15] = answer["data"][0]["models"]
    assert (tiny["state"], sd15["state"]) == ("loaded", "available")
    assert (sd15["worker"], sd15["weights_bytes"]) == ("a", GB)
    [model] = (await service.client.get("/v1/models")).json()["data"]
    assert (model["id"], model["loaded"]) == ("tiny", True)


async def test_what_a_worker_wrote_wrongly_hides_no_other(service: Service) -> None:
    write(service, "a", tiny=ModelState.LOADED)
    service.redis.sadd(keys.RQ_WORKERS, "rq:worker:odd", "rq:worker:gone", "rq:worker:old")
    service.redis.hset("rq:worker:odd", keys.WORKER_STANDING, "{")
    service.redis.hset("rq:worker:old", keys.WORKER_MODEL, "early")  # of the release before
    answer = (await service.client.get("/v1/workers")).json()
    assert [one["id"] for one in answer["data"]] == ["a", "old"]
    assert answer["data"][1]["models"][0]["state"] == "loaded"


async def test_the_worker_with_most_room_loads(service: Service) -> None:
    write(service, "small", 1, sd15=ModelState.AVAILABLE)
    write(service, "large", 9, sd15=ModelState.AVAILABLE)
    async with listening(service, "small", "large") as heard:
        answer = await post(service, "sd15/load")
    assert (answer.status_code, answer.json()["loaded"]) == (202, False)
    assert heard == [("large", {"command": "load-model", "model": "sd15"})]
    async with listening(service, "small", "large") as heard:
        await post(service, "sd15/load", worker="small")
    assert [worker for worker, _ in heard] == ["small"]


async def test_what_is_loaded_is_not_loaded_again(service: Service) -> None:
    write(service, "a", sd15=ModelState.LOADED)
    write(service, "b", 99, sd15=ModelState.AVAILABLE)
    async with listening(service, "a", "b") as heard:
        answer = await post(service, "sd15/load")
    assert (answer.status_code, answer.json()["loaded"], heard) == (200, True, [])


async def test_waiting_ends_when_it_is_loaded(service: Service) -> None:
    write(service, "a", sd15=ModelState.AVAILABLE)
    async with listening(service, "a") as heard:
        asked = asyncio.create_task(post(service, "sd15/load", wait=20))
        await until(lambda: heard)
        write(service, "a", sd15=ModelState.LOADED)
        answer = await asked
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=20")
    assert answer.json()["places"][0]["state"] == "loaded"


async def test_a_failure_is_told_with_its_reason_and_an_old_one_is_not(service: Service) -> None:
    def failed(since: float, detail: str) -> Placement:
        kind = ModelState.FAILED
        return Placement(model="sd15", state=kind, detail=detail, since=since)

    write(service, "a", sd15=failed(1.0, "no room"))
    async with listening(service, "a") as heard:
        asked = asyncio.create_task(post(service, "sd15/load", wait=20))
        await until(lambda: heard)
        assert not asked.done()
        write(service, "a", sd15=failed(2.0, "unet.safetensors is damaged"))
        answer = await asked
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/model-not-loaded")
    assert "'sd15' could not be loaded at 'a': unet.safetensors is damaged" in answer.text


async def test_all_workers_unload(service: Service) -> None:
    write(service, "a", tiny=ModelState.LOADED)
    write(service, "b", tiny=ModelState.LEAVING)
    write(service, "c", tiny=ModelState.AVAILABLE)
    async with listening(service, "a", "b", "c") as heard:
        answer = await post(service, "tiny/unload")
    assert answer.status_code == 202
    told = {"command": "unload-model", "model": "tiny"}
    assert sorted(heard, key=str) == [("a", told), ("b", told)]
    for worker in "ab":
        write(service, worker, tiny=ModelState.AVAILABLE)
    assert (await post(service, "tiny/unload")).status_code == 200


async def test_what_is_being_loaded_is_not_unloaded_yet(service: Service) -> None:
    write(service, "a", sd15=ModelState.LOADING)
    async with listening(service, "a") as heard:
        answer = await post(service, "sd15/unload")
    assert (answer.status_code, heard) == (
        *(202, [("a", {"command": "unload-model", "model": "sd15"})]),
    )


async def test_wrong_calls_say_what_would_be_right(service: Service) -> None:
    write(service, "a", tiny=ModelState.LOADED)
    for verb in ("load", "unload"):
        unknown = await post(service, f"nothing/{verb}")
        assert (unknown.status_code, "they have: 'tiny'" in unknown.text) == (404, True)
        other = await post(service, f"tiny/{verb}", worker="z")
        assert other.status_code == 422
        assert other.json()["errors"][0]["pointer"] == "/worker"
        assert "'z' should be one of a" in other.text
        odd = await post(service, f"tiny/{verb}", wrker="a")
        assert odd.json()["errors"][0]["message"] == "No such field; check the spelling"
        # A page of another origin cannot say that it sends JSON without being asked first.
        plain = await service.client.post(f"/v1/models/tiny/{verb}", content=b"{}")
        assert plain.status_code == 415
    deaf = await post(service, "tiny/unload")
    assert (deaf.status_code, "does not listen now" in deaf.text) == (503, True)


async def test_only_admins_move_models_where_there_are_keys(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyRing, "FRESH_S", -1.0)
    async with serve() as service:
        write(service, "a", tiny=ModelState.AVAILABLE)
        assert (await service.client.get("/v1/workers")).status_code == 200
        headers = {}
        for name, scopes in (("user", [Scope.SUBMIT, Scope.READ]), ("boss", [Scope.ADMIN])):
            key, secret = new_key(name, scopes=scopes)
            KeyStore(service.redis).add(key)
            headers[name] = JSON | {"Authorization": f"Bearer {secret}"}
        for method, path in (
            ("GET", "/v1/workers"),
            ("POST", "/v1/models/tiny/load"),
            ("POST", "/v1/models/tiny/unload"),
        ):
            body = b"" if method == "GET" else b"{}"
            ask = service.client.request
            assert (await ask(method, path, content=body)).status_code == 401
            refused = await ask(method, path, content=body, headers=headers["user"])
            assert refused.status_code == 403
            assert "scope 'admin'" in refused.json()["detail"]
            allowed = await ask(method, path, content=body, headers=headers["boss"])
            assert allowed.status_code in (200, 503)  # nobody listens here
