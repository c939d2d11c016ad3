"""Keys of `avocat keys`: what they open, how far, and for how long."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import TimeoutError as RedisTimeoutError
from typer.testing import CliRunner

from app import keys
from app.api_keys import KeyRing, KeyStore, Limits, Scope, StoredKey, new_key
from app.cli import cli
from app.jobs.connection import connect_async
from tests.app.service import Service

Serve = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are read anew for every call."""
    monkeypatch.setattr(KeyRing, "FRESH_S", -1.0)


def made(service: Service, name: str = "shop", **how: Any) -> tuple[StoredKey, dict[str, str]]:
    key, secret = new_key(name, **how)
    KeyStore(service.redis).add(key)
    return key, {"Authorization": f"Bearer {secret}"}


async def test_the_first_key_closes_the_service(serve: Serve) -> None:
    async with serve() as service:
        assert (await service.client.get("/v1/jobs")).status_code == 200
        _, headers = made(service)
        assert (await service.client.get("/v1/jobs")).status_code == 401
        assert (await service.client.get("/v1/jobs", headers=headers)).status_code == 200


async def test_where_keys_are_always_needed_there_need_not_be_any(serve: Serve) -> None:
    async with serve(require_keys=True) as service:
        assert (await service.client.get("/v1/jobs")).status_code == 401


async def test_a_redis_that_lost_the_keys_opens_nothing(serve: Serve) -> None:
    async with serve() as service:
        _, headers = made(service)
        assert (await service.client.get("/v1/jobs", headers=headers)).status_code == 200
        service.redis.delete(keys.API_KEYS)
        assert (await service.client.get("/v1/jobs", headers=headers)).status_code == 401
        assert (await service.client.get("/v1/jobs")).status_code == 401


async def test_a_revoked_or_expired_key_opens_nothing(serve: Serve) -> None:
    async with serve() as service:
        key, headers = made(service)
        _, short = made(service, "short", lasts_s=-1.0)
        job = await service.submit(headers)
        KeyStore(service.redis).revoke(key)
        for refused in (headers, short):
            answer = await service.client.get("/v1/jobs", headers=refused)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        _, heir = made(service, "shop-2", owner="shop")
        answer = await service.client.get(f"/v1/jobs/{job['id']}", headers=heir)
        assert answer.status_code == 200  # a new key of the owner sees the jobs of the old one


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda secret: secret[:-1],
        lambda secret: secret + "0",
        lambda secret: secret.upper(),
        lambda secret: secret.split("_")[1],
        lambda secret: "avocat_" + secret.split("_")[1] + "_",
        lambda secret: secret.rsplit("_", 1)[1],
        lambda secret: "_" * 9,
        lambda secret: "",
        lambda secret: "ü",
    ],
)
async def test_what_is_not_the_whole_secret_opens_nothing(
    serve: Serve, spoilt: Callable[[str], str]
) -> None:
    async with serve() as service:
        _, headers = made(service)
        given = "Bearer " + spoilt(headers["Authorization"].removeprefix("Bearer "))
        answer = await service.client.get("/v1/jobs", headers={"Authorization": given.encode()})
        assert answer.status_code == 401


async def test_no_secret_is_kept(serve: Serve) -> None:
    async with serve() as service:
        _, headers = made(service)
        await service.submit(headers)
        secret = headers["Authorization"].removeprefix("Bearer ")
        hidden = secret.rsplit("_", 1)[1].encode()
        for name in service.redis.scan_iter("*"):
            assert hidden not in name + service.redis.dump(name)


READS = ["/v1/jobs", "/v1/models", "/v1/jobs/{id}", "/v1/jobs/{id}/events", "/v1/images/{id}_e_0"]


async def test_a_key_may_do_what_its_scopes_say(serve: Serve) -> None:
    async with serve() as service:
        _, writer = made(service, "w", owner="me", scopes=[Scope.SUBMIT])
        _, reader = made(service, "r", owner="me", scopes=[Scope.READ])
        job = await service.submit(writer)
        for path in READS:
            answer = await service.client.get(path.format(id=job["id"]), headers=writer)
            assert answer.status_code == 403, path
            assert "scope 'read'" in answer.json()["detail"]
        assert (await service.client.get("/v1/jobs", headers=reader)).json()["data"]
        body = {"prompt": "a cat"}
        for method, path in (
            ("POST", "/v1/jobs"),
            ("POST", "/v1/verify"),
            ("POST", f"/v1/jobs/{job['id']}/cancel"),
            ("DELETE", f"/v1/jobs/{job['id']}"),
        ):
            answer = await service.client.request(method, path, headers=reader, json=body)
            assert answer.status_code == 403, path
            assert "scope 'submit'" in answer.json()["detail"]
        answer = await service.client.post("/v1/images/generations", headers=reader, json=body)
        assert answer.status_code == 403
        assert "scope 'submit'" in answer.json()["error"]["message"]
        assert (await service.job_as(job["id"], reader))["status"] == "queued"


async def test_high_needs_its_scope(serve: Serve) -> None:
    async with serve() as service:
        _, low = made(service)
        _, high = made(service, "vip", scopes=[Scope.SUBMIT, Scope.HIGH])
        body = {"prompt": "a cat", "priority": "high"}
        assert (await service.client.post("/v1/jobs", json=body, headers=low)).status_code == 403
        assert (await service.client.post("/v1/jobs", json=body, headers=high)).status_code == 202


async def test_owners_do_not_see_each_other_and_admins_see_all(serve: Serve) -> None:
    async with serve() as service:
        _, ann = made(service, "ann")
        _, bob = made(service, "bob")
        _, admin = made(service, "ops", scopes=[Scope.READ, Scope.SUBMIT, Scope.ADMIN])
        job = await service.submit(ann)
        path = f"/v1/jobs/{job['id']}"
        assert (await service.client.get(path, headers=bob)).status_code == 404
        assert (await service.client.delete(path, headers=bob)).status_code == 404
        assert (await service.client.get(path, headers=admin)).status_code == 200
        assert (await service.client.get("/v1/jobs", headers=bob)).json()["data"] == []
        assert (await service.client.delete(path, headers=admin)).json()["status"] == "canceled"


async def test_limits_of_a_key_win_over_the_services(serve: Serve) -> None:
    async with serve(rate_limit_per_minute=100) as service:
        _, headers = made(service, limits=Limits(per_minute=2, active=1))
        body = {"prompt": "a cat"}
        first = await service.client.post("/v1/jobs", json=body, headers=headers)
        assert first.status_code == 202
        assert first.headers["RateLimit-Policy"] == '"default";q=2;w=60'
        second = await service.client.post("/v1/jobs", json=body, headers=headers)
        assert second.status_code == 429
        assert second.json()["violated-policies"] == ["concurrency"]
        third = await service.client.post("/v1/jobs", json=body, headers=headers)
        assert third.json()["violated-policies"] == ["default"]


async def test_a_days_pictures_are_counted_exactly(serve: Serve) -> None:
    async with serve() as service:
        _, headers = made(service, limits=Limits(per_day=5))
        _, other = made(service, "other", owner="shop")

        async def ask(n: int) -> httpx.Response:
            body = {"prompt": "a cat", "n": n}
            return await service.client.post("/v1/jobs", json=body, headers=headers)

        answers = await asyncio.gather(*(ask(2) for _ in range(8)))
        assert sorted(answer.status_code for answer in answers) == [202] * 2 + [429] * 6
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["violated-policies"] == ["daily"]
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert refused.headers["RateLimit"].startswith('"daily";r=1;t=')
        assert refused.headers["RateLimit-Policy"] == '"daily";q=5;w=86400'
        assert (await ask(1)).status_code == 202
        assert (await ask(1)).status_code == 429
        assert await service.submit(other)  # each key has its own day


async def test_a_replayed_submission_is_not_counted_twice(serve: Serve) -> None:
    async with serve() as service:
        _, headers = made(service, limits=Limits(per_day=1))
        again = headers | {"Idempotency-Key": "once"}
        job = await service.submit(again)
        answer = await service.client.post(
            "/v1/jobs", json={"prompt": "a red apple"}, headers=again
        )
        assert (answer.status_code, answer.json()["id"]) == (200, job["id"])


async def test_when_a_key_was_last_used_is_known(serve: Serve) -> None:
    async with serve() as service:
        key, headers = made(service)
        idle, _ = made(service, "idle")
        for _ in range(2):  # written down with the next reading
            await service.client.get("/v1/jobs", headers=headers)
        times = {known.id: used for known, used in KeyStore(service.redis).all()}
        assert times[key.id] == pytest.approx(time.time(), abs=10)
        assert times[idle.id] is None


async def test_a_redis_whose_memory_is_full_still_lets_readers_in(serve: Serve) -> None:
    async with serve() as service:
        _, headers = made(service)
        await service.client.get("/v1/jobs", headers=headers)
        service.redis.config_set("maxmemory", 1)
        try:
            answers = [await service.client.get("/v1/jobs", headers=headers) for _ in range(3)]
        finally:
            service.redis.config_set("maxmemory", 0)
        assert [answer.status_code for answer in answers] == [200] * 3
        await service.client.get("/v1/jobs", headers=headers)
        [(_, used)] = KeyStore(service.redis).all()
        assert used == pytest.approx(time.time(), abs=10), "written down as soon as it can be"


async def test_keys_are_read_once_for_many_calls(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyRing, "FRESH_S", 60.0)
    client = connect_async(redis_url)
    await client.config_resetstat()
    ring = KeyRing(client)
    await asyncio.gather(*(ring.has_keys() for _ in range(50)))
    stats = await client.info("commandstats")
    await client.aclose()
    assert stats["cmdstat_hgetall"]["calls"] == 1


async def test_a_redis_that_hangs_is_asked_once_for_all_who_wait(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, asked = connect_async(redis_url), []

    async def hang(*_: object, **__: object) -> None:
        asked.append(1)
        await asyncio.sleep(0.05)
        raise RedisTimeoutError

    monkeypatch.setattr(Pipeline, "execute", hang)
    ring = KeyRing(client)
    ends = await asyncio.gather(*(ring.has_keys() for _ in range(20)), return_exceptions=True)
    await client.aclose()
    assert {type(end) for end in ends} == {RedisTimeoutError}
    assert len(asked) == 1


async def test_a_key_that_cannot_be_read_opens_nothing_and_keeps_the_service_closed(
    serve: Serve,
) -> None:
    async with serve() as service:
        service.redis.hset(keys.API_KEYS, "abc", '{"from": "a later release"}')
        assert (await service.client.get("/v1/jobs")).status_code == 401
        header = {"Authorization": "Bearer avocat_abc_"}
        assert (await service.client.get("/v1/jobs", headers=header)).status_code == 401


def test_the_command_makes_lists_and_revokes(redis_url: str) -> None:
    environment = {"AVOCAT_REDIS_URL": redis_url}

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["keys", *arguments], env=environment)

    created = run("create", "shop", "--per-day", "5", "--scope", "submit", "--days", "30")
    assert created.exit_code == 0
    secret = created.stdout.strip()
    assert secret.startswith("avocat_")
    assert run("create", "shop").exit_code == 2  # the name is taken
    assert run("create", "ever", "--days", "inf").exit_code == 2
    listed = run("list").stdout
    assert "shop" in listed
    assert re.search(r"per day 5, until 20\d\d-\d\d-\d\d", listed)
    assert secret not in run("list", "--json").stdout
    assert run("revoke", "shop").exit_code == 0
    assert "revoked" in run("list").stdout
    assert run("revoke", "shop").exit_code == 2
    assert run("create", "shop").exit_code == 0  # the name is free again


@pytest.mark.parametrize("name", ["", "a b", "-x", "ü", "x" * 65])
def test_names_have_a_form(redis_url: str, name: str) -> None:
    ended = CliRunner().invoke(
        cli, ["keys", "create", "--", name], env={"AVOCAT_REDIS_URL": redis_url}
    )
    assert ended.exit_code == 2


@pytest.mark.parametrize("arguments", [("create", "shop-2"), ("revoke", "shop")])
def test_what_the_audit_log_cannot_note_is_not_done(
    redis_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    environment = {"AVOCAT_REDIS_URL": redis_url}
    CliRunner().invoke(cli, ["keys", "create", "shop"], env=environment)
    nowhere = {"AVOCAT_AUDIT_LOG": str(tmp_path / "nowhere" / "audit.jsonl")}
    ended = CliRunner().invoke(cli, ["keys", *arguments], env=environment | nowhere)
    assert ended.exit_code == 2
    assert "AVOCAT_AUDIT_LOG" in ended.stderr
    listed = CliRunner().invoke(cli, ["keys", "list", "--json"], env=environment).stdout
    assert [json.loads(line)["state"] for line in listed.splitlines()] == ["valid"]


def test_a_redis_that_refuses_is_no_redis_that_is_away(redis_url: str) -> None:
    environment = {"AVOCAT_REDIS_URL": redis_url}
    with Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            ended = CliRunner().invoke(cli, ["keys", "create", "shop"], env=environment)
        finally:
            client.config_set("maxmemory", 0)
    assert ended.exit_code == 3
    assert "maxmemory" in ended.stderr


def test_without_redis_the_command_says_so() -> None:
    ended = CliRunner().invoke(
        cli, ["keys", "list"], env={"AVOCAT_REDIS_URL": "redis://127.0.0.1:1/0"}
    )
    assert ended.exit_code == 3
