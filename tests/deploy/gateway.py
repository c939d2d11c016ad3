"""nginx with the project's own configuration, before real API replicas and real workers."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from tests.integration.service import AVOCAT, environment, wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx"
START_DEADLINE_S = 600.0  # two workers load torch, on a machine that may be busy


class Gateway:
    """Replicas, workers and nginx on loopback, sharing one Redis and one data folder."""

    def __init__(
        self, folder: Path, redis_url: str, bundle: Path | None = None, workers: int = 2
    ) -> None:
        """Without workers somebody else has to announce a model."""
        self.folder = folder
        self._worker_count = workers
        self.settings: dict[str, str | Path] = {
            "redis_url": redis_url,
            "data_dir": folder / "data",
            "drain_delay_s": "1",
            "audit_log": folder / "audit.jsonl",
        } | ({"bundle": bundle} if bundle else {})
        self.ports = [free_port(), free_port()]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.replicas: dict[int, subprocess.Popen[bytes]] = {}

    @contextmanager
    def running(self) -> Iterator["Gateway"]:
        """Start all parts; end them in the opposite order."""
        with ExitStack() as stack:
            self.workers = [self._part("worker") for _ in range(self._worker_count)]
            for worker in self.workers:
                stack.callback(end, worker)
            stack.callback(lambda: [end(replica) for replica in self.replicas.values()])
            for port in self.ports:
                self.replicas[port] = self._part("api", "--port", str(port))
            for port in self.ports:
                self.await_answer(f"http://127.0.0.1:{port}/healthz")
            nginx = self._start(nginx_command(self._configure()))
            stack.callback(end, nginx, signal.SIGQUIT)
            self.await_answer(f"{self.url}/gateway/healthz")
            every = self._worker_count
            wait_until(lambda: self._live_workers() == every, START_DEADLINE_S, f"{every} workers")
            yield self

    def restart(self, port: int, signum: signal.Signals = signal.SIGTERM) -> None:
        """End one replica as an upgrade does, and start it again."""
        end(self.replicas[port], signum)
        self.replicas[port] = self._part("api", "--port", str(port))
        self.await_answer(f"http://127.0.0.1:{port}/healthz")

    @contextmanager
    def workers_paused(self) -> Iterator[None]:
        """No job goes on meanwhile; shorter than the lease, so none is given to another worker."""
        for worker in self.workers:
            worker.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in self.workers:
                worker.send_signal(signal.SIGCONT)

    def _live_workers(self) -> int:
        answer = httpx.get(f"{self.url}/readyz", timeout=30)
        return int(answer.json()["workers"]) if answer.is_success else 0

    def await_answer(self, url: str) -> None:
        """Wait until this URL is answered with success."""
        wait_until(lambda: answers(url), START_DEADLINE_S, f"an answer of {url}: {self.log}")

    @property
    def log(self) -> str:
        """What the parts said so far."""
        return (self.folder / "log").read_text(errors="replace")

    def _part(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self._start([*AVOCAT, *arguments])

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, env=environment(self.settings), stdout=log, stderr=log)

    def _configure(self) -> Path:
        return configure(self.folder / "nginx", self.port, self.ports)


def configure(folder: Path, port: int, replicas: list[int]) -> Path:
    """The shipped nginx.conf, moved to this port and folder; the upstream is of loopback."""
    folder.mkdir()
    moved = (CONFIGURATION / "nginx.conf").read_text()
    changes = {
        "listen 8080": f"listen 127.0.0.1:{port}",
        "/tmp/": f"{folder}/",  # noqa: S108 - of the container
        "worker_rlimit_nofile 65536;": "",  # raising limits may not be allowed here
        "worker_connections 16384": "worker_connections 1000",
        "access_log /dev/stdout": f"access_log {folder}/access.log",
        "error_log /dev/stderr": f"error_log {folder}/error.log",
    }
    for shipped, here in changes.items():
        if shipped not in moved:
            raise ValueError(f"{shipped!r} should be in nginx.conf")
        moved = moved.replace(shipped, here)
    if os.geteuid() == 0:  # whose folders nobody else may enter, and large bodies are put down
        moved = "user root;\n" + moved
    (folder / "nginx.conf").write_text(moved)
    upstream = (CONFIGURATION / "upstream.conf").read_text()
    head, rest = upstream[upstream.index("upstream api") :].split("    server api:8000 resolve ")
    options, tail = rest.split(";", 1)
    servers = "".join(f"    server 127.0.0.1:{replica} {options};" for replica in replicas)
    (folder / "upstream.conf").write_text(head + servers + tail)
    return folder / "nginx.conf"


def nginx_command(configuration: Path, *more: str) -> list[str]:
    """nginx in the foreground with this file."""
    early = ("-e", str(configuration.parent / "error.log"))
    return [NGINX or "nginx", *early, "-c", str(configuration), "-g", "daemon off;", *more]


def answers(url: str) -> bool:
    """Whether the URL is answered with success."""
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def end(process: subprocess.Popen[bytes], signum: signal.Signals = signal.SIGTERM) -> None:
    """Send the signal and wait; a process that stays is killed, and that is a failure."""
    process.send_signal(signum)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def free_port() -> int:
    """A port of loopback that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
