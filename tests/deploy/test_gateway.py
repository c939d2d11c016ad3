"""The shipped nginx configuration before two real replicas: what a client of it lives through."""

import json
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from app.client import Avocat, Ended
from app.embedded_redis import EmbeddedRedis
from tests.deploy.clients import Clients
from tests.deploy.gateway import NGINX, Gateway, configure, end, free_port, nginx_command
from tests.integration.service import wait_until
from tests.models.tiny import build_tiny_bundle

pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx here: apt install nginx")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    bundle = build_tiny_bundle(folder / "tiny")
    server = EmbeddedRedis(folder)
    server.start()
    try:
        with Gateway(folder, server.url, bundle).running() as running:
            yield running
    finally:
        server.stop()


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        yield client


def test_nginx_finds_no_fault_in_the_configuration(tmp_path: Path) -> None:
    file = configure(tmp_path / "nginx", free_port(), [free_port()])
    checked = subprocess.run(nginx_command(file, "-t"), capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr


def test_both_workers_draw_for_the_gateway(gateway: Gateway) -> None:
    with gateway.workers_paused(), Avocat(gateway.url) as client:
        jobs = [client.submit(f"apple {i}", steps=60, n=8) for i in range(8)]
    with Avocat(gateway.url) as client:
        for job in jobs:
            picture = client.download(client.wait(job).images[0])
            assert picture.startswith(b"\x89PNG")
    served = [worker for worker in range(2) if _drew(gateway, worker)]
    assert served == [0, 1]


def _drew(gateway: Gateway, worker: int) -> bool:
    """Whether this worker has taken a job, by the records' word."""
    with redis.Redis.from_url(str(gateway.settings["redis_url"])) as connection:
        names = {connection.hget(key, "worker") for key in connection.scan_iter("avocat:job:*")}
    pid = gateway.workers[worker].pid
    return any(f"-{pid}-".encode() in name for name in names if name)


def test_request_ids_of_clients_are_kept_and_bad_ones_replaced(http: httpx.Client) -> None:
    kept = http.get("/healthz", headers={"X-Request-Id": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    replaced = http.get("/healthz", headers={"X-Request-Id": "not one"})
    assert len(replaced.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("path", "most", "said"),
    [
        ("/v1/jobs", 22 << 20, 413),  # no picture can be in it
        ("/v1/verify", 9 << 20, 422),
        ("/v1/images/edits", 22 << 20, 415),
    ],
)
def test_a_large_body_is_refused_with_a_problem(
    http: httpx.Client, path: str, most: int, said: int
) -> None:
    answer = http.post(path, content=b"x" * (most + 1))
    assert answer.status_code == 413
    assert answer.headers["x-request-id"]
    if "images" in path:  # of OpenAI's form
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"]["code"] == "body_too_large"
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["instance"] == answer.headers["x-request-id"]
    below = http.post(
        path, content=b"x" * (most - (1 << 20)), headers={"Content-Type": "image/png"}
    )
    assert below.status_code == said
    assert "the gateway's limit" not in below.text  # the API's own word


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_links_are_https_where_tls_ends_before_the_gateway(
    gateway: Gateway, http: httpx.Client, scheme: str
) -> None:
    asked = {"prompt": "a plum", "steps": 1, "response_format": "url"}
    proto = {"X-Forwarded-Proto": scheme} if scheme == "https" else {}
    answer = http.post("/v1/images/generations", json=asked, headers=proto)
    (image,) = answer.json()["data"]
    assert image["url"].startswith(f"{scheme}://127.0.0.1:{gateway.port}/")


def test_no_client_chooses_its_address(gateway: Gateway, http: httpx.Client) -> None:
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "forged-address"}
    assert http.get("/v1/jobs", headers=forged).status_code == 200
    file = gateway.folder / "audit.jsonl"
    wait_until(lambda: "forged-address" in file.read_text(), 30, "the note of the request")
    notes = [json.loads(line) for line in file.read_text().splitlines()]
    [note] = [note for note in notes if note["request_id"] == "forged-address"]
    assert note["address"] == "127.0.0.1"


def test_a_verification_may_take_as_long_as_a_synchronous_picture(
    gateway: Gateway, http: httpx.Client, tmp_path: Path
) -> None:
    """The gateway's time for other answers is cut to a second, to be outlasted by this one."""
    asked = http.post("/v1/jobs", json={"prompt": "a plum"}, headers={"Prefer": "wait=60"})
    picture = http.get(asked.json()["images"][0]["url"]).content
    port = free_port()
    configuration = configure(tmp_path / "nginx", port, gateway.ports)
    text = configuration.read_text()
    assert "proxy_read_timeout 75s;" in text
    configuration.write_text(text.replace("proxy_read_timeout 75s;", "proxy_read_timeout 1s;"))
    nginx = subprocess.Popen(nginx_command(configuration))
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _status(f"{url}/gateway/healthz") == 200, 30, "the gateway's start")
        with ThreadPoolExecutor() as pool, gateway.workers_paused():
            kind = {"Content-Type": "image/png"}
            asking = pool.submit(
                httpx.post, f"{url}/v1/verify", content=picture, headers=kind, timeout=60
            )
            time.sleep(3)
            assert not asking.done()
        assert asking.result().json()["verdict"] == "identical"
    finally:
        end(nginx, signal.SIGQUIT)


def test_tls_ends_in_the_gateway_as_the_documents_have_it(gateway: Gateway, tmp_path: Path) -> None:
    key, certificate, port = tmp_path / "privkey.pem", tmp_path / "fullchain.pem", free_port()
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    block = (
        (Path(__file__).parents[2] / "docs/deployment.md")
        .read_text()
        .split("```nginx\n")[1]
        .split("```")[0]
    )
    block = block.replace("8443", f"127.0.0.1:{port}").replace("/etc/avocat/tls", str(tmp_path))
    configuration = configure(tmp_path / "nginx", free_port(), gateway.ports)
    text = configuration.read_text()
    configuration.write_text(
        text.replace("        listen ", f"        {block}\n        listen ", 1)
    )
    nginx = subprocess.Popen(nginx_command(configuration))
    try:
        url = f"https://127.0.0.1:{port}"
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=url, verify=context, timeout=60) as http:
            wait_until(lambda: _answers(http), 30, "the gateway's start")
            asked = {"prompt": "a plum", "steps": 1, "response_format": "url"}
            answer = http.post("/v1/images/generations", json=asked)
            (image,) = answer.json()["data"]
            assert image["url"].startswith(f"{url}/")
            assert http.get(image["url"]).content.startswith(b"\x89PNG")
    finally:
        end(nginx, signal.SIGQUIT)


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/gateway/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_where_no_replica_answers_the_gateway_says_so(tmp_path: Path) -> None:
    port = free_port()
    nginx = subprocess.Popen(nginx_command(configure(tmp_path / "nginx", port, [free_port()])))
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _status(f"{url}/gateway/healthz") == 200, 30, "the gateway's start")
        answer = httpx.post(f"{url}/v1/jobs", json={"prompt": "a plum"})
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["instance"] == answer.headers["x-request-id"]
        for what in ("generations", "edits"):
            answer = httpx.post(f"{url}/v1/images/{what}", json={"prompt": "a plum"})
            assert answer.headers["retry-after"] == "2"
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            large = httpx.post(f"{url}/v1/images/{what}", content=b"x" * (23 << 20))
            assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    finally:
        end(nginx, signal.SIGQUIT)


@pytest.mark.parametrize(
    ("sent", "status", "slug"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "bad-request"),
        (b"GET /v1/jobs/%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\x00c\r\n\r\n", 400, "bad-request"),
        (b"GET /?%s HTTP/1.1\r\n" % (b"a" * 33_000), 431, "headers-too-large"),
        (b"GET / HTTP/1.1\r\nX-A: %s\r\n\r\n" % (b"a" * 33_000), 431, "headers-too-large"),
    ],
    ids=["tls", "path", "nul", "long-url", "long-header"],
)
def test_what_the_gateway_does_not_read_is_refused_with_a_problem(
    gateway: Gateway, sent: bytes, status: int, slug: str
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(sent)
        head, _, body = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    problem = json.loads(body)
    assert (problem["status"], problem["type"]) == (status, f"/problems/{slug}")
    assert f"x-request-id: {problem['instance']}" in head.decode().lower()


def test_a_head_that_the_api_reads_passes_the_gateway(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"Cookie": "a" * 20_000})
    assert answer.status_code == 200


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.TransportError:
        return 0


def test_connections_to_replicas_are_kept(gateway: Gateway, http: httpx.Client) -> None:
    def open_connections() -> set[int]:
        found = set()
        for replica in gateway.replicas.values():
            for one in psutil.Process(replica.pid).net_connections("tcp4"):
                if one.status == psutil.CONN_ESTABLISHED and one.laddr.port in gateway.ports:
                    found.add(one.raddr.port)
        return found

    http.get("/healthz")
    before = open_connections()
    for _ in range(40):
        http.get("/healthz")
    assert before
    assert before & open_connections()
    assert len(open_connections()) < 20


def test_requests_go_to_the_replica_with_fewest_open(gateway: Gateway, http: httpx.Client) -> None:
    log = gateway.folder / "nginx/access.log"
    with Avocat(gateway.url) as client, gateway.workers_paused():
        job = client.submit("a long one", steps=2)
        stream = client.stream(job)
        next(stream)  # one connection is taken by the stream
        for at in range(10):
            http.get("/healthz", headers={"X-Request-Id": f"least-{at}"})
        client.cancel(job)
        assert isinstance(list(stream)[-1], Ended)
    wait_until(lambda: f"/v1/jobs/{job.id}/events" in log.read_text(), 30, "the stream's log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (busy,) = {line["replica"] for line in lines if line["path"] == f"/v1/jobs/{job.id}/events"}
    others = {line["replica"] for line in lines if line["request_id"].startswith("least-")}
    assert len(others) == 1
    assert others != {busy}


def test_a_stream_goes_on_after_the_last_event_seen(gateway: Gateway, http: httpx.Client) -> None:
    with gateway.workers_paused():
        job = http.post("/v1/jobs", json={"prompt": "a fig", "steps": 2}).json()["id"]
        with http.stream("GET", f"/v1/jobs/{job}/events") as stream:
            seen = _id_of_first(stream)  # while the job stands still: nothing is buffered
    headers = {"Last-Event-ID": seen}
    with http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as stream:
        rest = "".join(stream.iter_text())
    assert f"id: {seen}\n" not in rest
    assert rest.count("event: succeeded") == 1


def _id_of_first(stream: httpx.Response) -> str:
    for line in stream.iter_lines():
        if line.startswith("id: "):
            return line.removeprefix("id: ")
    raise AssertionError("the stream ended without an event")


def test_a_stream_whose_replica_is_killed_goes_on_at_the_other(gateway: Gateway) -> None:
    """Two streams, so that the least busy replica takes the second; one of them is cut."""
    with Avocat(gateway.url) as client:
        with gateway.workers_paused():  # the job stays open while the replica dies
            job = client.submit("a green pear", steps=2)
            streams = [client.stream(job), client.stream(job)]
            for stream in streams:
                next(stream)
            gateway.restart(gateway.ports[0], signal.SIGKILL)
        ends = [list(stream)[-1] for stream in streams]
    assert "upstream prematurely closed" in (gateway.folder / "nginx/error.log").read_text()
    assert [isinstance(end, Ended) and end.job.status for end in ends] == ["succeeded"] * 2


def test_a_stopping_replica_says_so_and_finishes_what_it_has(gateway: Gateway) -> None:
    replica, url = gateway.replicas[gateway.ports[0]], f"http://127.0.0.1:{gateway.ports[0]}"
    asked = {"prompt": "a yellow lemon", "steps": 2, "response_format": "url"}
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=60) as http:
        with gateway.workers_paused():
            waiting = pool.submit(
                httpx.post, f"{url}/v1/images/generations", json=asked, timeout=60
            )
            wait_until(lambda: bool(http.get("/v1/jobs?limit=1").json()["data"]), 30, "the job")
            wait_until(lambda: _waits(http), 30, "the call that waits")
            replica.send_signal(signal.SIGTERM)
            wait_until(lambda: _status(f"{url}/readyz") == 503, 30, "the end of readiness")
            late = http.post("/v1/jobs", json={"prompt": "a late one", "steps": 1})
            assert (late.status_code, late.headers["connection"]) == (202, "close")
            wait_until(lambda: _status(f"{url}/healthz") == 0, 30, "the closing of the door")
            assert replica.poll() is None
        assert waiting.result().status_code == 200
    gateway.restart(gateway.ports[0])


def _waits(http: httpx.Client) -> bool:
    newest = http.get("/v1/jobs?limit=1").json()["data"][0]
    return bool(newest["request"]["prompt"] == "a yellow lemon")


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("least", [300, pytest.param(10_000, marks=pytest.mark.load)])
def test_rolling_restarts_fail_no_request(gateway: Gateway, least: int) -> None:
    """Over and over again until so many requests were made, at least once each replica."""
    with Clients(gateway.url, least) as clients:
        begun = time.monotonic()
        restarts = 0
        while restarts < 2 or not clients.done:
            gateway.restart(gateway.ports[restarts % 2])
            restarts += 1
        took_s = time.monotonic() - begun
    assert clients.failures == []
    assert clients.answered >= least
    print(f"{clients.answered} requests, {restarts} restarts, {took_s:.0f} s, none failed")
