"""The shipped nginx configuration before two real replicas: what a client of it lives through."""

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.client import Avocat, Ended
from app.embedded_redis import EmbeddedRedis
from tests.deploy.gateway import NGINX, Gateway, configure, free_port, nginx_command
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


def test_pictures_are_drawn_through_the_gateway(gateway: Gateway) -> None:
    with Avocat(gateway.url) as client:
        (picture,) = client.generate("a red apple", steps=2)
    assert picture.data.startswith(b"\x89PNG")


def test_request_ids_of_clients_are_kept_and_bad_ones_replaced(http: httpx.Client) -> None:
    kept = http.get("/healthz", headers={"X-Request-Id": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    replaced = http.get("/healthz", headers={"X-Request-Id": "not one"})
    assert len(replaced.headers["x-request-id"]) == 32


def test_metrics_are_not_for_the_world(http: httpx.Client) -> None:
    answer = http.get("/metrics")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
    assert answer.json()["instance"] == answer.headers["x-request-id"]


def test_a_large_body_is_refused_with_a_problem(http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", content=b"x" * 70_000)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"] == answer.headers["x-request-id"]


def test_a_stream_whose_replica_is_killed_goes_on_at_the_other(gateway: Gateway) -> None:
    """Two streams, so that the least busy replica takes the second; one of them is cut."""
    gateway.worker.send_signal(signal.SIGSTOP)  # the job stays open while the replica dies
    try:
        with Avocat(gateway.url) as client:
            job = client.submit("a green pear", steps=2)
            streams = [client.stream(job), client.stream(job)]
            for stream in streams:
                next(stream)
            gateway.restart(gateway.ports[0], signal.SIGKILL)
            gateway.worker.send_signal(signal.SIGCONT)
            ends = [list(stream)[-1] for stream in streams]
    finally:
        gateway.worker.send_signal(signal.SIGCONT)
    assert "upstream prematurely closed" in (gateway.folder / "nginx/error.log").read_text()
    assert [isinstance(end, Ended) and end.job.status for end in ends] == ["succeeded"] * 2


@pytest.mark.parametrize("least", [200, pytest.param(10_000, marks=pytest.mark.load)])
def test_a_rolling_restart_fails_no_request(
    gateway: Gateway, http: httpx.Client, least: int
) -> None:
    clients = Clients(http, least)
    with clients:
        for port in gateway.ports:
            gateway.restart(port)
    assert clients.failures == []
    assert clients.answered >= least


class Clients:
    """Requests in a row, each tenth a submission, until told to end and `least` were sent."""

    def __init__(self, http: httpx.Client, least: int) -> None:
        self._http, self._least = http, least
        self._told_to_end = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.failures: list[Any] = []
        self.answered = 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *fault: object) -> None:
        self._told_to_end.set()
        self._thread.join()

    def _ask(self) -> None:
        count = 0
        while count < self._least or not self._told_to_end.is_set():
            try:
                answer = self._submit(count) if count % 10 == 0 else self._http.get("/v1/jobs")
            except httpx.TransportError as fault:
                self.failures.append(repr(fault))
            else:
                self.answered += answer.is_success
                if not answer.is_success:
                    self.failures.append((answer.status_code, answer.text))
            count += 1

    def _submit(self, count: int) -> httpx.Response:
        """A submission that is taken back at once, so that the worker has little to do."""
        key = {"Idempotency-Key": f"{id(self)}-{count}"}
        job = self._http.post("/v1/jobs", json={"prompt": "a plum", "steps": 1}, headers=key)
        if not job.is_success:
            return job
        return self._http.post(f"{job.headers['location']}/cancel")
