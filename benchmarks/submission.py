"""Jobs accepted a second by one API process, against the least that a FastAPI route can do."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from fastapi import FastAPI
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from app.commands.programs import environment, program
from app.embedded_redis import EmbeddedRedis, tied_to_parent
from app.jobs.connection import connect
from app.jobs.models import ModelCard
from benchmarks.results import Result, interleaved, ratios, result
from benchmarks.subject import Plan, loaded
from worker.card import announce, model_card

__all__ = ["bare", "measure", "post_for", "serving"]

CONNECTIONS: Final = 16
BLOCK_S: Final = 2.0
START_S: Final = 60.0
BODY: Final = json.dumps({"prompt": "a red apple", "steps": 20}).encode()
REDIS_URL: Final = "BENCHMARK_REDIS_URL"
NO_LIMIT: Final = 10**9


def bare() -> FastAPI:
    """One route that does one round trip to Redis."""
    app, redis = FastAPI(), AsyncRedis.from_url(os.environ[REDIS_URL])

    @app.post("/count", status_code=202)
    async def count() -> dict[str, int]:
        return {"count": await redis.incr("count")}

    return app


def measure(plan: Plan) -> list[Result]:
    """`POST /v1/jobs` ÷ the bare route, each served by one process of the same uvicorn."""
    bundle = loaded(plan.settings)
    card = model_card(bundle, plan.settings.micro_batch, "none")
    block_s = min(BLOCK_S, plan.seconds / 8)
    with ExitStack() as stack:
        server = EmbeddedRedis(plan.settings.data_dir / "redis-submission")
        server.start()
        stack.callback(server.stop)
        redis = stack.enter_context(connect(server.url))
        sides: dict[str, Callable[[], float]] = {}
        for name, command, path in _servers():
            port = stack.enter_context(serving(command, server.url, plan.settings.data_dir))
            sides[name] = partial(_block, redis, card, port, path, block_s)
        found = interleaved(sides, plan.seconds)
    return [
        result(
            "POST /v1/jobs ÷ a bare FastAPI route with one Redis round trip, one process each",
            ratios(found["jobs"], found["bare"]),
            unit="share",
            at_least=0.5,
            command=plan.command,
        ),
        result(
            "POST /v1/jobs, one API process",
            found["jobs"],
            unit="requests/s",
            at_least=None,
            command=plan.command,
        ),
    ]


def _servers() -> list[tuple[str, list[str], str]]:
    served = ["--factory", "--no-access-log", "--log-level", "warning"]
    route = program("uvicorn", "benchmarks.submission:bare", *served)
    return [
        ("jobs", program("app.cli", "api"), "/v1/jobs"),
        ("bare", route, "/count"),
    ]


@contextmanager
def serving(command: list[str], redis_url: str, data_dir: Path) -> Iterator[int]:
    """Run a server on a free port; the port, once it answers."""
    port = _free_port()
    limits = {
        "QUEUE_CAP": NO_LIMIT,
        "MAX_ACTIVE_JOBS_PER_KEY": NO_LIMIT,
        "RATE_LIMIT_PER_MINUTE": 0,
    }
    open_to_all = {"API_KEYS": "", "LOG_LEVEL": "warning"}
    values = {"REDIS_URL": redis_url, "DATA_DIR": data_dir} | limits | open_to_all
    given = {f"AVOCAT_{name}": str(value) for name, value in values.items()}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", f"{port}"],
        env=environment() | given | {REDIS_URL: redis_url},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=tied_to_parent(signal.SIGTERM),
    )
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(port: int) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/nothing", timeout=START_S)
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def _block(redis: Redis, card: ModelCard, port: int, path: str, seconds: float) -> float:
    """Requests a second, in a Redis that holds nothing but the model's card."""
    redis.flushdb()
    announce(redis, card)
    return asyncio.run(post_for(port, path, seconds))


async def post_for(port: int, path: str, seconds: float) -> float:
    """Requests answered with 202 per second for about that time, over connections that are kept.

    Raises:
        RuntimeError: an answer was another one.
    """
    began = time.perf_counter()
    shares = (_post(port, path, began + seconds) for _ in range(CONNECTIONS))
    answered = sum(await asyncio.gather(*shares))
    return answered / (time.perf_counter() - began)


async def _post(port: int, path: str, until: float) -> int:
    """One connection's share; no client library, for it would cost more than the server."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = 0
    try:
        while answered == 0 or time.perf_counter() < until:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(_length(answer))
            if b" 202 " not in answer.partition(b"\r\n")[0]:
                raise RuntimeError(f"{path} answered {answer.decode()}{body.decode()}")
            answered += 1
    finally:
        writer.close()
    return answered


def _length(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    return int(next(line for line in lines if line.startswith(b"content-length:")).split(b":")[1])
