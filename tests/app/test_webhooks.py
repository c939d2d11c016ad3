"""Webhooks: every end is told, signed, at least once, and nobody who should not be reached."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from redis.asyncio import Redis
from standardwebhooks import Webhook

from app import keys
from app.jobs.connection import connect_async
from app.jobs.ids import new_job_id
from app.jobs.record import JobStatus, Problem
from app.webhooks.deliveries import Deliveries, Due
from app.webhooks.signing import WebhookSecrets
from app.webhooks.targets import Refused, Targets
from tests.app.service import Serve, Service, until

SECRETS = ("whsec_" + "A" * 32, "whsec_" + "B" * 32)
SETTINGS = {"webhook_allow": "127.0.0.1", "webhook_secrets": SECRETS[0], "webhook_retry_s": 0.05}


@dataclass
class Receiver:
    """Keeps what it is sent; answers what it is told to, and 204 from then on."""

    url: str = ""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    calls: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def verified(self, secret: str = SECRETS[0]) -> list[Any]:
        """The messages, verified as receivers do."""
        return [Webhook(secret).verify(body, headers) for _, headers, body in self.calls]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            part = await receive()
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.calls.append((scope["path"], headers, body))
        if scope["path"] == "/slow":
            await self.over.wait()
        status, extra = self.answers.pop(0) if self.answers else (204, {})
        given = [(name.encode(), value.encode()) for name, value in extra.items()]
        await send({"type": "http.response.start", "status": status, "headers": given})
        await send({"type": "http.response.body"})


@asynccontextmanager
async def receiving(*answers: tuple[int, dict[str, str]]) -> AsyncIterator[Receiver]:
    receiver = Receiver(answers=list(answers))
    server = uvicorn.Server(uvicorn.Config(receiver, port=0, lifespan="off", log_level="warning"))
    running = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        receiver.url = f"http://127.0.0.1:{port}/hook"
        yield receiver
    finally:
        receiver.over.set()
        server.should_exit = True
        await running


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as one:
        yield one


def pending(service: Service) -> int:
    return int(service.redis.zcard(keys.WEBHOOKS_DUE))


def succeed(service: Service, job_id: str) -> None:
    service.draw(job_id)


def fail(service: Service, job_id: str) -> None:
    service.take(job_id)
    problem = Problem(type="/problems/x", title="x", status=500, detail="x")
    assert service.store.finish(job_id, "e1", JobStatus.FAILED, error=problem)


def cancel_running(service: Service, job_id: str) -> None:
    service.take(job_id)
    assert service.store.finish(job_id, "e1", JobStatus.CANCELED)


def refuse_queued(service: Service, job_id: str) -> None:
    problem = Problem(type="/problems/x", title="x", status=500, detail="x")
    assert service.store.finish(job_id, None, JobStatus.FAILED, error=problem)


@pytest.mark.parametrize(
    ("end", "kind"),
    [(succeed, "succeeded"), (fail, "failed"), (cancel_running, "canceled"),
     (refuse_queued, "failed")],
)  # fmt: skip
async def test_every_end_is_told(
    serve: Serve, receiver: Receiver, end: Callable[[Service, str], None], kind: str
) -> None:
    async with serve(**SETTINGS) as service:
        job = await service.submit(webhook_url=receiver.url, metadata={"order": "17"})
        assert job["request"]["webhook_url"] == receiver.url
        assert pending(service) == 0
        end(service, job["id"])
        await until(lambda: receiver.calls and not pending(service))
        [message] = receiver.verified()
        assert message["type"] == f"job.{kind}"
        assert message["data"] == await service.job(job["id"])


async def test_a_cancel_while_queued_and_a_repeat_are_told(
    serve: Serve, receiver: Receiver
) -> None:
    async with serve(**SETTINGS) as service:
        first = await service.submit(seed=1)
        service.draw(first["id"])
        body = {"prompt": "a red apple", "seed": 1, "webhook_url": receiver.url}
        repeat = (await service.client.post("/v1/jobs", json=body)).json()
        assert repeat["cached"]
        waiting = await service.submit(webhook_url=receiver.url)
        await service.client.delete(f"/v1/jobs/{waiting['id']}")
        await until(lambda: len(receiver.calls) == 2 and not pending(service))
        told = {message["data"]["id"]: message["type"] for message in receiver.verified()}
        assert told == {repeat["id"]: "job.succeeded", waiting["id"]: "job.canceled"}


async def test_what_fails_is_tried_again_as_the_same_message(serve: Serve) -> None:
    elsewhere = {"location": "/elsewhere"}
    async with receiving((500, {}), (302, elsewhere), (429, {"retry-after": "0"})) as receiver:
        async with serve(**SETTINGS) as service:
            service.draw((await service.submit(webhook_url=receiver.url))["id"])
            await until(lambda: len(receiver.calls) == 4 and not pending(service))
            figures = (await service.client.get("/metrics")).text
        assert 'avocat_webhook_calls_total{outcome="retried"} 3.0' in figures
        assert len(receiver.verified()) == 4
        assert {path for path, _, _ in receiver.calls} == {"/hook"}
        assert len({headers["webhook-id"] for _, headers, _ in receiver.calls}) == 1
        assert service.redis.hlen(keys.WEBHOOK_ATTEMPTS) == 0


async def test_a_receiver_that_is_gone_is_left_alone(serve: Serve) -> None:
    async with receiving((410, {})) as receiver, serve(**SETTINGS) as service:
        service.draw((await service.submit(webhook_url=receiver.url))["id"])
        await until(lambda: receiver.calls and not pending(service))
        assert len(receiver.calls) == 1


async def test_what_was_not_told_survives_a_restart(serve: Serve, receiver: Receiver) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    async with serve(**SETTINGS) as service:
        job = await service.submit(webhook_url=f"http://127.0.0.1:{port}/hook")
        service.draw(job["id"])
        await until(lambda: int(service.redis.hget(keys.WEBHOOK_ATTEMPTS, job["id"]) or 0) > 1)
    assert pending(service) == 1
    # It comes back after all.
    at = httpx.URL(receiver.url).port
    record = json.loads(service.redis.hget(keys.job(job["id"]), "request"))
    record["webhook_url"] = record["webhook_url"].replace(str(port), str(at))
    service.redis.hset(keys.job(job["id"]), "request", json.dumps(record))
    async with serve(**SETTINGS) as service:
        await until(lambda: receiver.calls and not pending(service))
    assert receiver.verified()[0]["data"]["id"] == job["id"]


@pytest.fixture
async def deliveries(redis_url: str) -> AsyncIterator[tuple[Deliveries, Redis]]:
    redis = connect_async(redis_url)
    yield Deliveries(redis), redis
    await redis.aclose()


async def test_a_held_delivery_is_due_again_when_its_holder_dies(
    deliveries: tuple[Deliveries, Redis],
) -> None:
    one, redis = deliveries
    await redis.zadd(keys.WEBHOOKS_DUE, {"a": 0, "b": 1})
    assert await one.take(1, 60) == [Due("a", 0)]
    assert await one.take(9, 0.01) == [Due("b", 0)]
    await asyncio.sleep(0.02)
    assert await one.take(9, 60) == [Due("b", 1)]
    await one.again("b", 0, tried=False)
    assert await one.take(9, 60) == [Due("b", 1)]
    for job_id in "ab":
        await one.done(job_id)
    await one.again("a", 0, tried=False)  # done meanwhile by another
    assert await one.take(9, 60) == []
    assert await redis.hlen(keys.WEBHOOK_ATTEMPTS) == 0  # type: ignore[misc]


async def test_a_slow_receiver_holds_up_no_other(serve: Serve, receiver: Receiver) -> None:
    slow = receiver.url.replace("127.0.0.1", "localhost").replace("/hook", "/slow")
    allowed = SETTINGS | {"webhook_allow": "127.0.0.1,localhost,::1"}
    async with serve(**allowed, max_active_jobs_per_key=1000) as service:
        for _ in range(40):
            service.draw((await service.submit(webhook_url=slow))["id"])
        await until(lambda: len(receiver.calls) >= 8)
        service.draw((await service.submit(webhook_url=receiver.url))["id"])
        await until(lambda: any(path == "/hook" for path, _, _ in receiver.calls))


def many_told(service: Service, url: str, count: int) -> None:
    """As many ended jobs, due now, as copies of one that has ended."""
    [record] = [service.redis.hgetall(key) for key in service.redis.keys(keys.job("*"))][:1]
    request = json.loads(record[b"request"]) | {"webhook_url": url}
    for _ in range(count):
        job_id = new_job_id(time.time())
        fields = record | {b"id": job_id.encode(), b"request": json.dumps(request).encode()}
        service.redis.hset(keys.job(job_id), mapping=fields)
        service.redis.zadd(keys.WEBHOOKS_DUE, {job_id: time.time()})


async def test_one_receiver_is_told_as_fast_as_it_answers(serve: Serve, receiver: Receiver) -> None:
    async with serve(**SETTINGS) as service:
        service.draw((await service.submit())["id"])
        many_told(service, receiver.url, 200)
        begun = time.monotonic()
        await until(lambda: len(receiver.calls) == 200 and not pending(service))
        assert (
            time.monotonic() - begun < 4
        )  # 12 s when those over its places came back by the clock
        assert service.redis.hlen(keys.WEBHOOK_ATTEMPTS) == 0


async def test_hundreds_for_a_receiver_that_hangs_hold_up_no_other(
    serve: Serve, receiver: Receiver
) -> None:
    slow = receiver.url.replace("127.0.0.1", "localhost").replace("/hook", "/slow")
    allowed = SETTINGS | {"webhook_allow": "127.0.0.1,localhost,::1"}
    async with serve(**allowed) as service:
        service.draw((await service.submit())["id"])
        many_told(service, slow, 300)
        await until(lambda: len(receiver.calls) >= 8)
        begun = time.monotonic()
        service.draw((await service.submit(webhook_url=receiver.url))["id"])
        await until(lambda: any(path == "/hook" for path, _, _ in receiver.calls))
        assert time.monotonic() - begun < 2  # 6 s when they were looked at again and again


async def test_a_customer_with_many_receivers_that_hang_holds_up_no_other(
    serve: Serve, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the receivers within its own places."""
    known = socket.getaddrinfo

    def here(host: Any, *more: Any, **options: Any) -> Any:
        return known("127.0.0.1" if str(host).endswith(".test") else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    slow, hosts = receiver.url.replace("/hook", "/slow"), [f"n{i}.test" for i in range(8)]
    allowed = SETTINGS | {"webhook_allow": ",".join(["127.0.0.1", *hosts])}
    one, two = ({"Authorization": f"Bearer key-of-{name}"} for name in ("one", "two"))
    async with serve(**allowed, api_keys="one:key-of-one,two:key-of-two") as service:
        service.draw((await service.submit(headers=one))["id"])
        for host in hosts:
            many_told(service, slow.replace("127.0.0.1", host), 5)
        await until(lambda: len(receiver.calls) >= 24)
        service.draw((await service.submit(webhook_url=receiver.url, headers=two))["id"])
        await until(lambda: any(path == "/hook" for path, _, _ in receiver.calls))
        assert sum(path == "/slow" for path, _, _ in receiver.calls) == 24
        receiver.over.set()
        await until(lambda: len(receiver.calls) == 41 and not pending(service))
        assert service.redis.hlen(keys.WEBHOOK_ATTEMPTS) == 0


async def test_what_is_parked_comes_in_order_and_once(
    deliveries: tuple[Deliveries, Redis],
) -> None:
    one, redis = deliveries
    await redis.zadd(keys.WEBHOOKS_DUE, {"a": 0, "b": 1, "c": 2, "d": 3})
    assert len(await one.take(9, 60)) == 4
    for job_id in "abcd":
        await one.park(job_id, "host", 60)
    assert await one.take(9, 60) == []
    await one.done("a")
    await redis.zadd(keys.WEBHOOKS_DUE, {"b": 0})  # its time came, and another process takes it
    assert await one.take(9, 60) == [Due("b", 0)]
    assert await one.unpark("elsewhere", 60) == []
    assert await one.unpark("host", 60) == [Due("c", 0)]
    assert await one.unpark("host", 60) == [Due("d", 0)]
    assert await one.unpark("host", 60) == []
    assert await redis.hgetall(keys.WEBHOOK_ATTEMPTS) == {b"b": b"1", b"c": b"1", b"d": b"1"}  # type: ignore[misc]


async def test_no_receiver_is_sent_the_cookies_of_another(serve: Serve) -> None:
    cookie = {"set-cookie": "session=secret; Path=/"}
    async with receiving((200, cookie)) as receiver, serve(**SETTINGS) as service:
        for count in (1, 2):
            service.draw((await service.submit(webhook_url=receiver.url))["id"])
            await until(lambda count=count: len(receiver.calls) == count)
        assert "cookie" not in receiver.calls[1][1]


async def test_every_secret_signs_and_a_drawn_one_is_kept(serve: Serve, redis_url: str) -> None:
    async with receiving() as receiver:
        async with serve(**SETTINGS | {"webhook_secrets": ",".join(SECRETS)}) as service:
            service.draw((await service.submit(webhook_url=receiver.url))["id"])
            await until(lambda: receiver.calls)
        assert [receiver.verified(secret)[0]["type"] for secret in SECRETS]
    redis = connect_async(redis_url)
    drawn = [await WebhookSecrets(redis, ()).keys() for _ in range(2)]
    await redis.aclose()
    assert drawn[0] == drawn[1]
    assert len(drawn[0][0]) == 32


REFUSED = [
    "http://example.org/", "ftp://example.org/", "https://", "https:///x", "example.org",
    "https://user:word@example.org/", "https://example.org:99999/", "https://exa mple.org/",
    "https://exämple.org/", "https://example.org/\n",
    "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f000001/",
    "https://0/", "https://10.0.0.1/", "https://172.16.3.4/", "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data", "https://100.64.0.1/", "https://224.0.0.1/",
    "https://255.255.255.255/", "https://240.0.0.1/", "https://[::1]/", "https://[::]/",
    "https://[fe80::1]/", "https://[fc00::1]/", "https://[ff02::1]/", "https://[fec0::1]/",
    "https://999.1.1.1/", "https://a..b.com/", f"https://{'a' * 64}.com/", "https://-a.com/",
    f"https://{'a.' * 127}com/", "https://a$b.com/",
    "https://[::ffff:127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
async def test_no_address_that_is_not_public(service: Service, url: str) -> None:
    with pytest.raises(Refused):
        Targets.parse("").check_url(url)
    body = {"prompt": "x", "webhook_url": url}
    answer = await service.client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/webhook_url"]


CALLED = [
    "https://example.org/hook?a=b", "https://1.1.1.1:8443/", "https://[2606:4700:4700::1111]/",
    "https://hook/", "https://my_host.a-b.co.uk.:8443/", "https://xn--exmple-cua.org/",
    "https://1.example.2go/", f"https://{'a' * 63}.com/",
]  # fmt: skip


@pytest.mark.parametrize("url", CALLED)
def test_public_addresses_are_called(url: str) -> None:
    assert Targets.parse("").check_url(url).geturl() == url


@pytest.mark.parametrize(
    ("listed", "url"),
    [
        ("hooks.internal", "http://hooks.internal/"), ("10.0.0.0/8", "http://10.1.2.3:9000/"),
        ("::1", "https://[::1]/"), ("127.0.0.1, [fd00::/8]", "http://[fd00::5]/"),
    ],
)  # fmt: skip
def test_the_operator_may_list_others(listed: str, url: str) -> None:
    assert Targets.parse(listed).check_url(url).geturl() == url
    with pytest.raises(Refused):
        Targets.parse("192.168.0.0/16,other.internal").check_url(url)


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names resolve to these addresses, one answer after the other; gives the names asked for."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        found = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_is_judged_by_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    none_listed = Targets.parse("")
    url = none_listed.check_url("https://example.org/")
    resolving(monkeypatch, ["1.1.1.1", "10.0.0.1"], ["1.1.1.1"])
    with pytest.raises(Refused, match=r"example\.org is 10\.0\.0\.1, which is not"):
        await none_listed.resolve(url)
    assert await none_listed.resolve(url) == "1.1.1.1"


async def test_the_call_goes_to_the_address_that_was_judged(
    serve: Serve, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = httpx.URL(receiver.url).port
    allowed = SETTINGS | {"webhook_allow": "127.0.0.1,hook.test"}
    async with serve(**allowed) as service:
        # A second look would lead elsewhere.
        asked = resolving(monkeypatch, ["127.0.0.1"], ["192.0.2.1"])
        job = await service.submit(webhook_url=f"http://hook.test:{port}/hook")
        service.draw(job["id"])
        await until(lambda: receiver.calls and not pending(service))
    assert asked == ["hook.test"]
    assert receiver.calls[0][1]["host"] == f"hook.test:{port}"


async def test_a_name_that_turns_private_is_never_called(
    serve: Serve, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = httpx.URL(receiver.url).port
    async with serve(webhook_retry_s=0.05) as service:
        asked = resolving(monkeypatch, ["127.0.0.1"])
        job = await service.submit(webhook_url=f"https://rebind.test:{port}/hook")
        service.draw(job["id"])
        await until(lambda: len(asked) >= 2)
        assert pending(service) == 1
    assert not receiver.calls


@pytest.mark.parametrize(
    ("name", "value"),
    [("webhook_secrets", "secret"), ("webhook_secrets", "whsec_QUJD"),
     ("webhook_allow", "10.0.0.0/33")],
)  # fmt: skip
async def test_wrong_settings_are_refused(serve: Serve, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        async with serve(**{name: value}):
            pass
