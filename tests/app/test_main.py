"""The application as a process: light, and answering real HTTP."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).parents[2]
# The peak from /proc: that of getrusage also counts what the forking test process held.
LIGHT = r"""
import re, sys
from app.main import create_app
from app.settings import Settings
create_app(Settings()).openapi()
heavy = {"torch", "open_clip", "numpy", "models", "worker"} & set(sys.modules)
assert not heavy, heavy
print(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1])
"""


def test_a_fresh_process_is_light() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 150 * 1024  # KiB


@pytest.fixture
def address(redis_url: str, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Host and port of a real server."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(Settings(redis_url=redis_url, data_dir=tmp_path))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(
        target=asyncio.run, args=(server.serve(sockets=[listener]),), daemon=True
    )
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield listener.getsockname()
    server.should_exit = True
    thread.join(20)


def test_http_for_real(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        head = client.head("/healthz")
        assert (head.status_code, head.content) == (200, b"")
        body = b'{"prompt": "' + b"x" * 500_000 + b'"}'
        large = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert (large.status_code, large.json()["type"]) == (413, "/problems/body-too-large")
        assert client.get("/v1/jobs").json()["data"] == []
        assert client.get("/v1/images/%2e%2e%2f%00.png").status_code == 404
        assert client.request("BREW", "/v1/jobs").status_code == 405
