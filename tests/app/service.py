"""A running application for tests, with someone to play the worker."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis

from app import keys
from app.jobs.connection import connect
from app.jobs.models import ModelCard
from app.jobs.record import JobRecord, JobStatus, StoredImage
from app.jobs.repeats import repeat_key
from app.jobs.store import JobStore
from app.main import create_app
from app.server import Server
from app.settings import Settings
from app.storage.opening import open_storage

CARD = ModelCard(
    name="tiny",
    bundle_sha256="ab" * 32,
    fingerprint="f" * 32,
    native_size=(16, 16),
    sizes=("16x16", "32x32"),
    default_sampler="dpmpp_2m",
    default_steps=20,
    default_guidance_scale=3.0,
    max_steps=200,
    is_default=True,
)
PNG = b"\x89PNG" + bytes(range(256)) * 4


@dataclass
class Service:
    """One application, a client of it, and the Redis behind it."""

    client: httpx.AsyncClient
    redis: redis.Redis
    store: JobStore
    storage: Any  # a FolderStorage, unless the settings name a bucket
    app: Any

    async def submit(self, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """POST a job that should be accepted; its object."""
        body = {"prompt": "a red apple"} | fields
        answer = await self.client.post("/v1/jobs", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def job(self, job_id: str) -> Any:
        """GET a job's object."""
        return (await self.client.get(f"/v1/jobs/{job_id}")).json()

    async def job_as(self, job_id: str, headers: dict[str, str]) -> Any:
        """GET a job's object with a key."""
        return (await self.client.get(f"/v1/jobs/{job_id}", headers=headers)).json()

    def take(self, job_id: str, execution: str = "e1") -> JobRecord:
        """Start a job as a worker would."""
        for queue in keys.QUEUES:
            self.redis.lrem(keys.rq_queue(queue), 0, job_id)
        record = self.store.start(job_id, execution, "w")
        assert record is not None
        return record

    def draw(self, job_id: str, execution: str = "e1", data: bytes = PNG) -> list[StoredImage]:
        """Run a job to its end as a worker would; every image has the same bytes."""
        record = self.take(job_id, execution)
        images = [
            StoredImage(
                index=index,
                name=f"{job_id}_{execution}_{index}.png",
                seed=record.request.seed + index,
                width=record.request.width,
                height=record.request.height,
                content_type="image/png",
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
            for index in range(record.request.n)
        ]
        for image in images:
            self.storage.write(image.name, data)
        repeats = repeat_key(record.owner, record.request, CARD.fingerprint)
        assert self.store.finish(
            job_id, execution, JobStatus.SUCCEEDED, images=images, repeats=repeats
        )
        return images


Serve = Callable[..., AbstractAsyncContextManager[Service]]


def serving(redis_url: str, data_dir: Path, card: ModelCard | None = CARD) -> Serve:
    """A function that runs an application with the given settings."""

    @asynccontextmanager
    async def serve(**overrides: Any) -> AsyncIterator[Service]:
        settings = Settings(**({"redis_url": redis_url, "data_dir": data_dir} | overrides))
        app = create_app(settings)
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)
        with connect(redis_url) as connection:
            if card is not None:
                connection.hset(keys.MODELS, card.name, card.model_dump_json())
            storage = open_storage(settings, patience_s=5)
            async with client, app.router.lifespan_context(app):
                yield Service(client, connection, JobStore(connection), storage, app)

    return serve


async def until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait for a condition, at most so long."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """The URL under which an application that runs already is served over real connections."""
    server = Server(app, port=0, lifespan="off")
    running = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
